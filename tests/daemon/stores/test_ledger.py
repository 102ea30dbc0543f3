import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.stores.conftest import (
    Fds,
    Records,
    contents,
    found_in,
    put_all,
    successor,
    tidy_all,
)
from daemon.stores.single_step import single_step
from lockd.daemon.stores import ledger as ledger_module
from lockd.daemon.stores import ledger_file
from lockd.daemon.stores.ledger import Ledger

FILES = {ledger_module.__file__, ledger_file.__file__}


pytestmark = pytest.mark.usefixtures("small_steps")


def blocks(ledger: Ledger) -> int:
    """Bytes of memory that both files have."""
    return sum(os.fstat(fd).st_blocks for fd in ledger.fds) * 512


# What is found.


def test_successor_finds_what_was_committed_and_nothing_else() -> None:
    ledger = Ledger()
    put_all(ledger, {b"a": b"1", b"b": b"2", b"c": b"", b"": b"no key"})
    ledger.put(b"a", b"3")
    ledger.remove(b"b")
    ledger.remove(b"never there")
    ledger.commit()
    ledger.put(b"a", b"4")
    ledger.remove(b"c")
    ledger = successor(ledger)
    assert ledger.problems == []
    assert ledger.records() == {b"a": b"3", b"c": b"", b"": b"no key"}
    ledger.put(b"d", b"x" * 70_000)
    ledger.commit()
    ledger = successor(ledger)
    assert ledger.records()[b"d"] == b"x" * 70_000
    ledger.close()


def test_last_word_on_a_key_counts_within_one_commit() -> None:
    ledger = Ledger()
    ledger.put(b"a", b"1")
    ledger.remove(b"a")
    ledger.remove(b"b")
    ledger.put(b"b", b"2")
    ledger.commit()
    assert ledger.records() == found_in(ledger.fds) == {b"b": b"2"}
    ledger.close()


