"""The descriptor store of the service manager (sd_notify(3), FDSTORE=1).

A stored descriptor stays open when the daemon dies, and the next process of the service
gets it. The store is for few descriptors: adding one compares it with all others.
"""

import os
from typing import Final

from lockd.notify import is_listening, notify

PREFIX: Final = "kept-"
"""The prefix of the names. Descriptors with other names are listening sockets."""

MANAGER_SAYS: Final = "FDSTORE"
UNIT_SAYS: Final = "LOCKD_KEEP"
"""Environment variables with the capacity of the store. systemd sets the first one
since version 254; before, our unit sets the second."""

LONGEST_NAME: Final = 255


def is_offered() -> int:
    """Returns the capacity of the store; 0 without one."""
    if not is_listening():
        return 0
    said = os.environ.get(MANAGER_SAYS) or os.environ.get(UNIT_SAYS, "")
    return int(said) if said.isdecimal() else 0


def store(name: str, fd: int) -> bool:
    """Stores a descriptor. Returns whether the message was sent.

    Never waits. The manager silently drops descriptors beyond its capacity. A
    descriptor that is already stored keeps its first name.

    Args:
        name: PREFIX and printable ASCII without a colon. Names should be unique.
        fd: the descriptor, which the caller keeps. The store keeps it even if its file
            or process ends (FDPOLL=0).
    """
    _check(name)
    return notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])


def remove(name: str) -> bool:
    """Removes all stored descriptors with a name.

    Returns whether the message was sent.
    """
    _check(name)
    return notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _check(name: str) -> None:
    # The manager ignores an invalid name, and stores the descriptor nevertheless.
    if not (
        name.startswith(PREFIX)
        and name.isascii()
        and name.isprintable()
        and ":" not in name
        and len(name) <= LONGEST_NAME
    ):
        raise ValueError(f"{name!r} is no name for a stored descriptor")
