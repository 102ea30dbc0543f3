"""What a user may do with a file, compared with what the kernel lets him do."""

import errno
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockd.lockspaces.rights import READ, SEARCH, WRITE, User, may

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can act as several users"
)

ALICE, BOB, STAFF, GUESTS = 61001, 61002, 61010, 61011
USERS = [
    User(ALICE, frozenset([ALICE])),
    User(BOB, frozenset([BOB, STAFF])),
    User(BOB, frozenset([BOB, GUESTS])),
    User(BOB, frozenset([BOB, STAFF, GUESTS])),
    User(BOB, frozenset([BOB])),
]
MODES = [0o000, 0o007, 0o070, 0o700, 0o640, 0o604, 0o452, 0o777]
ACLS: list[list[tuple[int, int, int]]] = [
    [],
    [(0x02, 6, BOB)],
    [(0x02, 0, BOB)],
    [(0x08, 4, STAFF), (0x08, 2, GUESTS)],
    [(0x08, 0, GUESTS), (0x02, 7, ALICE)],
]
MASKS = [0, 4, 7]


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    groups = os.getgroups()
    gid, *others = sorted(user.groups, key=lambda gid: gid != user.uid)
    os.setgroups(others)
    os.setegid(gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def set_acl(
    path: Path, mode: int, named: list[tuple[int, int, int]], mask: int
) -> None:
    none = 2**32 - 1
    entries = [
        (0x01, mode >> 6 & 7, none),
        *sorted(x for x in named if x[0] == 0x02),
        (0x04, mode >> 3 & 7, none),
        *sorted(x for x in named if x[0] == 0x08),
        (0x10, mask, none),
        (0x20, mode & 7, none),
    ]
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *x) for x in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", raw)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("the file system of the temporary directory has no ACLs")
        raise


def the_kernel_lets(user: User, wanted: int, path: Path) -> bool:
    with acting_as(user):
        try:
            if wanted == SEARCH:
                os.stat(f"{path}/.")
            else:
                os.close(os.open(path, os.O_RDONLY if wanted == READ else os.O_WRONLY))
        except PermissionError:
            return False
        return True


def compare(path: Path, what: str) -> None:
    fd = os.open(path, os.O_PATH)
    status = os.fstat(fd)
    for user in USERS:
        for wanted in (SEARCH,) if path.is_dir() else (READ, WRITE):
            expected = the_kernel_lets(user, wanted, path)
            found = may(user, wanted, fd, status)
            assert found == expected, f"{user} wants {wanted} of {what}"
    os.close(fd)


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("owner", [0, ALICE, BOB])
@pytest.mark.parametrize("group", [0, STAFF, BOB])
def test_mode_and_acl_mean_what_they_mean_to_the_kernel(
    kind: str, owner: int, group: int, public_path: Path
) -> None:
    for number, (mode, acl) in enumerate(itertools.product(MODES, ACLS)):
        for mask in MASKS if acl else [7]:
            path = public_path / f"{number}-{mask}"
            path.touch() if kind == "file" else path.mkdir()
            path.chmod(mode)
            os.chown(path, owner, group)
            if acl:
                set_acl(path, mode, acl, mask)
            compare(path, f"mode {mode:o}, {acl}, mask {mask}")
