"""The descriptor store of the service manager (sd_notify(3), FDSTORE=1).

A stored descriptor stays open when the daemon dies, and the next process of the service
gets it. The store is for few descriptors: adding one compares it with all others.
"""

import os
import time
from typing import Final

from lockd.errors import ConfigError
from lockd.notify import is_listening, notify

PREFIX: Final = "kept-"
"""The prefix of the names. Descriptors with other names are listening sockets: the
manager made them, or we stored them by their role."""

MANAGER_SAYS: Final = "FDSTORE"
UNIT_SAYS: Final = "LOCKD_KEEP"
"""Environment variables with the capacity of the store. systemd sets the first one
since version 254; before, our unit sets the second."""

KEEPER: Final = "LOCKD_KEEPER"
"""The variable with the pid of `lockd keep`, if that is the manager."""

MANAGER_NAME: Final = "service manager"
KEEPER_NAME: Final = "lockd keep"

LONGEST_NAME: Final = 255

PATIENCE: Final = 10.0
PAUSE: Final = 0.01
"""Seconds to wait for a busy manager, and between two attempts: its socket holds few
messages."""


def is_keeper() -> bool:
    """Returns whether `lockd keep` is the manager: then its end is the end of all.

    It stores the listening sockets, too, and removes their files at its end.
    """
    return os.environ.get(KEEPER) == str(os.getppid())


def manager() -> str | None:
    """Returns who has the store; None if that was `lockd keep`, which has ended."""
    if is_keeper():
        return KEEPER_NAME
    return None if KEEPER in os.environ else MANAGER_NAME


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
        name: printable ASCII without a colon. Names should be unique.
        fd: the descriptor, which the caller keeps. The store keeps it even if its file
            or process ends (FDPOLL=0).
    """
    _check(name)
    return notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])


def store_patiently(name: str, fd: int) -> None:
    """Stores a descriptor as `store` does; waits up to `PATIENCE` seconds.

    Raises:
        ConfigError: the manager does not take it.
    """
    deadline = time.monotonic() + PATIENCE
    while not store(name, fd):
        if time.monotonic() > deadline:
            raise ConfigError("the service manager does not store descriptors")
        time.sleep(PAUSE)


def remove(name: str) -> bool:
    """Removes all stored descriptors with a name.

    Returns whether the message was sent.
    """
    _check(name)
    return notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _check(name: str) -> None:
    # The manager ignores an invalid name, and stores the descriptor nevertheless.
    if not (
        name
        and name.isascii()
        and name.isprintable()
        and ":" not in name
        and len(name) <= LONGEST_NAME
    ):
        raise ValueError(f"{name!r} is no name for a stored descriptor")
