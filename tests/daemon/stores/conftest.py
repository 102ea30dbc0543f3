"""What the tests of this folder share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from daemon.stores.kept import copies, room_for
from lockd.daemon.stores import ledger as ledger_module
from lockd.daemon.stores import ledger_file
from lockd.daemon.stores.in_flight import InFlight
from lockd.daemon.stores.ledger import Ledger


@pytest.fixture(scope="module")
def small_steps() -> Iterator[None]:
    """A page at a time, so that little data is enough for every kind of work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "STEP", 4096)
        patch.setattr(ledger_file, "STEP", 4096)
        patch.setattr(ledger_module, "HEADROOM", 2 * 4096)
        patch.setattr(ledger_module, "_SLICE_KEYS", 4)
        yield


Make = Callable[[], int]


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    with room_for(5_000):
        yield


@pytest.fixture
def keeper() -> Iterator[InFlight]:
    keeper = InFlight()
    yield keeper
    keeper.close()


@pytest.fixture
def ends(keeper: InFlight) -> Iterator[list[int]]:
    """Copies of the keeper's ends, as a service manager has them."""
    ends = copies(keeper.ends)
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def memfd() -> Iterator[Make]:
    """Makes files to keep, each another one."""
    made: list[int] = []

    def make() -> int:
        made.append(os.memfd_create("kept"))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


Fds = tuple[int, int]


Records = dict[bytes, bytes]


def successor(ledger: Ledger) -> Ledger:
    """What a new process finds when the one before is gone."""
    fds = os.dup(ledger.fds[0]), os.dup(ledger.fds[1])
    ledger.close()
    return Ledger(fds)


def contents(fds: Fds) -> list[bytes]:
    """What both files hold, up to where they have no memory."""
    return [
        os.pread(fd, os.lseek(fd, 0, os.SEEK_HOLE), 0) if os.fstat(fd).st_size else b""
        for fd in fds
    ]


def memory_of(*files: bytes | bytearray) -> Fds:
    fds = []
    for file in files:
        fds.append(os.memfd_create("copy"))
        os.pwrite(fds[-1], file, 0)
    return fds[0], fds[1]


@contextmanager
def reading(*files: bytes | bytearray) -> Iterator[Ledger]:
    """A ledger on a copy of memory, as a successor would find it."""
    ledger = Ledger(memory_of(*files))
    yield ledger
    ledger.close()


def found_in(fds: Fds) -> Records:
    """What a successor would find if the process died now; nothing may be damaged."""
    with reading(*contents(fds)) as ledger:
        assert ledger.problems == []
        return ledger.records()


def put_all(ledger: Ledger, records: Records) -> None:
    for key, value in records.items():
        ledger.put(key, value)
    ledger.commit()


def tidy_all(ledger: Ledger) -> None:
    while ledger._tidy_slice():
        pass
