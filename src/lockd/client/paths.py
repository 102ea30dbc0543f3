"""Knows where a daemon listens, and opens a socket to it."""

import errno
import os
import socket
import stat
from typing import Final

from lockd.errors import (
    ConnectionLostError,
    DeniedError,
    InvalidRequestError,
    LockdError,
)
from lockd.names import plain, quoted

SYSTEM_SOCKET: Final = "/run/lockd/lockd.sock"

ATTEMPTS: Final = 5
"""How often a connection is opened whose end comes before anything is heard on it."""


def user_socket() -> str:
    """Returns where a daemon of one's own listens."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"{runtime_dir}/lockd/lockd.sock"


def find_socket(path: str | os.PathLike[str] | None = None) -> str:
    """Returns the path of the daemon's socket.

    The argument, `$LOCKD_SOCKET`, the user's own socket if it is there, the system's.

    Raises:
        InvalidRequestError: the argument is empty.
    """
    if path is not None:
        if not os.fspath(path):
            raise InvalidRequestError(
                "the path of the socket is empty: name the one that lockd listens at, "
                "or none"
            )
        return os.fspath(path)
    if path := os.environ.get("LOCKD_SOCKET"):
        return path
    own = user_socket()
    return own if os.path.exists(own) else SYSTEM_SOCKET


def new_socket() -> socket.socket:
    """Returns an unconnected socket that no executed program inherits (PEP 446)."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def unreachable(path: str, error: OSError) -> LockdError:
    """Returns the exception that says where nobody was reached, and what to do."""
    reason = error.strerror or str(error)
    kind: type[LockdError] = ConnectionLostError
    if isinstance(error, PermissionError):
        kind, advice = DeniedError, _how_to_be_let_in(path)
    elif error.errno == errno.ENOENT or _is_socket(path):
        advice = f"start it with `{_start(path)}`"
    else:
        advice = "name the socket that it listens at"
    return kind(f"lockd cannot be reached at {plain(path)} ({reason}): {advice}")


def _start(path: str) -> str:
    """Returns the command that starts the daemon that listens there."""
    if path == SYSTEM_SOCKET:
        return "systemctl start lockd"
    return "lockd" if path == user_socket() else f"lockd --socket {plain(path)}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _how_to_be_let_in(path: str) -> str:
    """Returns what a user can do who may not connect."""
    import grp
    import pwd

    door, needed = _door(path)
    try:
        status = os.stat(door)
    except OSError:
        return "ask root to be let in"
    what = "the socket" if door == path else plain(door)
    try:
        if status.st_mode & needed and status.st_gid:
            group = quoted(grp.getgrgid(status.st_gid).gr_name)
            return f"join the group {group}, which owns {what}, or ask root"
        owner = quoted(pwd.getpwuid(status.st_uid).pw_name)
    except KeyError:  # a group or user without a name
        return "ask root to be let in"
    return f"{what} is open to user {owner} alone, so ask that user"


def _door(path: str) -> tuple[str, int]:
    """Returns what keeps us from a socket, and what its group would need.

    That is the first directory on the way that may not be passed, or the socket itself.
    """
    for place, character in enumerate(path):
        parent = path[:place] or "/"
        if character == "/" and not os.access(parent, os.X_OK):
            return parent, stat.S_IXGRP
    return path, stat.S_IWGRP
