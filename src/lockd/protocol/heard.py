"""Requests that the daemon has heard before, and need not decode again.

A program takes the same few locks again and again. Such a request differs from an
earlier one in its msgid only. The daemon remembers what the rest of it means.

Each user has a memory of its own: the time that an answer takes must not tell what
another user asks for.
"""

from typing import Final

from lockd.protocol.calls import Method, MethodCall
from lockd.protocol.codec import REQUEST
from lockd.protocol.methods import METHODS, Params, ReleaseParams

LONGEST: Final = 128
"""The longest request to remember, in bytes."""

MOST_REQUESTS: Final = 256
MOST_USERS: Final = 64
"""How many requests of a user are remembered, and of how many users."""

_COMES_AGAIN: Final = (METHODS["acquire"], METHODS["release"])

_ARRAY_OF_FOUR: Final = 0x94
"""The first byte of a request. The type and the msgid follow."""

_WIDTHS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4}
"""The bytes of a msgid, by the byte before it. A byte up to 127 is itself a msgid."""

Meaning = tuple[Method, Params]
"""A method, and checked parameters."""


class Heard:
    """Remembers the requests of users."""

    def __init__(self) -> None:
        self._by_user: dict[int, dict[bytes, Meaning]] = {}

    def recall(self, message: bytes, user: int) -> MethodCall | None:
        """Returns what a message means; None if this user has not sent it before.

        Args:
            message: its bytes, and no others.
            user: the uid of its sender.
        """
        known = self._by_user.get(user)
        if known is None or len(message) > LONGEST:
            return None
        begin = _end_of_msgid(message)
        meaning = known.get(message[begin:]) if begin else None
        if meaning is None:
            return None
        msgid = message[2] if begin == 3 else int.from_bytes(message[3:begin], "big")
        return MethodCall(msgid, meaning[0], meaning[1])

    def note(self, message: bytes, user: int, call: MethodCall) -> None:
        """Remembers what a plain request means, if it is one that may come again."""
        if len(message) > LONGEST or call.method not in _COMES_AGAIN:
            return
        params = call.params
        if type(params) is ReleaseParams and params.fencing_token is not None:
            return  # a token never comes again
        known = self._by_user.get(user)
        if known is None:
            if len(self._by_user) >= MOST_USERS:
                self._by_user.clear()
            known = self._by_user[user] = {}
        elif len(known) >= MOST_REQUESTS:
            known.clear()
        known[message[_end_of_msgid(message) :]] = call.method, params


HEARD: Final = Heard()


def _end_of_msgid(message: bytes) -> int:
    """Returns how many bytes of a request come before its method; 0 for no request."""
    if len(message) < 4 or message[0] != _ARRAY_OF_FOUR or message[1] != REQUEST:
        return 0
    first = message[2]
    if first < 128:
        return 3
    width = _WIDTHS.get(first)
    return 0 if width is None else 3 + width
