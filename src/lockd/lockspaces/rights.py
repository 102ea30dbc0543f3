"""What a user may do with a file: its mode and its access ACL (acl(5)), as the kernel.

The daemon opens files with rights of its own, and must lend them to nobody. It cannot
ask the kernel what somebody else may (setfsuid(2) takes a capability that it has not),
but all that the kernel looks at can be read.
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
    """Who wants a file: a uid, and the groups it is in."""

    uid: int
    groups: frozenset[int]


STRANGER: Final = User(2**32 - 1, frozenset())
"""Nobody: no file can be his (chown(2))."""


def may(user: User, wanted: int, fd: int, status: os.stat_result) -> bool:
    """Tells whether a user has a right to an open file.

    Args:
        wanted: `READ`, `WRITE` or `SEARCH`.
        fd: of the file, which may be open with O_PATH.
        status: what fstat(2) says of it.
    """
    mode = stat.S_IMODE(status.st_mode)
    if user.uid == status.st_uid:
        return bool(mode >> 6 & wanted)
    # As the kernel: where the mode has no rights for the group, an ACL gives none.
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
    """Returns tag, rights and number of all that an ACL says; nothing without one."""
    try:
        raw = os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    except OSError:
        return []
    if not raw.startswith(_VERSION):
        return []
    body = raw[len(_VERSION) :]
    return list(_ENTRY.iter_unpack(body[: len(body) // _ENTRY.size * _ENTRY.size]))
