"""What is read of a file that is damaged."""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.stores.conftest import (
    Records,
    contents,
    found_in,
    memory_of,
    put_all,
    reading,
    successor,
    tidy_all,
)
from lockd.daemon.stores import ledger_file
from lockd.daemon.stores.ledger import Ledger, LedgerError

pytestmark = pytest.mark.usefixtures("small_steps")

HISTORY: list[Records] = [
    {b"a": b"1" * 30, b"b": b"2", b"c": b"3"},
    {b"b": b"two" * 20, b"d": b"4"},
    {b"a": b"one", b"e": b"5" * 90},
]


LATEST: Records = HISTORY[0] | HISTORY[1] | HISTORY[2]


def a_plain_file() -> list[bytes]:
    ledger = Ledger()
    for records in HISTORY:
        put_all(ledger, records)
    left = contents(ledger.fds)
    ledger.close()
    return [file[: ledger._file.end] for file in left]


def in_the_middle(until: Callable[[Ledger], bool]) -> list[bytes]:
    ledger = Ledger()
    put_all(ledger, {b"garbage": b"g" * 6000})
    ledger.remove(b"garbage")
    ledger.commit()
    for records in HISTORY:
        put_all(ledger, records)
    for _ in range(100):
        if until(ledger):
            break
        ledger.tidy(0)
    assert until(ledger)
    left = contents(ledger.fds)
    ledger.close()
    return left


def while_copying() -> list[bytes]:
    return in_the_middle(lambda ledger: ledger._spare.generation == 2)


def just_switched() -> list[bytes]:
    return in_the_middle(lambda ledger: ledger._file.generation == 2)


STATES = [
    a_plain_file,
    # Small steps are what takes a ledger there soon.
    pytest.param(while_copying, marks=pytest.mark.interpreted),
    pytest.param(just_switched, marks=pytest.mark.interpreted),
]


def may_be_damaged(left: list[bytes]) -> Iterator[tuple[int, int]]:
    """File and offset of every byte, but for the inside of what is all the same."""
    for number, file in enumerate(left):
        for offset in range(len(file)):
            around = file[max(0, offset - 20) : offset + 20]
            if len(set(around)) > 1:
                yield number, offset


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_flipped_bit_costs_at_most_one_commit_and_is_told(
    state: Callable[[], list[bytes]],
) -> None:
    left = state()
    # What was committed together is damaged together, and so are four keys of a slice.
    together = 3 if state is a_plain_file else 4
    for number, offset in may_be_damaged(left):
        for bit in {0, offset % 8, 7} if offset >= ledger_file.DATA else range(8):
            damaged = [bytearray(file) for file in left]
            damaged[number][offset] ^= 1 << bit
            with reading(*damaged) as ledger:
                found = ledger.records()
                wrong = [x for x in LATEST | found if LATEST.get(x) != found.get(x)]
                assert len(wrong) <= together
                assert ledger.problems or not wrong
                assert offset >= ledger_file.DATA or not wrong


def test_damaged_value_is_not_replaced_by_an_older_one() -> None:
    left = a_plain_file()
    place = left[0].index(b"one")
    damaged = left[0][:place] + b"oNe" + left[0][place + 3 :]
    with reading(damaged, left[1]) as ledger:
        assert ledger.records() == {
            key: value for key, value in LATEST.items() if key not in HISTORY[-1]
        }
        start = ledger_file.DATA + sum(
            len(ledger_file.encode(dict(x), 0)) for x in HISTORY[:-1]
        )
        assert ledger.problems == [
            f"the value of {key!r} at {start} is damaged" for key in HISTORY[-1]
        ]


def test_value_that_was_written_again_was_damaged_in_vain() -> None:
    ledger = Ledger()
    put_all(ledger, {b"a": b"one", b"b": b"2"})
    put_all(ledger, {b"a": b"1"})
    left = contents(ledger.fds)
    ledger.close()
    with reading(left[0].replace(b"one", b"oNe"), left[1]) as read:
        assert read.records() == {b"a": b"1"}
        assert len(read.problems) == 1
        assert "b'b'" in read.problems[0]


def test_damage_is_told_once() -> None:
    left = a_plain_file()
    ledger = Ledger(memory_of(left[0].replace(b"one", b"oNe"), left[1]))
    assert ledger.problems
    found = ledger.records()
    tidy_all(ledger)
    ledger = successor(ledger)
    assert ledger.problems == []
    assert ledger.records() == found
    ledger.close()


@pytest.mark.parametrize("offset", range(40))
def test_header_is_mended_from_its_copy(offset: int) -> None:
    left = bytearray(a_plain_file()[0])
    left[offset] ^= 1
    with reading(left, b"") as ledger:
        assert len(ledger.problems) == 1
        mended = bytearray(contents(ledger.fds)[0])
    mended[offset + 40] ^= 1
    with reading(mended, b"") as ledger:
        assert len(ledger.problems) == 1
        assert ledger.records() == LATEST


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_truncated_file_is_read_as_far_as_it_goes(
    state: Callable[[], list[bytes]],
) -> None:
    left = state()
    ever = {(k, v) for records in HISTORY for k, v in records.items()}
    ever.add((b"garbage", b"g" * 6000))
    for number, size in may_be_damaged(left):
        cut = list(left)
        cut[number] = cut[number][:size]
        with reading(*cut) as ledger:
            found = ledger.records()
            assert set(found.items()) <= ever
            assert ledger.problems or found == LATEST
            put_all(ledger, {b"new": b"value"})
            found[b"new"] = b"value"
            again = successor(Ledger(memory_of(*contents(ledger.fds))))
            assert again.records() == found
            again.close()


