"""What the rows share: from rounds to lines of the table."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import daemons
from benchmarks.cpus import Cpus, Duels, Turns, choices, take_free_turns, use
from benchmarks.daemons import Daemon
from benchmarks.measure import Duel, Round, take_turns
from benchmarks.table import Goal, Result
from benchmarks.wires import LockdWire

IN_FLIGHT: Final = 50
"""How many locks the pairs take in turns, or at once."""

LOCKSPACE_OF_KIND: Final = {"memory": "default", "directory": daemons.DIRECTORY}

Row = Callable[[Path], Iterator[Result]]
"""Measures in a directory of its own; raises `SkipError` where a peer is absent."""


@dataclass(frozen=True)
class Comparison:
    """Which two contenders a line of the table compares."""

    what: str
    ours: str
    theirs: str
    goals: Mapping[Cpus, Goal] = field(default_factory=dict)


def everywhere(
    rounds: Mapping[str, Round],
    pids: Mapping[str, int],
    comparisons: Sequence[Comparison],
) -> Iterator[Result]:
    """Lets contenders take turns on one CPU, on two, and where the kernel chooses.

    Args:
        pids: the pid of each contender's daemon.
    """
    for cpus in choices():
        use(cpus, set(pids.values()))
        if cpus is Cpus.FREE:
            turns = take_free_turns(rounds, pids)
            for comparison in comparisons:
                yield from _free(comparison, turns)
        else:
            costs = take_turns(dict(rounds))
            for line in comparisons:
                goal = line.goals.get(cpus)
                yield times(*(line.what, costs, line.ours, line.theirs, goal), cpus)


def _free(comparison: Comparison, turns: Turns) -> Iterator[Result]:
    """Makes a line for each mode of the kernel; says how many rounds were in it."""
    ours, theirs = turns[comparison.ours], turns[comparison.theirs]
    for mode, duel in Duels(ours, theirs):
        shown = []
        for rounds in ours, theirs:
            costs = [cost for seen, cost in rounds if seen is mode]
            cost = time_of(costs) if costs else "-"
            shown.append(f"{cost} ({len(costs)} of {len(rounds)})")
        yield Result(
            *(comparison.what, shown[0], f"{comparison.theirs} {shown[1]}"),
            None if duel is None else duel.cost_ratio(),
            cpus=f"free, {mode.value}",
        )


def times(
    what: str,
    costs: Mapping[str, list[float]],
    ours: str,
    theirs: str,
    goal: Goal | None = None,
    cpus: Cpus = Cpus.ONE,
) -> Result:
    """Compares what one operation took."""
    duel = Duel(costs[ours], costs[theirs])
    against = f"{theirs} {time_of(duel.theirs)}"
    ratio = duel.cost_ratio()
    return Result(what, time_of(duel.ours), against, ratio, goal, cpus=cpus.value)


def time_of(costs: list[float]) -> str:
    microseconds = statistics.median(costs) * 1e6
    if microseconds < 10_000:
        return f"{microseconds:.{1 if microseconds < 100 else 0}f} us"
    return f"{microseconds / 1000:.1f} ms"


def rate_of(costs: list[float], unit: str) -> str:
    return f"{1 / statistics.median(costs):,.0f} {unit}/s"


def opened(stack: ExitStack, daemon: Daemon, kind: str) -> LockdWire:
    """Opens a connection that the stack closes."""
    return stack.enter_context(closing(daemon.wire(LOCKSPACE_OF_KIND[kind])))
