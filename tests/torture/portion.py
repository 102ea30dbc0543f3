"""Which of what there is to be hit: all of it, some of each, or the share of one."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from zlib import crc32

T = TypeVar("T")


@dataclass(frozen=True)
class Portion:
    """A part of a campaign's many small things.

    Attributes:
        one_in: of so many that are known beforehand one is taken, at random, and at
            least one in all; 1: all, also those that come up only meanwhile.
        number, of: which of how many shares it is, when several campaigns run side by
            side; together they take each thing once.
    """

    one_in: int = 1
    number: int = 1
    of: int = 1

    @property
    def is_sample(self) -> bool:
        return self.one_in > 1

    def has(self, call: str, at: int) -> bool:
        """Tells whether the `at`-th call of a name is in this share."""
        return (crc32(call.encode()) + at) % self.of == self.number - 1

    def take(
        self, things: Sequence[T], chance: random.Random, is_hit: Callable[[T], bool]
    ) -> None:
        """Has so many of them be hit; another one where that cannot be done."""
        wanted = max(1, len(things) // self.one_in)
        for thing in chance.sample(things, len(things))[: TRIES * wanted]:
            wanted -= is_hit(thing)
            if not wanted:
                break


ALL: Final = Portion()

TRIES: Final = 3
"""How many are tried for each that has to be hit."""