def test_both_lengths_damaged_reads_as_far_as_records_go() -> None:
    left = a_plain_file()
    damaged = bytearray(left[0])
    for place in (32, 72):
        damaged[place] ^= 1
    with reading(bytes(damaged), left[1]) as ledger:
        assert ledger.records() == LATEST
        assert ledger.problems == ["a copy of the length is damaged"]
        put_all(ledger, {b"new": b"value"})
        tidy_all(ledger)
        assert found_in(ledger.fds) == LATEST | {b"new": b"value"}


@pytest.mark.parametrize("lost", [range(80), [32, 72]])
def test_damage_is_told_to_whoever_comes_before_all_is_written_anew(
    lost: list[int],
) -> None:
    damaged = bytearray(a_plain_file()[0])
    for place in lost:
        damaged[place] ^= 1
    ledger = Ledger(memory_of(damaged, b""))
    found = ledger.records()
    for _ in range(3):
        assert ledger.problems
        put_all(ledger, {b"new": b"value"})
        ledger = successor(ledger)
        assert ledger.records() == found | {b"new": b"value"}
    tidy_all(ledger)
    assert found_in(ledger.fds) == found | {b"new": b"value"}
    ledger.close()


@pytest.mark.parametrize("end", [8, 72, ledger_file.SIZE + 8, 1 << 39])
def test_length_that_cannot_be_is_damage(end: int) -> None:
    left = bytearray(a_plain_file()[0])
    salt = int.from_bytes(left[8:12], sys.byteorder)
    for place in (32, 72):
        word = ledger_file._guarded(end, salt)
        left[place : place + 8] = word.to_bytes(8, sys.byteorder)
    with reading(left, b"") as ledger:
        assert ledger.problems == ["a copy of the length is damaged"]
        assert ledger.records() == LATEST


def test_what_is_inside_a_value_never_passes_for_a_record() -> None:
    ledger = Ledger()
    put_all(ledger, {b"victim": b"true"})
    inner = ledger_file.encode({b"victim": b"forged"}, salt=0)
    put_all(ledger, {b"long-key": inner * 3})
    left = contents(ledger.fds)
    damaged = left[0].replace(b"long-key", b"lonG-key")
    with reading(damaged, left[1]) as read:
        assert read.records() == {b"victim": b"true"}
    ledger.close()


@settings(deadline=None, max_examples=300)
@given(st.tuples(*[st.binary(max_size=300)] * 2), st.booleans())
def test_any_bytes_can_be_read(files: tuple[bytes, ...], has_header: bool) -> None:
    if has_header:
        files = a_plain_file()[0][:80] + files[0], files[1]
    with reading(*files) as ledger:
        assert ledger.problems
        put_all(ledger, {b"a": b"1"})
        assert ledger.records()[b"a"] == b"1"


def of_version(version: int) -> list[bytes]:
    """Returns a ledger that begins as that version begins it."""
    ledger = Ledger()
    put_all(ledger, {b"a": b"1"})
    files = contents(ledger.fds)
    ledger.close()
    words = list(struct.unpack("=10Q", files[0][:80]))
    for first in (0, 5):
        words[first + 1] = version << 32 | words[first + 1] & 0xFFFF_FFFF
        words[first + 3] = crc32(struct.pack("=3Q", *words[first : first + 3]))
    return [struct.pack("=10Q", *words) + files[0][80:], files[1]]


def test_older_version_is_read_and_goes_on_as_ours() -> None:
    with reading(*of_version(ledger_file.OLDEST)) as successor:
        assert (successor.problems, successor.records()) == ([], {b"a": b"1"})
        header = ledger_file.read_header(successor.fds[0], [])
        assert header is not None
        assert header.version == ledger_file.VERSION


class Killed(BaseException):
    pass


class Words:
    """The words of a header, up to a kill before one of the stores."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self._words = words
        self._left = stores

    def __getitem__(self, place: slice) -> memoryview:
        return self._words[place]

    def __setitem__(self, place: int, word: int) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        self._words[place] = word


def open_as_killed(fd: int, stores: int, generation: int) -> None:
    """Opens a file as a start does, which is killed before that store of the header."""
    header = ledger_file.read_header(fd, [])
    assert header is not None
    assert header.generation == generation
    file = ledger_file.File(os.dup(fd))
    file.adopt(header)
    file._words = Words(file._words, stores)  # type: ignore[assignment]
    with suppress(Killed):
        file.write_header(header.generation, header.salt)
    os.close(file.fd)


@pytest.mark.parametrize("damaged", [None, 8, 48])
@pytest.mark.parametrize("version", [ledger_file.OLDEST, ledger_file.VERSION])
def test_starts_that_are_killed_in_the_header_leave_one_that_is_whole(
    version: int, damaged: int | None
) -> None:
    left = of_version(version)
    generation = struct.unpack("=10Q", left[0][:80])[2]
    for first in range(11):
        for second in range(11):
            fd, other = memory_of(*left)
            os.close(other)
            if damaged is not None:
                os.pwrite(fd, b"?", damaged)
            for stores in (first, second):
                open_as_killed(fd, stores, generation)
            header = ledger_file.read_header(fd, [])
            assert header is not None
            assert header.generation == generation
            os.close(fd)


def test_other_version_is_refused_whole_and_left_as_it_is() -> None:
    fds = memory_of(*of_version(99))
    before = contents(fds)
    with pytest.raises(LedgerError, match="are of version 99, only 2 to 3 can be read"):
        Ledger(fds)
    assert contents(fds) == before
    for fd in fds:
        os.close(fd)
