"""The socket file: made for one daemon, removed with it, never taken from another."""

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NamedTuple

from lockd.errors import ConfigError
from lockd.lockspaces.places import make_directory
from lockd.names import quoted

logger = logging.getLogger(__name__)

Role = Literal["client", "admin", "virtlockd", "metrics"]
"""What a socket is for: clients, admins, libvirt, who takes us for virtlockd, and those
who collect metrics. Also its name in systemd (FileDescriptorName=)."""

CLIENTS: Final = "client"
ADMINS: Final = "admin"
VIRTLOCKD: Final = "virtlockd"
METRICS: Final = "metrics"
ROLES: Final[tuple[Role, ...]] = (CLIENTS, ADMINS, VIRTLOCKD, METRICS)

BACKLOG: Final = 4096
"""Clients that may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

UMASK: Final = 0o117
"""Owner and group may connect (unix(7): that takes write permission)."""

OWNER_UMASK: Final = 0o177
"""Of the other sockets: only its owner may, and root."""

DIRECTORY_MODE: Final = 0o755
"""Of a directory that is made for a socket: all may pass through."""

_LOCK_FLAGS: Final = (
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)

Plain = dict[str, Any]


class Listening(NamedTuple):
    """A listening socket, and who comes there."""

    socket: socket.socket
    role: Role


class Listener:
    """A listening socket and its file.

    Args:
        inode: of the file, if we made it and so have to remove it.
    """

    def __init__(
        self, path: str, sock: socket.socket, inode: tuple[int, int] | None
    ) -> None:
        self.path = path
        self.socket = sock
        self._inode = inode

    def dump(self, keep: Callable[[int], int]) -> Plain:
        """Returns what `load_listener` needs."""
        fd = keep(self.socket.fileno())
        return {"path": self.path, "fd": fd, "inode": self._inode}

    def remove(self) -> None:
        """Removes the socket file, if it is still ours."""
        if self._inode is None:
            return
        try:
            with _alone(self.path, fcntl.LOCK_EX):
                if _inode(self.path) == self._inode:
                    os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody has removed it, or its directory
        except (OSError, ConfigError) as error:
            # Whoever listens there next replaces it.
            logger.warning("%s is left behind: %s", quoted(self.path), error)


def load_listener(data: Plain) -> Listener:
    """Takes up the listening socket of a predecessor in this process."""
    inode = data["inode"]
    sock = socket.socket(fileno=data["fd"])
    sock.set_inheritable(False)
    return Listener(data["path"], sock, None if inode is None else tuple(inode))


def passed_listener(sock: socket.socket) -> Listener:
    """Returns the listener of a socket that the service manager made and keeps."""
    name = sock.getsockname()
    return Listener(
        name if isinstance(name, str) else f"{name[0]}:{name[1]}", sock, None
    )


def turn_away_all(sock: socket.socket, farewell: bytes) -> None:
    """Ends the wait of those at a socket that the service manager keeps.

    They would have it start us again and again, and wait for ever.
    """
    with suppress(OSError):
        while True:
            client, _ = sock.accept()
            with client, suppress(OSError):  # it went away by itself
                client.sendall(farewell)


def bind_listener(path: str, umask: int = UMASK, option: str = "--socket") -> Listener:
    """Returns a listening socket at a path, of which no other daemon makes use.

    A socket file that nobody listens to is a leftover and is replaced. While this is
    found out, no other daemon does the same (`_alone`), or two could both find the
    leftover, and the second remove the first one's new socket. A directory that is
    missing is made, with mode 0755.

    Args:
        path: where.
        umask: what is taken from the mode of the socket file.
        option: of lockd, that names another path.

    Raises:
        ConfigError: another daemon listens there, or the path cannot be used.
    """
    try:
        _make_directory_of(path, option)
        with _alone(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _remove_leftover(path)
            return _bind(path, umask)
    except BlockingIOError:
        raise ConfigError(
            f"another daemon is just being started at {quoted(path)}: use that one"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"the socket {quoted(path)}: {reason}") from None


def _make_directory_of(path: str, option: str) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(directory):
        return
    try:
        make_directory(directory, DIRECTORY_MODE)
    except ConfigError as error:
        raise ConfigError(
            f"the socket {quoted(path)}: {error} ({option} names another place)"
        ) from None


@contextmanager
def _alone(path: str, operation: int) -> Iterator[None]:
    """Lets no other daemon change what is at a path, while the body runs.

    What is locked for that is a file that nobody else may open: whoever can open it can
    lock it, and hold up every start.

    Args:
        operation: of flock(2).
    """
    lock = f"{path}.lock"
    while True:
        fd = os.open(lock, _LOCK_FLAGS, 0o600)
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
                raise ConfigError(
                    f"{quoted(lock)} is in the way, and not ours: remove it, or choose "
                    "another path"
                )
            fcntl.flock(fd, operation)
            # Whoever had it before us has removed it.
            if _leads_to(lock, status):
                try:
                    yield
                finally:
                    os.unlink(lock)
                return
        finally:
            os.close(fd)


def _leads_to(path: str, status: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return _inode(path) == (status.st_dev, status.st_ino)
    return False


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _bind(path: str, wanted_umask: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not chmod(2) after bind(2): between the two anybody could connect.
    umask = os.umask(wanted_umask)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
        return Listener(path, sock, _inode(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)


def _remove_leftover(path: str) -> None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"{quoted(path)} is there already, and is no socket: remove it, or choose "
            "another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is there
    raise ConfigError(
        f"another daemon listens at {quoted(path)}: use that, or choose another path"
    )
