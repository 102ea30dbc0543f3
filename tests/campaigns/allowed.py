"""The differences from virtlockd that are meant: each with its reason, all of them here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from campaigns.steps import Episode, Event


@dataclass(frozen=True)
class Allowed:
    """A difference: why it is meant, how one knows it, and how both are made alike."""

    reason: str
    applies: "Callable[[Event, Episode], bool]"
    heal: "Callable[[Event, Episode], None]"


ALLOWED: Final[tuple[Allowed, ...]] = ()
