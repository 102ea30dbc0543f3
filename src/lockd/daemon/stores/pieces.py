"""Long streams, recorded piece by piece, so that each byte is recorded about once.

Where a client stands is recorded in each of its turns, and with it the little that was
just read or is just being sent. What the client does not read, or does not say to the
end, may be long, and stays the same for many turns. So it is recorded apart from that,
in pieces that are not written again: what a turn records depends on what happened in
it, never on how much is waiting.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from lockd.daemon.stores.labels import PARTIAL, UNSENT, key_of

SHORT: Final = 1_024
"""Bytes that are recorded again in each turn, before a piece is made of them."""


class Records(Protocol):
    """Where pieces are staged, as in a `Ledger`."""

    def put(self, key: bytes, value: bytes) -> None:
        """Stages a value."""

    def remove(self, key: bytes) -> None:
        """Stages that there is none."""


class Pieces:
    """What is recorded of one stream: pieces without a gap, and a rest.

    Args:
        kind: of the records.
        session: whose stream it is.
    """

    __slots__ = ("_is_told", "_kind", "_ranges", "_records", "_session")

    def __init__(self, kind: str, session: int, records: Records) -> None:
        self._kind = kind
        self._session = session
        self._records = records
        #: From where to where in the stream each piece goes.
        self._ranges: deque[tuple[int, int]] = deque()
        #: Whether the rest was recorded once, which is how often a long one should be.
        self._is_told = False

    def note(self, start: int, data: bytes | bytearray) -> tuple[int, bytes]:
        """Stages what changed of a stream.

        Args:
            start: where in the stream that begins which still counts.
            data: all that counts.

        Returns:
            How many bytes of it are in pieces, and the rest, to be recorded with what
            else is known of the client.
        """
        ranges = self._ranges
        if not ranges and len(data) <= SHORT:
            self._is_told = bool(data)
            return 0, bytes(data)
        while ranges and ranges[0][1] <= start:
            self._records.remove(self._key(ranges.popleft()[0]))
        apart = ranges[-1][1] - start if ranges else 0
        rest = bytes(data[apart:])
        if self._is_told and len(rest) > SHORT:
            self._records.put(self._key(start + apart), rest)
            ranges.append((start + apart, start + len(data)))
            self._is_told = False
            return len(data), b""
        self._is_told = bool(rest)
        return apart, rest

    def take_up(self, found: Mapping[int, bytes], start: int, size: int) -> bytes:
        """Goes on with the pieces of a predecessor; returns what they say.

        Args:
            found: the pieces, by where in the stream each begins.
            start: where in the stream that begins which still counts.
            size: how many bytes of it are in pieces.

        Raises:
            ValueError: some of it is missing.
        """
        data = b""
        for begin, piece in sorted(found.items()):
            end = begin + len(piece)
            self._ranges.append((begin, end))
            if end > start:
                if begin > start + len(data):
                    break
                data += piece[start + len(data) - begin :]
        if len(data) != size:
            raise ValueError(f"of {size} bytes on their way {len(data)} are recorded")
        return data

    def keys(self) -> Iterator[bytes]:
        """Goes through the keys of the pieces."""
        return (self._key(begin) for begin, _ in self._ranges)

    def _key(self, begin: int) -> bytes:
        return key_of(self._kind, (self._session, begin))


class Apart:
    """What is recorded of a client apart from its state.

    Attributes:
        unsent: of what it is to be sent.
        partial: of what it began to say.
    """

    __slots__ = ("partial", "unsent")

    def __init__(self, session: int, records: Records) -> None:
        self.unsent = Pieces(UNSENT, session, records)
        self.partial = Pieces(PARTIAL, session, records)

    def keys(self) -> Iterator[bytes]:
        """Goes through the keys of all pieces."""
        yield from self.unsent.keys()
        yield from self.partial.keys()
