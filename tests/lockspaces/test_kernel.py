"""Which locks of other programs count, for whom, and how they are named."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.lockspaces import kernel
from lockd.terms import EXCLUSIVE, SHARED, LockedBy, Mode, OutsideHolder
from support.outside import (
    QEMU_READS,
    QEMU_WRITES,
    SQLITE_RESERVED,
    SQLITE_SHARED,
    Outside,
)


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    """The file, open for reading only: that is enough to look."""
    fd = os.open(image, os.O_RDONLY)
    yield fd
    os.close(fd)


Locks = Callable[[Outside, Path], object]

#: Who has the file, how it is named, and which modes it is in the way of.
CASES: list[tuple[str, Locks, LockedBy | None, Mode, tuple[Mode, ...]]] = [
    (
        "a guest that writes",
        lambda outside, image: outside.qemu(image, QEMU_WRITES),
        "qemu",
        EXCLUSIVE,
        (EXCLUSIVE, SHARED),
    ),
    (
        "a QEMU that changes the size",
        lambda outside, image: outside.qemu(image, ((100, 1), (103, 1))),
        "qemu",
        EXCLUSIVE,
        (EXCLUSIVE, SHARED),
    ),
    (
        "a guest that reads",
        lambda outside, image: outside.qemu(image, QEMU_READS),
        "qemu",
        SHARED,
        (EXCLUSIVE,),
    ),
    (
        "SQLite that reads",
        lambda outside, image: outside.lock(image, SHARED, "posix", *SQLITE_SHARED),
        "sqlite",
        SHARED,
        (EXCLUSIVE,),
    ),
    (
        "SQLite that is about to write",
        lambda outside, image: outside.lock(
            image, EXCLUSIVE, "posix", *SQLITE_RESERVED
        ),
        "sqlite",
        EXCLUSIVE,
        (EXCLUSIVE, SHARED),
    ),
    (
        "a writer of any byte",
        lambda outside, image: outside.lock(image, EXCLUSIVE, "ofd", 7, 2),
        None,
        EXCLUSIVE,
        (EXCLUSIVE, SHARED),
    ),
    (
        "a reader of the whole file",
        lambda outside, image: outside.lock(image, SHARED, "posix", 0, 0),
        None,
        SHARED,
        (EXCLUSIVE,),
    ),
    (
        "an exclusive flock",
        lambda outside, image: outside.flock(image, EXCLUSIVE),
        "flock",
        EXCLUSIVE,
        (EXCLUSIVE, SHARED),
    ),
    (
        "a shared flock",
        lambda outside, image: outside.flock(image, SHARED),
        "flock",
        SHARED,
        (EXCLUSIVE,),
    ),
]


@pytest.mark.parametrize("wanted", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize(
    ("locks", "by", "mode", "stops"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_program_that_has_a_part_of_the_file_is_found_and_named(
    fd: int,
    image: Path,
    outside: Outside,
    locks: Locks,
    by: LockedBy | None,
    mode: Mode,
    stops: tuple[Mode, ...],
    wanted: Mode,
) -> None:
    locks(outside, image)
    found = kernel.look(fd, wanted)
    if wanted not in stops:
        assert found is None
    else:
        assert found is not None
        assert (found.by, found.mode) == (by, mode)


def test_file_that_nobody_has_is_free_and_stays_so(
    fd: int, image: Path, outside: Outside
) -> None:
    for mode in (EXCLUSIVE, SHARED):
        assert kernel.look(fd, mode) is None
    assert outside.flock(image)
    assert outside.lock(image, "exclusive", "ofd", 0, 0)


def test_bytes_and_process_are_named_where_the_kernel_knows_them(
    fd: int, image: Path, outside: Outside
) -> None:
    assert outside.lock(image, SHARED, "posix", *SQLITE_SHARED)
    found = kernel.look(fd, EXCLUSIVE)
    assert found is not None
    assert (found.pid, found.start, found.length) == (outside.pid, *SQLITE_SHARED)
    assert found.command is not None
    assert found.command.startswith("python")


def test_lock_to_the_end_has_no_length(fd: int, image: Path, outside: Outside) -> None:
    assert outside.lock(image, EXCLUSIVE, "ofd", 0, 0)
    assert kernel.look(fd, SHARED) == OutsideHolder(EXCLUSIVE, start=0)


def test_reader_of_the_whole_file_does_not_hide_a_qemu_that_writes(
    fd: int, image: Path, outside: Outside
) -> None:
    """It cannot begin to write afterwards: it looks for locks like this itself."""
    outside.qemu(image, ((100, 2),))
    other = Outside()
    assert other.lock(image, SHARED, "ofd", 0, 0)
    found = kernel.look(fd, SHARED)
    other.kill()
    assert found is not None
    assert found.by == "qemu"


def test_own_locks_do_not_count(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, kernel.span(fcntl.F_WRLCK, 0, 0))
    assert kernel.look(fd, EXCLUSIVE) is None
    os.close(fd)


def test_shared_flock_on_a_block_device_is_of_udev(
    fd: int, image: Path, outside: Outside
) -> None:
    """It comes whenever we close the device, and goes by itself."""
    assert outside.flock(image, SHARED)
    assert kernel.look(fd, EXCLUSIVE, is_device=True) is None
    outside.flock(image, "none")
    assert outside.flock(image, EXCLUSIVE)
    found = kernel.look(fd, SHARED, is_device=True)
    assert found == OutsideHolder(EXCLUSIVE, by="flock")


def test_flock_is_not_asked_for_where_it_may_be_our_own_lock(
    fd: int, image: Path, outside: Outside
) -> None:
    assert outside.flock(image, EXCLUSIVE)
    assert kernel.look(fd, EXCLUSIVE, is_remote=True) is None
