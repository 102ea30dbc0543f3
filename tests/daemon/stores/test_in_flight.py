"""Descriptors in flight: real sockets, real locks, and processes that are killed."""

import errno
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daemon.stores.conftest import Make
from daemon.stores.kept import contents, copies, inode, is_locked, lock, shrink
from lockd.daemon.stores import in_flight as keeper_module
from lockd.daemon.stores.in_flight import InFlight
from lockd.daemon.stores.queues import FULL

pytestmark = pytest.mark.usefixtures("many_descriptors")

FOR_EVER = 1e9


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues so small that few descriptors go all the ways there are."""
    shrink(monkeypatch.setattr)


def open_descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except OSError:
            continue  # That of the listing itself.
    return found


def keep_all(keeper: InFlight, fd: int, numbers: Iterator[int]) -> None:
    for i in numbers:
        keeper.keep(b"%d" % i, fd)


# What is kept.


def test_kept_lock_outlives_its_descriptor(keeper: InFlight, tmp_path: Path) -> None:
    fd = lock(tmp_path / "a")
    keeper.keep(b"a", fd)
    os.close(fd)
    assert is_locked(tmp_path / "a")
    keeper.drop(b"a")
    assert not keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == 0
    assert not is_locked(tmp_path / "a")


def test_kept_connection_goes_on(keeper: InFlight, ends: list[int]) -> None:
    here, there = socket.socketpair()
    keeper.keep(b"peer", here.fileno())
    here.close()
    keeper.close()
    there.send(b"request")
    successor = InFlight(copies(ends))
    ((label, fd),) = successor.recover()
    with socket.socket(fileno=fd) as again, there:
        assert (label, again.recv(10)) == (b"peer", b"request")
    successor.close()


def test_successor_finds_each_under_its_label(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = {b"%d" % i: memfd() for i in range(3 * FULL + 7)}
    for label, fd in fds.items():
        keeper.keep(label, fd)
    keeper.close()
    assert contents(ends) == {label: inode(fd) for label, fd in fds.items()}


def test_recovery_leaves_everything_in_flight(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = [memfd() for _ in range(FULL + 20)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    first = contents(ends)
    assert len(first) == len(fds)
    assert contents(ends) == first


def test_recovered_keeper_goes_on(
    small: None, keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = {b"%d" % i: memfd() for i in range(30)}
    for label, fd in fds.items():
        keeper.keep(label, fd)
    for i in range(0, 30, 3):
        keeper.drop(b"%d" % i)
        del fds[b"%d" % i]
    keeper.close()
    successor = InFlight(copies(ends))
    found = dict(successor.recover())
    assert set(found) >= set(fds)
    for label in set(found) - set(fds):
        successor.drop(label)
        os.close(found.pop(label))
    for i in range(100, 130):
        found[b"%d" % i] = memfd()
        successor.keep(b"%d" % i, found[b"%d" % i])
    successor.tidy(FOR_EVER, thoroughly=True)
    assert successor.count == len(found) == 50
    assert contents(ends) == {label: inode(fd) for label, fd in found.items()}
    successor.close()
    for i in range(30):
        if b"%d" % i in found:
            os.close(found[b"%d" % i])


def test_what_is_open_already_is_not_opened_again(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = {b"%d" % i: memfd() for i in range(FULL + 20)}
    for label, fd in fds.items():
        keeper.keep(label, fd)
    keeper.close()
    held = {label: fd for label, fd in fds.items() if label != b"7"}
    successor = InFlight(copies(ends))
    before = open_descriptors().total()
    found = dict(successor.recover(held))
    assert open_descriptors().total() == before + 1
    assert {x: fd for x, fd in found.items() if x != b"7"} == held
    assert inode(found[b"7"]) == inode(fds[b"7"])
    os.close(found[b"7"])
    successor.close()


def test_newest_of_a_label_counts(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    old, new = memfd(), memfd()
    keeper.keep(b"a", old)
    keeper.keep(b"a", new)
    assert contents(ends) == {b"a": inode(new)}
    keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == 1
    assert contents(ends) == {b"a": inode(new)}
    # The order in the queues does not count: what is young may be older.
    successor = InFlight(copies(ends))
    found = dict(successor.recover())
    newer = memfd()
    successor.keep(b"a", newer)
    assert contents(ends) == {b"a": inode(newer)}
    successor.close()
    os.close(found[b"a"])


def test_older_copy_that_was_not_taken_out_changes_nothing(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    """As a kill between the two steps of a move leaves it."""
    fds = [memfd() for _ in range(8)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    young, old = keeper._queues[:2]
    old.send([message[0] for message in young.messages])
    expected = {b"%d" % i: inode(fd) for i, fd in enumerate(fds)}
    assert contents(ends) == expected
    successor = InFlight(copies(ends))
    found = successor.recover()
    assert successor.count == 16
    successor.tidy(FOR_EVER, thoroughly=True)
    assert successor.count == 8
    assert contents(ends) == expected
    successor.close()
    for _, fd in found:
        os.close(fd)


def test_nothing_is_left_open(keeper: InFlight, ends: list[int]) -> None:
    before = open_descriptors()
    fds = [os.memfd_create("kept") for _ in range(3 * FULL)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    contents(ends)
    for i, fd in enumerate(fds):
        keeper.drop(b"%d" % i)
        os.close(fd)
    keeper.tidy(FOR_EVER, thoroughly=True)
    assert open_descriptors() == before


def test_recovered_descriptors_are_closed_on_exec(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fd = memfd()
    keeper.keep(b"a", fd)
    passed = copies(ends)
    for end in passed:
        os.set_inheritable(end, True)
    successor = InFlight(passed)
    ((_, fresh),) = successor.recover()
    assert not any(os.get_inheritable(x) for x in (fresh, *successor.ends))
    assert not any(os.get_inheritable(x) for x in keeper.ends)
    successor.close()
    os.close(fresh)


# What is dropped.


def test_garbage_is_bounded_whoever_tidies(keeper: InFlight, memfd: Make) -> None:
    fds = [memfd() for _ in range(600)]
    for i in range(60_000):
        keeper.keep(b"%d" % i, fds[i % 600])
        if i >= 600:
            keeper.drop(b"%d" % (i - 600))
    assert keeper.count <= 2 * 600 + 3 * FULL


def test_a_few_that_stay_of_many_take_no_room(
    keeper: InFlight, memfd: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "OLD", 5)
    fd = memfd()
    for i in range(100 * keeper_module.YOUNG):
        keeper.keep(b"%d" % i, fd)
        if i % keeper_module.YOUNG:
            keeper.drop(b"%d" % i)
    assert len(list(keeper.labels)) == 100
    assert not keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == 100


def test_tidying_ends_and_takes_the_garbage_along(
    keeper: InFlight, memfd: Make
) -> None:
    fd = memfd()
    for i in range(20 * FULL):
        keeper.keep(b"%d" % i, fd)
    for i in range(20 * FULL):
        if i % 4:
            keeper.drop(b"%d" % i)
    assert keeper.tidy(0)
    assert not keeper.tidy(FOR_EVER)
    assert 5 * FULL <= keeper.count <= 2 * 5 * FULL + 2 * FULL
    assert keeper.tidy(0, thoroughly=True)
    assert not keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == 5 * FULL
    assert not keeper.tidy(0, thoroughly=True)


def test_whoever_waits_for_the_copy_hears_when_it_is_gone(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    held, gone = memfd(), memfd()
    said: list[str] = []
    keeper.keep(b"held", held)
    keeper.keep(b"gone", gone)
    keeper.drop(b"gone", lambda: said.append("gone"))
    assert not said
    assert b"gone" in contents(ends)
    keeper.tidy(FOR_EVER, thoroughly=True)
    assert said == ["gone"]
    assert set(contents(ends)) == {b"held"}


def test_what_is_not_kept_cannot_be_dropped(keeper: InFlight) -> None:
    with pytest.raises(KeyError):
        keeper.drop(b"a")


# What cannot be kept.


def test_closed_descriptor_is_refused_and_changes_nothing(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fd = memfd()
    keeper.keep(b"a", fd)
    closed = os.dup(fd)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        keeper.keep(b"a", closed)
    assert (keeper.count, list(keeper.labels)) == (1, [b"a"])
    assert contents(ends) == {b"a": inode(fd)}


def test_more_than_a_successor_could_open_is_refused(
    keeper: InFlight, memfd: Make
) -> None:
    fd = memfd()
    keeper.limit = 400
    for i in range(400):
        keeper.keep(b"%d" % i, fd)
    with pytest.raises(OSError, match="Too many references"):
        keeper.keep(b"more", fd)
    assert (keeper.count, len(list(keeper.labels))) == (400, 400)
    keeper.drop(b"17")
    keeper.keep(b"more", fd)
    assert keeper.count == 400


@pytest.mark.interpreted(run=False)  # it would leave its queues behind
def test_full_queues_refuse_and_lose_nothing(
    keeper: InFlight, monkeypatch: pytest.MonkeyPatch, ends: list[int], memfd: Make
) -> None:
    monkeypatch.setattr(keeper_module, "OLD", 1)
    fd = memfd()
    keeper.limit = 10_000_000
    kept = iter(range(1_000_000))
    with pytest.raises(OSError, match="No buffer space"):
        keep_all(keeper, fd, kept)
    count = next(kept) - 1
    assert count > 3 * keeper_module.YOUNG
    assert len(contents(ends)) == count
    for i in range(count):
        keeper.drop(b"%d" % i)
    keeper.keep(b"again", fd)
    assert not keeper.tidy(FOR_EVER, thoroughly=True)
    assert set(contents(ends)) == {b"again"}


def test_without_memory_the_young_queue_takes_what_it_can(
    keeper: InFlight, monkeypatch: pytest.MonkeyPatch, memfd: Make
) -> None:
    fd = memfd()

    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        for i in range(keeper_module.YOUNG + 20):
            keeper.keep(b"%d" % i, fd)
        keeper.drop(b"0")
        assert not keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == keeper_module.YOUNG + 20
    keeper.tidy(FOR_EVER, thoroughly=True)
    assert keeper.count == keeper_module.YOUNG + 19


# What a successor may find.


def test_too_small_a_table_of_descriptors_costs_nothing(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = [memfd() for _ in range(300)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    if (pid := os.fork()) == 0:
        os._exit(_recover_with_few(ends))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(contents(ends)) == 300


def _recover_with_few(ends: list[int]) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    successor = InFlight(ends)
    # Enough for the young ones, and for some of the first message of old ones.
    most = 100 + max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        successor.recover()
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        leaked = open_descriptors() - before
        again = len(successor.recover())
        return int(error.errno != errno.EMFILE or bool(leaked) or again != 300)
    return 2


def test_nothing_is_done_before_recovery(keeper: InFlight, ends: list[int]) -> None:
    successor = InFlight(copies(keeper.ends))
    with pytest.raises(RuntimeError):
        successor.keep(b"a", 0)
    with pytest.raises(RuntimeError):
        successor.tidy(1)
    successor.close()


# Anything, in any order.


class AnyLife(RuleBasedStateMachine):
    """Keeps, drops, tidies and is followed; a successor always finds what is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        shrink(self.patch.setattr)
        self.keeper = InFlight()
        self.ends = copies(self.keeper.ends)
        self.fds: dict[bytes, int] = {}

    @rule(number=st.integers(0, 40), times=st.integers(1, 8))
    def keep(self, number: int, times: int) -> None:
        for i in range(number, number + times):
            fd = os.memfd_create("kept")
            self.keeper.keep(b"%d" % i, fd)
            if (before := self.fds.pop(b"%d" % i, None)) is not None:
                os.close(before)
            self.fds[b"%d" % i] = fd

    @rule(number=st.integers(0, 40), times=st.integers(1, 8))
    def drop(self, number: int, times: int) -> None:
        for i in range(number, number + times):
            if b"%d" % i in self.fds:
                self.keeper.drop(b"%d" % i)
                os.close(self.fds.pop(b"%d" % i))

    @rule(thoroughly=st.booleans())
    def tidy(self, thoroughly: bool) -> None:
        assert not self.keeper.tidy(FOR_EVER, thoroughly=thoroughly)
        if thoroughly:
            assert self.keeper.count == len(self.fds)

    @rule(is_upgrade=st.booleans())
    def follow(self, is_upgrade: bool) -> None:
        """Another process, or another program in this one, goes on."""
        before = self.keeper
        self.keeper = InFlight(copies(self.ends))
        found = dict(self.keeper.recover(self.fds if is_upgrade else None))
        for label in set(found) - set(self.fds):
            self.keeper.drop(label)
            os.close(found.pop(label))
        if not is_upgrade:
            for fd in self.fds.values():
                os.close(fd)
        self.fds = found
        assert self.keeper.count == before.count
        before.close()

    @invariant()
    def all_is_kept(self) -> None:
        found = contents(self.ends)
        assert {x: found.get(x) for x in self.fds} == {
            label: inode(fd) for label, fd in self.fds.items()
        }
        assert set(self.keeper.labels) == set(self.fds)
        assert self.keeper.count <= 4 * len(self.fds) + 40

    def teardown(self) -> None:
        self.keeper.close()
        for fd in (*self.ends, *self.fds.values()):
            os.close(fd)
        self.patch.undo()


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
