"""The bytes on their way to one client, and how many it may leave unread.

An outbox keeps the bytes that the socket does not accept until the socket is writable.
Meanwhile the client is behind. Of its own answers it may leave any number unread, for
it gets no more before it has read these. What it did not ask for has a limit.
"""

from lockd.daemon.stores.pieces import Pieces
from lockd.daemon.stores.streams import Flow


class Outbox:
    """The unsent bytes of one client.

    Args:
        flow: sends them.
        most_unread: how many bytes that it did not ask for it may leave unread.

    Attributes:
        is_behind: whether the socket did not accept everything.
        missed_notices: whether the client has to hear, once it is not behind, who waits
            for its locks.
    """

    __slots__ = (
        *("_flow", "_most_unread", "_piled_up", "_unsent"),
        *("is_behind", "missed_notices"),
    )

    def __init__(self, flow: Flow, most_unread: int) -> None:
        self._flow = flow
        self._most_unread = most_unread
        self._unsent = bytearray()
        self.is_behind = self.missed_notices = False
        #: How many bytes were added since then, which the client did not ask for.
        self._piled_up = 0

    def __len__(self) -> int:
        return len(self._unsent)

    @property
    def unread(self) -> int:
        """How many bytes wait until the client reads earlier ones."""
        return len(self._unsent) if self.is_behind else 0

    @property
    def unasked(self) -> int:
        """How many of these the client did not ask for."""
        # protocol 3.4: answers that it asked for do not count, however long.
        return min(len(self._unsent), self._piled_up)

    @property
    def leaves_too_much(self) -> bool:
        """Whether these are more than it may leave unread."""
        return self.unasked > self._most_unread

    def add(self, data: bytes) -> None:
        """Adds bytes without sending them."""
        if self.is_behind:
            self._piled_up += len(data)
        self._unsent += data

    def send(self, data: bytes) -> None:
        """Adds bytes, and sends as many as the socket accepts.

        Raises:
            OSError: the connection is broken.
        """
        unsent = self._unsent
        if unsent:
            self.add(data)
            del unsent[: self._flow.send(unsent)]
        elif data:
            # As usual: nothing is copied.
            sent = self._flow.send(data)
            if sent < len(data):
                unsent += data[sent:]
        self.is_behind = bool(unsent)
        if not unsent:
            self._piled_up = 0

    def miss_notices(self, missed: bool = True) -> None:
        """Notes whether the client missed a notice because it is behind."""
        self.missed_notices = missed

    def forget(self) -> None:
        """Drops all bytes."""
        self._unsent.clear()
        self.is_behind = False

    # Another process continues where this one stopped.

    def dump(self, apart: Pieces | None) -> tuple[int, bytes, int]:
        """Returns how many bytes are recorded apart, the rest, and how many piled up.

        Args:
            apart: takes long bytes; None to return them, too.
        """
        if apart is None:
            return 0, bytes(self._unsent), self._piled_up
        in_pieces, rest = apart.note(self._flow.sent, self._unsent)
        return in_pieces, rest, self._piled_up

    def load(self, unsent: bytes, piled_up: int, missed_notices: bool = False) -> None:
        """Continues with the dumped bytes that were not sent since."""
        self.missed_notices = missed_notices
        self._unsent += unsent
        self._piled_up = piled_up
        self.is_behind = bool(unsent)
