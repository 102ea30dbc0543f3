"""Knows where a daemon listens, and opens a socket to it."""

import os
import socket
from typing import Final

from lockd.errors import ConnectionLostError

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
    """
    if path is not None:
        return os.fspath(path)
    if path := os.environ.get("LOCKD_SOCKET"):
        return path
    own = user_socket()
    return own if os.path.exists(own) else SYSTEM_SOCKET


def new_socket() -> socket.socket:
    """Returns an unconnected socket that no executed program inherits (PEP 446)."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def unreachable(path: str, error: OSError) -> ConnectionLostError:
    """Returns the exception that says where nobody listens, and what to do."""
    reason = error.strerror or str(error)
    start = "lockd" if path == user_socket() else f"lockd --socket {path}"
    if path == SYSTEM_SOCKET:
        start = "systemctl start lockd"
    advice = f"start it with `{start}`"
    if isinstance(error, PermissionError):
        advice = "only its owner and its group may connect"
    return ConnectionLostError(
        f"lockd cannot be reached at {path} ({reason}): {advice}"
    )
