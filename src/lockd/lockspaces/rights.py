"""Computes what a user may do with a file, from its mode and access ACL (acl(5)).

The daemon opens files with its own rights, and must not lend them to anybody. It cannot
ask the kernel about another user: setfsuid(2) takes a capability that it does not have.
But it can read all that the kernel's decision depends on.
"""

import os
import stat
import struct
from typing import Final, NamedTuple

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1

_ACL: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


class User(NamedTuple):
    """A uid and its groups."""

    uid: int
    groups: frozenset[int]


STRANGER: Final = User(2**32 - 1, frozenset())
"""A user who owns no file (chown(2))."""


def may(user: User, wanted: int, fd: int, status: os.stat_result) -> bool:
    """Returns whether a user has a right to an open file.

    Args:
        user: the user.
        wanted: `READ`, `WRITE` or `SEARCH`.
        fd: a descriptor of the file, which may be open with O_PATH.
        status: the result of fstat(2) for the file.
    """
    mode = stat.S_IMODE(status.st_mode)
    if user.uid == status.st_uid:
        return bool(mode >> 6 & wanted)
    # As in the kernel: if the mode gives the group no rights, neither does an ACL.
    entries = _entries(fd) if mode & stat.S_IRWXG else []
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    for tag, bits, number in entries:
        if tag == _USER and number == user.uid:
            return bool(bits & mask & wanted)
    owning = [bits for tag, bits, _ in entries if tag == _GROUP_OBJ] or [mode >> 3]
    groups = [bits for tag, bits, n in entries if tag == _GROUP and n in user.groups]
    if status.st_gid in user.groups:
        groups += owning
    if groups:
        return any(bits & mask & wanted for bits in groups)
    return bool(mode & wanted)


def _entries(fd: int) -> list[tuple[int, int, int]]:
    """Returns tag, rights and number of each ACL entry; empty without an ACL."""
    try:
        raw = os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    except OSError:
        return []
    if not raw.startswith(_VERSION):
        return []
    body = raw[len(_VERSION) :]
    return list(_ENTRY.iter_unpack(body[: len(body) // _ENTRY.size * _ENTRY.size]))
