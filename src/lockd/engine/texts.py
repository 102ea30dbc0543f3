"""How much text locks and requests carry, of which each user may have so much.

Every lock has a short name, which the number of locks bounds. Counted is what comes on
top: label and reason, names that are long, and the names of a request for several
resources.
"""

from typing import Final

from lockd.engine.tally import Tally
from lockd.names import MAX_NAME_BYTES
from lockd.terms import ResourceKey

PLAIN: Final = MAX_NAME_BYTES // 4
"""A name of so many characters is never long, whatever they are."""


class Texts(Tally):
    """How many bytes of text each uid's locks and requests carry.

    What has neither label nor reason, and one name of at most `PLAIN` characters, need
    not be told: nothing of it counts.
    """

    def take_up(
        self,
        uid: int,
        keys: tuple[ResourceKey, ...],
        label: str | None,
        reason: str | None,
    ) -> None:
        """Counts what a request says, or a lock with one key."""
        if size := text_bytes(keys, label, reason):
            self.add(uid, size)

    def drop(
        self,
        uid: int,
        keys: tuple[ResourceKey, ...],
        label: str | None,
        reason: str | None,
    ) -> None:
        """Counts what was taken up no longer."""
        if size := text_bytes(keys, label, reason):
            self.remove(uid, size)


def text_bytes(
    keys: tuple[ResourceKey, ...], label: str | None, reason: str | None
) -> int:
    """Returns how many bytes of UTF-8 count of a request, or of a lock with one key.

    A request counts no less than all the locks that are granted for it: each of them
    has its label and reason.
    """
    said = _size(label or "") + _size(reason or "")
    names = sum(_size(key.resource) for key in keys)
    if len(keys) == 1 and names <= MAX_NAME_BYTES:
        names = 0
    return said * len(keys) + names


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
