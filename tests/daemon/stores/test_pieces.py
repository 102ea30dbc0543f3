"""What a turn records depends on what happened in it, never on how much is waiting."""

from collections.abc import Iterator
from random import Random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.daemon.stores.labels import UNSENT
from lockd.daemon.stores.pieces import SHORT, Pieces

#: Beside what is in it: a key, and where it goes.
OVERHEAD = 64


class Log:
    """The records of one stream, and how many bytes were written in all."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.written = 0

    def put(self, key: bytes, value: bytes) -> None:
        assert key not in self.values, "a piece is written once"
        self.values[key] = value
        self.written += OVERHEAD + len(value)

    def remove(self, key: bytes) -> None:
        del self.values[key]
        self.written += OVERHEAD


class Stream:
    """A stream whose middle part counts, recorded turn by turn."""

    def __init__(self) -> None:
        self.log = Log()
        self.pieces = Pieces(UNSENT, 7, self.log)
        self.said = b""
        self.start = 0
        self.told = (0, b"")

    def turn(self, said: bytes, taken: int) -> int:
        """Adds something, takes some away, records; returns how much was written."""
        before = self.log.written
        self.said += said
        self.start = min(self.start + taken, len(self.said))
        self.told = self.pieces.note(self.start, self.said[self.start :])
        return self.log.written - before + len(self.told[1])

    def recover(self) -> bytes:
        """Returns what a successor finds, and goes on with it."""
        apart, rest = self.told
        found = {self._begin_of(key): x for key, x in self.log.values.items()}
        self.pieces = Pieces(UNSENT, 7, self.log)
        data = self.pieces.take_up(found, self.start, apart) + rest
        assert set(self.pieces.keys()) == self.log.values.keys()
        return data

    @staticmethod
    def _begin_of(key: bytes) -> int:
        kind, (session, begin) = msgpack.unpackb(key)
        assert (kind, session) == (UNSENT, 7)
        return int(begin)


def turns() -> Iterator[int]:
    random = Random(5)
    for _ in range(2_000):
        yield random.randint(0, 300)


def test_record_of_a_turn_does_not_grow_with_what_is_unread() -> None:
    stream = Stream()
    for size in turns():
        assert stream.turn(bytes(size), 0) <= OVERHEAD + SHORT + size
    assert len(stream.said) > 200_000
    assert len(stream.log.values) <= len(stream.said) / SHORT + 1
    stream.turn(b"", len(stream.said))
    assert stream.log.values == {}
    assert stream.told == (0, b"")


def test_long_answer_is_recorded_twice_however_slowly_it_leaves() -> None:
    stream = Stream()
    written = stream.turn(bytes(250_000), 0)
    for _ in range(1_000):
        written += stream.turn(b"", 100)
    assert written < 2 * 250_000 + OVERHEAD + 1_000 * SHORT / 100
    assert len(stream.recover()) == 150_000


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 100, SHORT - 1, SHORT, SHORT + 1, 5_000]),
            st.sampled_from([0, 1, 99, SHORT, 4_000]),
            st.booleans(),
        )
    )
)
@settings(deadline=None)
def test_successor_finds_what_counts(steps: list[tuple[int, int, bool]]) -> None:
    random = Random(1)
    stream = Stream()
    for said, taken, dies in steps:
        stream.turn(random.randbytes(said), taken)
        if dies:
            assert stream.recover() == stream.said[stream.start :]


def test_missing_piece_is_noticed() -> None:
    stream = Stream()
    for _ in range(100):
        stream.turn(bytes(200), 0)
    stream.turn(b"", 5_000)
    keys = list(stream.log.values)
    assert len(keys) > 10
    for key in keys:
        lost = stream.log.values.pop(key)
        with pytest.raises(ValueError, match=r"^of \d+ bytes on their way \d+ are"):
            stream.recover()
        stream.log.values[key] = lost
    assert len(stream.recover()) == 15_000
