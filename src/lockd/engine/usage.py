"""What each user has: grants, unanswered requests, and the bytes of their text.

The number of locks already bounds the short names. Text is what comes on top: labels,
reasons, long names, and the names of a request for several resources.
"""

from typing import Final

from lockd.engine.effects import Grant
from lockd.engine.session import Request
from lockd.names import MAX_NAME_BYTES
from lockd.terms import ResourceKey

PLAIN: Final = MAX_NAME_BYTES // 4
"""A name of at most this many characters is never long, whatever the characters."""


Tally = dict[int, int]
"""An amount for each uid. A uid with an amount of 0 has no entry."""


def add_to(tally: Tally, uid: int, more: int = 1) -> None:
    """Adds to the amount of a uid."""
    if more:
        tally[uid] = tally.get(uid, 0) + more


def take_from(tally: Tally, uid: int, less: int = 1) -> None:
    """Subtracts from the amount of a uid. The amount must not become negative."""
    if less:
        left = tally[uid] - less
        if left:
            tally[uid] = left
        else:
            del tally[uid]


class Usage:
    """The amounts of each user."""

    __slots__ = ("held", "text", "waiting")

    def __init__(self) -> None:
        #: Grants. A request for several resources counts here for each of them: its
        #: grants are not checked against a limit again, and may outnumber requests.
        self.held: Tally = {}
        #: Unanswered requests.
        self.waiting: Tally = {}
        #: Bytes of text in both.
        self.text: Tally = {}

    def add_grant(self, grant: Grant) -> None:
        """Counts a grant."""
        uid, label, reason = grant.owner.uid, grant.label, grant.reason
        add_to(self.held, uid)
        # Most grants carry no text and need no measuring.
        if label is not None or reason is not None or len(grant.key.resource) > PLAIN:
            add_to(self.text, uid, text_bytes((grant.key,), label, reason))

    def remove_grant(self, grant: Grant) -> None:
        """Reverses `add_grant`."""
        uid, label, reason = grant.owner.uid, grant.label, grant.reason
        take_from(self.held, uid)
        if label is not None or reason is not None or len(grant.key.resource) > PLAIN:
            take_from(self.text, uid, text_bytes((grant.key,), label, reason))

    def add_request(self, request: Request) -> None:
        """Counts a request. A convert adds no text: its grant has counted it."""
        uid, keys = request.uid, request.keys
        add_to(self.waiting, uid)
        if not request.converting:
            if size := text_bytes(keys, request.wish.label, request.wish.reason):
                add_to(self.text, uid, size)
            if len(keys) > 1:
                add_to(self.held, uid, len(keys))

    def remove_request(self, request: Request) -> None:
        """Reverses `add_request`."""
        uid, keys = request.uid, request.keys
        take_from(self.waiting, uid)
        if not request.converting:
            if size := text_bytes(keys, request.wish.label, request.wish.reason):
                take_from(self.text, uid, size)
            if len(keys) > 1:
                take_from(self.held, uid, len(keys))


def text_bytes(
    keys: tuple[ResourceKey, ...], label: str | None, reason: str | None
) -> int:
    """Returns the bytes of UTF-8 that count for a request, or for a lock with one key.

    A request counts at least as much as all its grants: each grant carries a copy of
    the label and reason.
    """
    if label is reason is None and len(keys) == 1:
        # The common cases: a short name, and the hash of a path.
        name = keys[0].resource
        if len(name) <= PLAIN or (len(name) <= MAX_NAME_BYTES and name.isascii()):
            return 0
    said = _size(label or "") + _size(reason or "")
    names = sum(_size(key.resource) for key in keys)
    if len(keys) == 1 and names <= MAX_NAME_BYTES:
        names = 0
    return said * len(keys) + names


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
