"""The descriptor store of the service manager (sd_notify(3), FDSTORE=1).

What is stored there stays open when we die, however that comes, and is passed to the
next process of the service. It is for few descriptors: each one that is added is
compared with all others.
"""

import os
from typing import Final

from lockd.notify import is_listening, notify

PREFIX: Final = "kept-"
"""How the names begin; all others that are passed to us are of listening sockets."""

MANAGER_SAYS: Final = "FDSTORE"
UNIT_SAYS: Final = "LOCKD_KEEP"
"""Environment variables: how many descriptors are stored for the service. systemd says
so since version 254; before, our unit has to."""

LONGEST_NAME: Final = 255


def is_offered() -> int:
    """Returns how many descriptors the service manager would store; 0: none."""
    if not is_listening():
        return 0
    said = os.environ.get(MANAGER_SAYS) or os.environ.get(UNIT_SAYS, "")
    return int(said) if said.isdecimal() else 0


def store(name: str, fd: int) -> bool:
    """Has a descriptor stored; tells whether that was sent, and counts from now on.

    Never waits. The manager drops without a word what is more than it offers. A
    descriptor that is stored already keeps its first name.

    Args:
        name: printable ASCII without a colon, after PREFIX; no two should be alike.
        fd: stays ours; what it refers to may end (FDPOLL=0) and is kept still.
    """
    _check(name)
    return notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])


def remove(name: str) -> bool:
    """Has all that is stored with a name closed; tells whether that was sent."""
    _check(name)
    return notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _check(name: str) -> None:
    # The manager takes a wrong name for none, and stores the descriptor nevertheless.
    if not (
        name.startswith(PREFIX)
        and name.isascii()
        and name.isprintable()
        and ":" not in name
        and len(name) <= LONGEST_NAME
    ):
        raise ValueError(f"{name!r} is no name for a stored descriptor")
