"""Notifies the service manager: sd_notify(3)."""

import os
import socket
from array import array
from collections.abc import Sequence
from contextlib import suppress


def is_listening() -> bool:
    """Returns whether a service manager wants notifications."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(state: str, fds: Sequence[int] = ()) -> bool:
    """Notifies the service manager. Returns whether the message was sent.

    Never waits and never fails: a manager that does not listen must not block locks.

    Args:
        state: assignments, one a line, as in sd_notify(3).
        fds: descriptors to send with it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
        text = state.encode("utf-8", "replace")
        sock.sendmsg([text], rights if fds else [], 0, address)
        return True
    return False
