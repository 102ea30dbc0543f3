"""How much each user has: grants, unanswered requests, and the text that they carry.

Every lock has a short name, which the number of locks bounds. Text is what comes on
top: label and reason, long names, and the names of a request for several resources.
"""

from typing import Final

from lockd.engine.effects import Grant
from lockd.engine.session import Request
from lockd.names import MAX_NAME_BYTES
from lockd.terms import ResourceKey

PLAIN: Final = MAX_NAME_BYTES // 4
"""A name of at most this many characters is never long, whatever they are."""


class Tally(dict[int, int]):
    """An amount for each uid; a uid without any has no entry."""

    def add(self, uid: int, more: int = 1) -> None:
        """Adds to the amount of a uid."""
        if more:
            self[uid] = self.get(uid, 0) + more

    def remove(self, uid: int, less: int = 1) -> None:
        """Subtracts from the amount of a uid, which must have as much."""
        if less:
            left = self[uid] - less
            if left:
                self[uid] = left
            else:
                del self[uid]


class Usage:
    """What the grants and requests of each uid come to."""

    __slots__ = ("held", "text", "waiting")

    def __init__(self) -> None:
        #: Grants. A request for several resources counts here for each of them: its
        #: grants are not checked against a limit again, and may outnumber requests.
        self.held = Tally()
        #: Unanswered requests.
        self.waiting = Tally()
        #: Bytes of text in both.
        self.text = Tally()

    def add_grant(self, grant: Grant) -> None:
        """Counts a grant."""
        uid, label, reason = grant.owner.uid, grant.label, grant.reason
        self.held[uid] = self.held.get(uid, 0) + 1
        # Most grants carry no text: then there is nothing to measure.
        if label is not None or reason is not None or len(grant.key.resource) > PLAIN:
            self.text.add(uid, text_bytes((grant.key,), label, reason))

    def remove_grant(self, grant: Grant) -> None:
        """Takes back what `add_grant` counted."""
        uid, label, reason = grant.owner.uid, grant.label, grant.reason
        if (left := self.held[uid] - 1) > 0:
            self.held[uid] = left
        else:
            del self.held[uid]
        if label is not None or reason is not None or len(grant.key.resource) > PLAIN:
            self.text.remove(uid, text_bytes((grant.key,), label, reason))

    def add_request(self, request: Request) -> None:
        """Counts a request. A convert carries no text but that of its grant."""
        uid, keys = request.uid, request.keys
        self.waiting.add(uid)
        if not request.converting:
            if size := text_bytes(keys, request.label, request.reason):
                self.text.add(uid, size)
            if len(keys) > 1:
                self.held.add(uid, len(keys))

    def remove_request(self, request: Request) -> None:
        """Takes back what `add_request` counted."""
        uid, keys = request.uid, request.keys
        self.waiting.remove(uid)
        if not request.converting:
            if size := text_bytes(keys, request.label, request.reason):
                self.text.remove(uid, size)
            if len(keys) > 1:
                self.held.remove(uid, len(keys))


def text_bytes(
    keys: tuple[ResourceKey, ...], label: str | None, reason: str | None
) -> int:
    """Returns how many bytes of UTF-8 count of a request, or of a lock with one key.

    A request counts no less than all the locks that are granted for it: each of them
    has its label and reason.
    """
    if len(keys) == 1 and label is reason is None and len(keys[0].resource) <= PLAIN:
        return 0  # most requests: nothing needs to be measured
    said = _size(label or "") + _size(reason or "")
    names = sum(_size(key.resource) for key in keys)
    if len(keys) == 1 and names <= MAX_NAME_BYTES:
        names = 0
    return said * len(keys) + names


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
