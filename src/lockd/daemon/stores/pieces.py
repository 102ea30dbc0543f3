"""Records long streams piece by piece, so that each byte is written about once.

Each turn records the position of a client, with the few bytes that it is about to send.
The bytes that a client does not read, or the beginning of a long message, may be many
and stay the same for many turns. So they are recorded apart, in pieces that are written
once. The cost of a turn depends on what happened in it, and not on how much is waiting.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from lockd.daemon.stores.labels import PARTIAL, UNSENT, key_of

SHORT: Final = 1_024
"""Bytes that each turn records again, before they become a piece."""


class Records(Protocol):
    """The part of a `Ledger` that stages pieces."""

    def put(self, key: bytes, value: bytes) -> None:
        """Stages a value."""

    def remove(self, key: bytes) -> None:
        """Stages a removal."""


class Pieces:
    """The recorded bytes of one stream: pieces without a gap, and a rest.

    Args:
        kind: the kind of the records.
        session: the session of the stream.
        records: where to stage the pieces.
    """

    __slots__ = ("_is_told", "_kind", "_ranges", "_records", "_session")

    def __init__(self, kind: str, session: int, records: Records) -> None:
        self._kind = kind
        self._session = session
        self._records = records
        #: Begin and end of each piece in the stream.
        self._ranges: deque[tuple[int, int]] = deque()
        #: Whether the rest has been recorded once. A long rest then becomes a piece.
        self._is_told = False

    def note(self, start: int, data: bytes | bytearray) -> tuple[int, bytes]:
        """Stages the changes of a stream.

        Args:
            start: the position of the first byte that still counts.
            data: all bytes that count.

        Returns:
            How many bytes are in pieces, and the bytes to record with the state.
        """
        ranges = self._ranges
        if not ranges and len(data) <= SHORT:
            self._is_told = bool(data)
            return 0, data if isinstance(data, bytes) else bytes(data)
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
        """Takes over the pieces of a predecessor. Returns their bytes.

        Args:
            found: the pieces by their position in the stream.
            start: the position of the first byte that still counts.
            size: how many bytes are in pieces.

        Raises:
            ValueError: some of them are missing.
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
        """Yields the keys of the pieces."""
        return (self._key(begin) for begin, _ in self._ranges)

    def _key(self, begin: int) -> bytes:
        return key_of(self._kind, (self._session, begin))


class Apart:
    """The records of a client besides its state.

    Attributes:
        unsent: the bytes to send.
        partial: the bytes of an incomplete message.
    """

    __slots__ = ("partial", "unsent")

    def __init__(self, session: int, records: Records) -> None:
        self.unsent = Pieces(UNSENT, session, records)
        self.partial = Pieces(PARTIAL, session, records)

    def keys(self) -> Iterator[bytes]:
        """Yields the keys of all pieces."""
        yield from self.unsent.keys()
        yield from self.partial.keys()
