"""Finds the socket of a daemon and connects to it.

All clients search in the same order (lockctl(1), FINDING THE DAEMON).
"""

import errno
import fcntl
import os
import stat
import struct
from contextlib import closing

from lockd.errors import (
    ConnectionLostError,
    DeniedError,
    InvalidRequestError,
    LockdError,
)
from lockd.hints import Final, NamedTuple, Self
from lockd.lean import socket
from lockd.names import path_text, plain, quoted

SYSTEM_SOCKET: Final = "/run/lockd/lockd.sock"

SYSTEM_USER: Final = "lockd"
"""The user of the system's daemon."""

ATTEMPTS: Final = 5
"""How often to open a connection that ends before the daemon sends anything on it."""

_USERS: Final = "the user's default"
_SYSTEMS: Final = "the system's default"

_SHOWN: Final = 200
"""The most characters of a path in an error message."""

_UCRED: Final = struct.Struct("3i")


class Address(
    NamedTuple(
        "Address",
        [
            ("path", str),
            ("trusted", bool),
            ("others", tuple[str, ...]),
            ("origin", str),
        ],
    )
):
    """The address of a daemon.

    Attributes:
        path: of the socket.
        trusted: whether the daemon of any user is accepted. If not, root accepts only
            root's and the system's.
        others: the sockets of other daemons that the search found.
        origin: who chose the path, as a part of a sentence.
    """

    __slots__ = ()

    def __new__(
        cls,
        path: str,
        trusted: bool = True,
        others: tuple[str, ...] = (),
        origin: str = "as given",
    ) -> Self:
        """Returns an address; one that a user gave, if nothing else is said."""
        return super().__new__(cls, path, trusted, others, origin)

    def __fspath__(self) -> str:
        return self.path


def user_socket() -> str:
    """Returns the socket path of the user's own daemon."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return f"{runtime_dir}/lockd/lockd.sock"


def find_socket(path: str | os.PathLike[str] | None = None) -> Address:
    """Returns the address of the daemon.

    The order is: the argument, `$LOCKD_SOCKET`, the user's own socket if a daemon
    listens there, the system's socket. Root does not follow the environment to the
    daemon of another user: `su` keeps the variables of its caller.

    Args:
        path: the path, or an address that an earlier call returned.

    Raises:
        TypeError: the argument is no path.
        InvalidRequestError: it is empty, or has a character that no path may have.
        DeniedError: this is root, and `$LOCKD_SOCKET` belongs to another user.
    """
    if isinstance(path, Address):
        return path
    if path == "":
        raise InvalidRequestError(
            "the path of the socket is empty: give the path that lockd listens at, or "
            "no path"
        )
    if path is not None:
        return Address(path_text("the path of the socket", path))
    if told := os.environ.get("LOCKD_SOCKET"):
        address = Address(told, trusted=False, origin="from LOCKD_SOCKET")
        if (owner := _owner(told)) is not None and not _may_serve(owner):
            raise _not_for_root(told, owner)
        return address
    own = user_socket()
    found = []
    if _listens(own) and _may_serve(_owner(own)):
        found.append(Address(own, trusted=False, origin=_USERS))
    if _listens(SYSTEM_SOCKET):
        # Only root can create a socket there, so its owner needs no check.
        found.append(Address(SYSTEM_SOCKET, origin=_SYSTEMS))
    if found:
        return found[0]._replace(others=tuple(other.path for other in found[1:]))
    # No daemon was found. Connecting to the first existing path gives the best error.
    if not os.path.exists(SYSTEM_SOCKET) and _may_serve(_owner(own)):
        return Address(own, trusted=False, origin=_USERS)
    return Address(SYSTEM_SOCKET, origin=_SYSTEMS)


def new_socket(kind: type[socket.socket] = socket.socket) -> socket.socket:
    """Returns an unconnected socket that no executed program inherits (PEP 446).

    Its descriptor is never that of a closed standard input, output or error. Otherwise
    output of the program could reach the daemon.

    Args:
        kind: its class.
    """
    sock = kind(socket.AF_UNIX, socket.SOCK_STREAM)
    if sock.fileno() > 2:
        return sock
    with closing(sock):
        return kind(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3))


def connect(sock: socket.socket, address: Address) -> None:
    """Connects a socket to the daemon.

    Raises:
        BlockingIOError: the socket does not block, and the daemon's backlog is full.
        ConnectionLostError: no daemon listens there.
        DeniedError: this user may not connect there; or this is root, and the daemon
            belongs to another user.
    """
    try:
        sock.connect(address.path)
    except BlockingIOError:
        raise
    except OSError as error:
        raise unreachable(address, error) from None
    if not address.trusted and os.geteuid() == 0:
        # The file may have been replaced since the check. This is the uid of the
        # process that called listen(2).
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(data)
        if not _may_serve(uid):
            raise _not_for_root(address.path, uid)


def unreachable(address: Address, error: OSError) -> LockdError:
    """Returns the error for a daemon that cannot be reached, with the next step."""
    path = address.path
    reason = error.strerror or str(error)
    kind: type[LockdError] = ConnectionLostError
    if isinstance(error, PermissionError):
        kind, advice = DeniedError, _how_to_be_let_in(path)
    elif error.errno == errno.ENOENT or _is_socket(path):
        advice = f"start it with `{_start(path)}`"
        if path in (SYSTEM_SOCKET, user_socket()):
            # A daemon may listen at a path that is not searched.
            advice += ", or name another daemon's socket with LOCKD_SOCKET or --socket"
    else:
        what = "it is not a socket; " if os.path.exists(path) else ""
        advice = f"{what}give the path of its socket"
    where = plain(path if len(path) <= _SHOWN else path[:_SHOWN] + "…")
    where += f", {address.origin}"
    return kind(f"lockd cannot be reached at {where} ({reason}): {advice}")


def _listens(path: str) -> bool:
    """Returns whether a process listens at a path.

    A datagram socket cannot connect to a stream socket; the kernel reports EPROTOTYPE
    if there is one. So the daemon does not wake up.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return False