def test_descriptors_are_not_inherited_and_all_closed() -> None:
    before = set(os.listdir("/proc/self/fd"))
    ledger = Ledger()
    assert not any(os.get_inheritable(fd) for fd in ledger.fds)
    successor(ledger).close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_descriptors_nothing_is_left_behind() -> None:
    before = set(os.listdir("/proc/self/fd"))
    first_free = os.dup(0)
    os.close(first_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    try:
        for limit in itertools.count(first_free):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                Ledger().close()
                break
            except OSError as error:
                refused += error.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused >= 4
    assert set(os.listdir("/proc/self/fd")) == before


def test_too_long_a_key_is_refused_and_nothing_staged() -> None:
    ledger = Ledger()
    ledger.put(b"k" * 65_535, b"longest")
    with pytest.raises(ValueError, match="too long: 65536 and 1 bytes"):
        ledger.put(b"k" * 65_536, b"x")
    ledger.commit()
    assert found_in(ledger.fds) == {b"k" * 65_535: b"longest"}
    ledger.close()


KEYS = st.sampled_from([b"", b"a", b"bb", b"ccc", b"grant 17"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.sampled_from([0, 1, 7, 8, 150, 3000])),
        st.tuples(st.just("remove"), KEYS),
        st.tuples(st.sampled_from(["commit", "commit", "commit", "tidy", "die"])),
    ),
    max_size=120,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_ledger_is_a_dict_that_survives(steps: list[tuple[Any, ...]]) -> None:
    ledger = Ledger()
    staged: dict[bytes, bytes | None] = {}
    model: Records = {}
    for number, (verb, *words) in enumerate(steps):
        if verb == "put":
            key, size = words
            staged[key] = (b"%d-" % number * size)[:size]
            ledger.put(key, staged[key] or b"")
        elif verb == "remove":
            staged[words[0]] = None
            ledger.remove(words[0])
        elif verb == "commit":
            model = {k: v for k, v in (model | staged).items() if v is not None}
            staged.clear()
            ledger.commit()
        elif verb == "tidy":
            ledger.tidy(0)
        else:
            ledger = successor(ledger)
            staged.clear()
        assert ledger.records() == model
        assert ledger.live_bytes == sum(len(k) + len(v) for k, v in model.items())
    assert found_in(ledger.fds) == model
    tidy_all(ledger)
    assert ledger.records() == found_in(ledger.fds) == model
    ledger.close()


# Death at any moment.


def at_each_instruction(work: Callable[[], None], look: Callable[[], None]) -> None:
    """Calls `look` before every bytecode instruction of the ledger."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


class Watch:
    """Looks as a successor would, whenever the memory is not what it was."""

    def __init__(self, fds: Fds) -> None:
        self._fds = fds
        self._before: list[bytes] = []
        self.seen: list[Records] = []
        self.moments = 0

    def look(self) -> None:
        self.moments += 1
        now = contents(self._fds)
        if now == self._before:
            return
        self._before = now
        found = found_in(self._fds)
        if not self.seen or found != self.seen[-1]:
            self.seen.append(found)


@pytest.mark.interpreted
def test_commit_counts_as_a_whole_or_not_at_all_at_every_instruction() -> None:
    ledger = Ledger()
    old = {b"a": b"1", b"b": b"2", b"c": b"3"}
    put_all(ledger, old)
    watch = Watch(ledger.fds)

    def work() -> None:
        ledger.put(b"a", b"x" * 5000)
        ledger.remove(b"b")
        ledger.put(b"d", b"4")
        ledger.commit()

    at_each_instruction(work, watch.look)
    watch.look()
    assert watch.seen == [old, {b"a": b"x" * 5000, b"c": b"3", b"d": b"4"}]
    assert watch.moments > 200
    ledger.close()


@pytest.mark.interpreted(run=False)  # it would never end
@pytest.mark.slow
def test_tidying_changes_nothing_at_any_instruction() -> None:
    ledger = Ledger()
    records = {b"%d" % i: b"%d" % i * 20 for i in range(90)}
    for _ in range(4):
        put_all(ledger, records)
    watch = Watch(ledger.fds)
    expected = [dict(records)]

    def work() -> None:
        switched = ledger.fds[1]
        turn = 0
        while ledger._file.fd != switched or ledger._give_back():
            ledger.tidy(0)
            turn += 1
            # What is not copied yet, and what is.
            if turn in (1, 2, 75, 76):
                key = b"%d" % (turn % 71)
                records.pop(key)
                ledger.remove(key)
                records[b"80"] = b"changed %d" % turn
                ledger.put(b"80", records[b"80"])
                ledger.commit()
                expected.append(dict(records))

    at_each_instruction(work, watch.look)
    watch.look()
    assert watch.seen == expected
    assert watch.moments > 5000
    ledger.close()


@pytest.mark.interpreted
def test_successor_at_every_instruction_of_its_start_loses_nothing() -> None:
    ledger = Ledger()
    records = {b"%d" % i: b"%d" % i * 20 for i in range(90)}
    for _ in range(4):
        put_all(ledger, records)
    for _ in range(10):
        ledger.tidy(0)
    assert ledger._spare.generation == 2
    fds = os.dup(ledger.fds[0]), os.dup(ledger.fds[1])
    ledger.close()
    watch = Watch(fds)
    opened: list[Ledger] = []
    at_each_instruction(lambda: opened.append(Ledger(fds)), watch.look)
    assert watch.seen == [records]
    assert watch.moments > 500
    opened[0].close()


@pytest.mark.slow
def test_commit_is_one_machine_instruction() -> None:
    ledger = Ledger()
    old, new = {b"a": b"1", b"b": b"2"}, {b"a": b"3", b"b": b"4"}
    put_all(ledger, old)
    ledger.put(b"a", b"3")
    ledger.put(b"b", b"4")
    watch = Watch(ledger.fds)
    status = single_step(ledger.commit, watch.look)
    watch.look()
    assert status == 0
    assert watch.seen == [old, new]
    assert watch.moments > 2000
    ledger.close()


@pytest.mark.interpreted
@pytest.mark.slow
def test_switch_is_one_machine_instruction() -> None:
    ledger = Ledger()
    records = {b"%d" % i: b"%d" % i * 1200 for i in range(6)}
    for _ in range(3):
        put_all(ledger, records)
    ledger.tidy(0)
    first, second, *_ = ledger._copied
    put_all(ledger, {first: b"changed"})
    ledger.remove(second)
    ledger.commit()
    watch = Watch(ledger.fds)

    def work() -> None:
        before = ledger._file
        ledger.tidy(0)
        assert ledger._file is not before

    assert single_step(work, watch.look) == 0
    watch.look()
    records[first] = b"changed"
    del records[second]
    assert watch.seen == [records]
    assert watch.moments > 2000
    ledger.close()


def batch(number: int) -> dict[bytes, bytes | None]:
    """The changes of one commit; the same for whoever asks."""
    draw = Random(number)
    changes: dict[bytes, bytes | None] = {b"number": b"%d" % number}
    for _ in range(draw.randrange(8)):
        key = b"key %d" % draw.randrange(60)
        size = draw.choice([0, 10, 150, 150, 900])
        changes[key] = draw.choice([None, draw.randbytes(size), draw.randbytes(size)])
    return changes


def commit_for_ever(fds: Fds, said: int) -> None:
    ledger = Ledger(fds)
    for number in itertools.count(int(ledger.records().get(b"number", b"-1")) + 1):
        for key, value in batch(number).items():
            if value is None:
                ledger.remove(key)
            else:
                ledger.put(key, value)
        ledger.commit()
        os.write(said, b"%d\n" % number)
        ledger.tidy(0)


def die_after(fds: Fds, lines: int) -> int:
    """Has a child commit until it is killed; returns the last commit that it told."""
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            commit_for_ever(fds, say)
        finally:
            os._exit(1)
    os.close(say)
    with open(said) as file:
        for _ in range(lines):
            file.readline()
        os.kill(pid, signal.SIGKILL)
        told = file.read().split()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return int(told[-1]) if told else -1


@pytest.mark.slow
def test_whoever_is_killed_leaves_the_last_commit_or_one_more() -> None:
    ledger = Ledger()
    draw = Random(5)
    model: dict[bytes, bytes | None] = {}
    next_number = 0
    for _ in range(40):
        told = die_after(ledger.fds, draw.randrange(1, 80))
        found = found_in(ledger.fds)
        last = int(found[b"number"])
        assert last in (told, told + 1) or told < 0
        for number in range(next_number, last + 1):
            model |= batch(number)
        next_number = last + 1
        assert found == {k: v for k, v in model.items() if v is not None}
    assert next_number > 1000
    ledger.close()


# Memory, and time.


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 16 pages."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=True
    )
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fds_in(place: Path) -> Fds:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    first, second = (os.open(place / name, flags) for name in "01")
    return first, second


def take_all_memory(place: Path) -> None:
    with open(place / "filler", "wb") as filler:
        if space := os.statvfs(place).f_bavail * 4096:
            os.posix_fallocate(filler.fileno(), 0, space)


def fill(ledger: Ledger) -> tuple[Records, Records]:
    """Adds until there is no memory; returns what counts, and what is staged."""
    records: Records = {}
    for number in range(1_000):
        new = {b"%d" % number: b"x" * 1000, b"last": b"%d" % number}
        was_short = ledger.is_short
        try:
            put_all(ledger, new)
        except OSError:
            assert was_short, "it should be told before"
            return records, new
        records |= new
    raise AssertionError("there is always memory")


def check_without_memory(ledger: Ledger, make_room: Callable[[], None]) -> None:
    records, new = fill(ledger)
    assert len(records) > 8
    for _ in range(2):
        assert ledger.records() == found_in(ledger.fds) == records
        with pytest.raises(OSError, match="No space left"):
            ledger.commit()
    make_room()
    ledger.commit()
    assert ledger.records() == found_in(ledger.fds) == records | new
    for key in records | new:
        ledger.remove(key)
    ledger.commit()
    tidy_all(ledger)
    put_all(ledger, {b"a": b"1"})
    assert not ledger.is_short


@pytest.mark.interpreted
def test_without_memory_nothing_of_a_commit_counts(small_memory: Path) -> None:
    with open(small_memory / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, 6 * 4096)
    ledger = Ledger(fds_in(small_memory))
    check_without_memory(ledger, (small_memory / "filler").unlink)
    ledger.close()


@pytest.mark.interpreted
def test_beyond_its_limit_nothing_of_a_commit_counts() -> None:
    ledger = Ledger()
    ledger.limit(16 * 4096)
    check_without_memory(ledger, lambda: ledger.limit(24 * 4096))
    assert blocks(ledger) <= 24 * 4096
    ledger.close()


@pytest.mark.interpreted
def test_without_memory_garbage_goes_and_what_lives_can_change(
    small_memory: Path,
) -> None:
    ledger = Ledger(fds_in(small_memory))
    records = {b"%d" % number: b"%d" % number * 500 for number in range(10)}
    put_all(ledger, records)
    take_all_memory(small_memory)
    for number in range(1_000):
        key = b"%d" % (number % 10)
        records[key] = (b"%d" % number * 500)[:500]
        put_all(ledger, {key: records[key]})
        assert ledger.records() == records
    assert found_in(ledger.fds) == records
    ledger.close()


def test_what_is_removed_makes_room_in_the_same_commit() -> None:
    ledger = Ledger()
    ledger.limit(16 * 4096)
    records, new = fill(ledger)
    for key in (b"0", b"1"):
        ledger.remove(key)
        del records[key]
    ledger.commit()
    assert ledger.records() == found_in(ledger.fds) == records | new
    ledger.close()


@pytest.mark.interpreted
@pytest.mark.parametrize("changes", [0, 30])
def test_start_without_memory_gets_rid_of_garbage_first(
    small_memory: Path, changes: int
) -> None:
    ledger = Ledger(fds_in(small_memory))
    records, _ = fill(ledger)
    for number in range(changes):
        ledger = successor(ledger)
        key = b"%d" % (number % 15)
        records[key] = b"%d" % number * 100
        put_all(ledger, {key: records[key]})
    take_all_memory(small_memory)
    for _ in range(3):
        ledger = successor(ledger)
        assert ledger.problems == []
        assert ledger.records() == found_in(ledger.fds) == records
    ledger.remove(b"0")
    ledger.commit()
    del records[b"0"]
    assert ledger.records() == found_in(ledger.fds) == records
    ledger.close()


@pytest.mark.interpreted
@pytest.mark.parametrize("size", [10, 150, 5_000])
def test_memory_is_bounded_by_what_lives_without_any_time(size: int) -> None:
    """Whoever pays the debt needs no other tidying."""
    ledger = Ledger()
    draw = Random(3)
    lives = 0
    keys: list[bytes] = []
    for number in range(2_000):
        keys.append(b"%d" % number)
        ledger.put(keys[-1], b"v" * size)
        if number % 3:
            ledger.put(draw.choice(keys), b"w" * size)
        if number > 500:
            ledger.remove(keys.pop(0))
        ledger.commit()
        if ledger.debt:
            ledger.tidy(0)
        # What lived at most; a record takes some bytes more than what is in it.
        lives = max(lives, 60 * len(keys) + ledger.live_bytes)
        assert blocks(ledger) <= 5 * lives + 20 * 4096
    ledger.close()


def test_memory_is_given_back() -> None:
    ledger = Ledger()
    empty = blocks(ledger)
    for number in range(20_000):
        ledger.put(b"%d" % (number % 20), b"v" * 150)
        ledger.commit()
        ledger.tidy(0)
    assert blocks(ledger) <= empty + 6 * 4096
    for number in range(20):
        ledger.remove(b"%d" % number)
    ledger.commit()
    put_all(ledger, {b"%d" % number: b"v" * 150 for number in range(1000)})
    for number in range(1000):
        ledger.remove(b"%d" % number)
    ledger.commit()
    tidy_all(ledger)
    assert blocks(ledger) <= empty + 2 * 4096
    assert not ledger.records()
    assert not ledger._staged
    assert not ledger._copied
    ledger.close()


@pytest.mark.interpreted
def test_memory_of_what_is_removed_is_given_back_at_leisure() -> None:
    ledger = Ledger()
    empty = blocks(ledger)
    many = {b"%d" % number: b"v" * 150 for number in range(1_000)}
    put_all(ledger, many)
    tidy_all(ledger)
    for key in many:
        ledger.remove(key)
    ledger.commit()
    # Too little was added for a look at it.
    tidy_all(ledger)
    assert blocks(ledger) > empty + 20 * 4096
    while ledger.tidy_at_leisure(0):
        pass
    assert blocks(ledger) <= empty + 2 * 4096
    assert not ledger.tidy_at_leisure(0)
    ledger.close()


@pytest.mark.interpreted
def test_no_question_costs_more_because_more_is_held() -> None:
    def steps_with(count: int) -> int:
        ledger = Ledger()
        put_all(ledger, {b"%d" % number: b"v" for number in range(count)})
        tidy_all(ledger)
        steps = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal steps
            steps += 1
            return trace

        sys.settrace(trace)
        try:
            assert ledger.live_bytes > count
            assert ledger.memory_bytes > count
            ledger.tidy_at_leisure(0)
        finally:
            sys.settrace(None)
        ledger.close()
        return steps

    assert 0 < steps_with(10) == steps_with(2_000)


@pytest.mark.interpreted
def test_no_call_of_tidy_does_more_because_more_is_held() -> None:
    ledger = Ledger()
    records = {b"%d" % number: b"v" * 100 for number in range(5000)}
    put_all(ledger, records)
    put_all(ledger, records)
    put_all(ledger, {b"0": b"w"})
    calls = 0
    before = blocks(ledger)
    while ledger._tidy_slice():
        calls += 1
        assert abs(blocks(ledger) - before) <= 4 * 4096
        before = blocks(ledger)
    assert calls > 5_000 // 4
    assert ledger.records() == records | {b"0": b"w"}
    ledger.close()


@pytest.mark.interpreted
def test_tidy_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    records = {b"%d" % number: b"v" * 100 for number in range(5000)}
    put_all(ledger, records)
    put_all(ledger, records)
    put_all(ledger, {b"0": b"w"})
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    ledger.tidy(5.0)
    assert 0 < ledger._spare.end <= ledger_file.DATA + 5 * 4 * 128
    assert next(clock) == 6
    ledger.close()
