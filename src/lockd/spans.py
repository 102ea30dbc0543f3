"""The bytes of a file that well-known programs lock, to name them by their locks.

QEMU locks a byte for each thing that it does with a disk image (from 100), and one for
each thing that it lets nobody else do (from 200). It always takes read locks, even to
write. SQLite locks bytes from 1 GiB on, whatever the size of the database.
"""

from typing import Final

from lockd.terms import LockedBy

QEMU_CHANGES: Final = (101, 103)
"""QEMU locks one of these bytes if it writes to an image or changes its size."""

_PROGRAMS: Final[tuple[tuple[LockedBy, range], ...]] = (
    ("qemu", range(100, 105)),
    ("qemu", range(200, 205)),
    ("sqlite", range(1 << 30, (1 << 30) + 512)),
)


def locked_by(first: int, last: int | None) -> LockedBy | None:
    """Returns the program that locks such bytes.

    Args:
        first: the first locked byte.
        last: the last one; None if the lock reaches to the end of the file.
    """
    for program, known in _PROGRAMS:
        if first in known and last in known:
            return program
    return None


def shows_writer(first: int, last: int | None) -> bool:
    """Returns whether QEMU has locked these bytes because it writes."""
    return locked_by(first, last) == "qemu" and any(
        first <= byte <= (last or first) for byte in QEMU_CHANGES
    )


def is_mark(last: int | None) -> bool:
    """Returns whether a read lock marks a file as locked exclusively by lockd.

    lockd cannot take a write lock where it may only read (`lockspaces.kernel`).
    """
    return last == 1