def _owner(path: str) -> int | None:
    """Returns the owner of a file; None if it is unknown."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def _may_serve(uid: int | None) -> bool:
    """Returns whether this process accepts the daemon of a user by default."""
    if uid is None:
        return False
    if os.geteuid() != 0 or uid == 0:
        return True
    import pwd

    try:
        return pwd.getpwnam(SYSTEM_USER).pw_uid == uid
    except KeyError:
        return False


def _not_for_root(path: str, uid: int) -> DeniedError:
    import pwd

    try:
        user = quoted(pwd.getpwuid(uid).pw_name)
    except KeyError:
        user = str(uid)
    return DeniedError(
        f"the daemon at {plain(path)} belongs to user {user}, and root does not follow "
        "an environment variable to another user's daemon: unset LOCKD_SOCKET, or name "
        "the socket with --socket (in Python, with connect(PATH))"
    )


def _start(path: str) -> str:
    """Returns the command that starts the daemon at a path."""
    if path == SYSTEM_SOCKET:
        return "systemctl start lockd"
    return "lockd" if path == user_socket() else f"lockd --socket {plain(path)}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _how_to_be_let_in(path: str) -> str:
    """Returns what a user without access to a socket can do."""
    import grp
    import pwd

    door, needed = _door(path)
    try:
        status = os.stat(door)
    except OSError:
        return "ask root for access"
    what = "the socket" if door == path else plain(door)
    try:
        if status.st_mode & needed and status.st_gid:
            group = quoted(grp.getgrgid(status.st_gid).gr_name)
            return f"join the group {group}, which owns {what}, or ask root"
        owner = quoted(pwd.getpwuid(status.st_uid).pw_name)
    except KeyError:  # a group or user without a name
        return "ask root for access"
    return f"only user {owner} may use {what}: ask that user"


def _door(path: str) -> tuple[str, int]:
    """Returns the path that denies access to a socket, and the bit its group needs.

    The path is the first directory on the way that may not be searched, or the socket.
    """
    for place, character in enumerate(path):
        parent = path[:place] or "/"
        if character == "/" and not os.access(parent, os.X_OK):
            return parent, stat.S_IXGRP
    return path, stat.S_IWGRP
