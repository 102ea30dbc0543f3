"""Rounds, and what can be said from them on a noisy machine.

Contenders take turns in short rounds, so that whatever else the machine does falls on
all of them; a ratio is made of two neighbouring rounds, and the median of the ratios
counts.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ROUNDS: Final = 51
ROUND_SECONDS: Final = 0.06
"""Many short rounds say more than few long ones: neighbours see the same machine."""

Round = Callable[[float], float]
"""Works for about so many seconds; returns the seconds that one operation took."""


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements, and the range of their middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Duel:
    """Two contenders that took turns: what an operation cost each, round by round."""

    ours: list[float]
    theirs: list[float]

    def cost_ratio(self) -> Spread:
        """How many times their time we need."""
        return Spread.of([a / b for a, b in zip(self.ours, self.theirs, strict=True)])

    def rate_ratio(self) -> Spread:
        """How many times their operations per second we reach."""
        return Spread.of([b / a for a, b in zip(self.ours, self.theirs, strict=True)])

    def difference(self, units: float) -> Spread:
        """How much more we need, in so many units a second."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return Spread.of([(a - b) * units for a, b in pairs])


def take_turns(
    contenders: dict[str, Round],
    *,
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
) -> dict[str, list[float]]:
    """Lets every contender work once per round; returns their costs by name."""
    for work in contenders.values():
        work(seconds)  # caches warm, code paths taken once
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            costs[name].append(contenders[name](seconds))
        order.reverse()  # nobody always works in the wake of the same other
    return costs


def repeat(operation: Callable[[], object]) -> Round:
    """Returns the round that does one operation again and again."""

    def work(seconds: float) -> float:
        count = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            operation()
            count += 1
        return elapsed / count

    return work


def median_of(timed_operation: Callable[[], float]) -> Round:
    """Returns the round of an operation that times its own interesting part."""

    def work(seconds: float) -> float:
        end = time.perf_counter() + seconds
        samples = [timed_operation()]
        while time.perf_counter() < end:
            samples.append(timed_operation())
        return statistics.median(samples)

    return work
