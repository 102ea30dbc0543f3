"""The socket file: belongs to one daemon, and is never taken from another."""

import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NamedTuple

from lockd.errors import ConfigError
from lockd.lockspaces.places import check_place, make_directory
from lockd.names import quoted

logger = logging.getLogger(__name__)

Role = Literal["client", "admin", "virtlockd", "metrics"]
"""The purpose of a socket: clients, admins, libvirt, or collectors of metrics. It is
also the socket's name in systemd (FileDescriptorName=)."""

CLIENTS: Final = "client"
ADMINS: Final = "admin"
VIRTLOCKD: Final = "virtlockd"
METRICS: Final = "metrics"
ROLES: Final[tuple[Role, ...]] = (CLIENTS, ADMINS, VIRTLOCKD, METRICS)

BACKLOG: Final = 4096
"""The most clients that wait for accept(2). The kernel caps it at net.core.somaxconn.
"""

MAX_PATH: Final = 107
"""The most bytes of a path (unix(7), sun_path)."""

UMASK: Final = 0o117
"""Owner and group may connect, which takes write permission (unix(7))."""

OWNER_UMASK: Final = 0o177
"""For the other sockets: only the owner and root may connect."""

DIRECTORY_MODE: Final = 0o755
"""The mode of a directory that is created for a socket: everybody may search it."""

_LOCK_FLAGS: Final = (
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)

Plain = dict[str, Any]


class Listening(NamedTuple):
    """A listening socket and its role."""

    socket: socket.socket
    role: Role


class Listener:
    """A listening socket and its file.

    Args:
        path: of the socket.
        sock: the socket.
        inode: of the file if this daemon created it and must remove it.
    """

    def __init__(
        self, path: str, sock: socket.socket, inode: tuple[int, int] | None
    ) -> None:
        self.path = path
        self.socket = sock
        self._inode = inode

    def dump(self, keep: Callable[[int], int]) -> Plain:
        """Returns the data for `load_listener`."""
        fd = keep(self.socket.fileno())
        return {"path": self.path, "fd": fd, "inode": self._inode}

    def remove(self) -> None:
        """Removes the socket file if it is still ours."""
        if self._inode is None:
            return
        try:
            with _alone(self.path, fcntl.LOCK_EX):
                if _inode(self.path) == self._inode:
                    os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody has removed it, or its directory
        except (OSError, ConfigError) as error:
            # The next daemon there replaces it.
            logger.warning("%s is left behind: %s", quoted(self.path), error)


def load_listener(data: Plain) -> Listener:
    """Takes over the listening socket of a predecessor in this process."""
    inode = data["inode"]
    sock = socket.socket(fileno=data["fd"])
    sock.set_inheritable(False)
    return Listener(data["path"], sock, None if inode is None else tuple(inode))


def passed_listener(sock: socket.socket) -> Listener:
    """Returns the listener of a socket that the service manager owns."""
    name = sock.getsockname()
    return Listener(
        name if isinstance(name, str) else f"{name[0]}:{name[1]}", sock, None
    )


def turn_away_all(sock: socket.socket, farewell: bytes) -> None:
    """Rejects all waiting clients of a socket that the service manager owns.

    Otherwise it would start the daemon again and again, and they would wait for ever.
    """
    with suppress(OSError):
        while True:
            client, _ = sock.accept()
            with client, suppress(OSError):  # it has disconnected
                client.sendall(farewell)


def bind_listener(path: str, umask: int = UMASK, option: str = "--socket") -> Listener:
    """Returns a listening socket at a path that no other daemon uses.

    It replaces a socket file that nobody listens at. Meanwhile no other daemon may do
    the same (`_alone`): both could find the leftover, and the second could remove the
    new socket of the first. It creates a missing directory with mode 0755.

    Args:
        path: of the socket.
        umask: removed from the mode of the socket file.
        option: the option of lockd for another path.

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
            f"another daemon is starting at {quoted(path)}: use that one"
        ) from None
    except OSError as error:
        raise _cannot(path, error) from None


def check_listener(path: str, option: str) -> None:
    """Checks that `bind_listener` can use a path, but changes nothing.

    It ignores other daemons: one that listens there may be the one to replace.

    Raises:
        ConfigError: as `bind_listener` says it.
    """
    try:
        if not _make_directory_of(path, option, check_place):
            return
        _check_lock_file(f"{path}.lock", path)
        _is_there(path)
        if len(os.fsencode(path)) > MAX_PATH:
            raise OSError("AF_UNIX path too long")
    except OSError as error:
        raise _cannot(path, error) from None


def _check_lock_file(lock: str, path: str) -> None:
    try:
        os.close(_open_lock_file(lock, _LOCK_FLAGS & ~os.O_CREAT))
    except FileNotFoundError:
        directory = os.path.dirname(os.path.abspath(path))
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "") from None


def _cannot(path: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(f"the socket {quoted(path)}: {reason}")


def _make_directory_of(
    path: str, option: str, make: Callable[[str, int], object] = make_directory
) -> bool:
    """Makes the directory of a socket. Returns whether it was there."""
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(directory):
        return True
    try:
        make(directory, DIRECTORY_MODE)
    except ConfigError as error:
        raise ConfigError(
            f"the socket {quoted(path)}: {error} (or choose another path with {option})"
        ) from None
    return False


@contextmanager
def _alone(path: str, operation: int) -> Iterator[None]:
    """Keeps other daemons from changing a path while the body runs.

    It locks a file that nobody else may open: a user who could open it could lock it,
    and block every start.

    Args:
        path: the path.
        operation: of flock(2).
    """
    lock = f"{path}.lock"
    while True:
        fd = _open_lock_file(lock, _LOCK_FLAGS)
        try:
            fcntl.flock(fd, operation)
            # The previous owner of the lock may have removed the file.
            if _leads_to(lock, os.fstat(fd)):
                try:
                    yield
                finally:
                    os.unlink(lock)
                return
        finally:
            os.close(fd)


def _open_lock_file(lock: str, flags: int) -> int:
    """Opens the file that `_alone` locks.

    Raises:
        ConfigError: it is not ours.
    """
    fd = os.open(lock, flags, 0o600)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(
            f"{quoted(lock)} is in the way, and not ours: remove it, or choose another "
            "path"
        )
    return fd


def _leads_to(path: str, status: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return _inode(path) == (status.st_dev, status.st_ino)
    return False


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _bind(path: str, wanted_umask: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not chmod(2) after bind(2): in between, anybody could connect.
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


def _is_there(path: str) -> bool:
    """Returns whether there is a socket file.

    Raises:
        ConfigError: there is another file.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"{quoted(path)} exists already and is not a socket: remove it, or choose "
            "another path"
        )
    return True


def _remove_leftover(path: str) -> None:
    if not _is_there(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: a daemon listens
    raise ConfigError(
        f"another daemon listens at {quoted(path)}: use that, or choose another path"
    )
