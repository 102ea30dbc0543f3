"""On which CPUs the client and the daemons run, and what that does to a comparison.

To wake a process on another CPU can cost more than a daemon does for a request. If the
kernel chooses, it keeps client and daemon together on one CPU, or apart on two, and
changes its mind now and then. So a comparison pins both, or says which one it was.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Final

from benchmarks.measure import ROUNDS, Duel, Round, take_turns

ALLOWED: Final = sorted(os.sched_getaffinity(0))
"""The CPUs that this program had at its start."""

SLICES: Final = 3
"""How often one round looks at the CPUs."""

LEAST_ROUNDS: Final = 8
"""So many rounds must have two contenders in the same mode to be compared."""


class Cpus(Enum):
    """Where client and daemons run; the value stands in the table."""

    ONE = "one"
    TWO = "two"
    FREE = "free"


class Mode(Enum):
    """What the kernel chose in one round."""

    TOGETHER = "together"
    APART = "apart"
    MIXED = "mixed"


Turns = dict[str, list[tuple[Mode, float]]]
"""The rounds of each contender: what the kernel chose, and what an operation cost."""


def choices() -> list[Cpus]:
    """Returns what this machine can do."""
    return list(Cpus) if len(ALLOWED) > 1 else [Cpus.ONE]


def use(cpus: Cpus, daemons: Iterable[int] = ()) -> None:
    """Moves this process and daemons; what this process starts later stays with it."""
    client = daemon = set(ALLOWED)
    if cpus is not Cpus.FREE:
        client = daemon = {ALLOWED[0]}
    if cpus is Cpus.TWO:
        daemon = {ALLOWED[-1]}
    _restrict(os.getpid(), client)
    for pid in daemons:
        _restrict(pid, daemon)


def take_free_turns(
    rounds: Mapping[str, Round], daemons: Mapping[str, int], *, count: int = ROUNDS
) -> Turns:
    """Lets contenders take turns; tells them apart by what the kernel chose.

    Args:
        daemons: the pid of each contender's daemon.
    """
    modes: dict[str, list[Mode]] = {name: [] for name in rounds}
    costs = take_turns(
        {
            name: _watched(work, daemons[name], modes[name])
            for name, work in rounds.items()
        },
        rounds=count,
    )
    return {
        # The first round was the one that warms up.
        name: list(zip(modes[name][1:], costs[name], strict=True))
        for name in rounds
    }


class Duels:
    """Two contenders that took turns where the kernel chose."""

    def __init__(
        self, ours: list[tuple[Mode, float]], theirs: list[tuple[Mode, float]]
    ) -> None:
        self.ours, self.theirs = ours, theirs

    def __iter__(self) -> Iterator[tuple[Mode, Duel | None]]:
        """Yields each mode that one of them was in; no duel if they did not meet."""
        for mode in Mode.TOGETHER, Mode.APART:
            if not (self.count(self.ours, mode) or self.count(self.theirs, mode)):
                continue
            met = [
                (our_cost, their_cost)
                for (our_mode, our_cost), (their_mode, their_cost) in zip(
                    self.ours, self.theirs, strict=True
                )
                if our_mode is their_mode is mode
            ]
            if len(met) < LEAST_ROUNDS:
                yield mode, None
            else:
                yield mode, Duel([a for a, _ in met], [b for _, b in met])

    @staticmethod
    def count(turns: list[tuple[Mode, float]], mode: Mode) -> int:
        return sum(seen is mode for seen, _ in turns)


def _watched(work: Round, daemon: int, modes: list[Mode]) -> Round:
    """Returns a round that notes where it ran."""

    def watched(seconds: float) -> float:
        costs, seen = [], set()
        for _ in range(SLICES):
            costs.append(work(seconds / SLICES))
            same = _last_cpu(daemon) == _last_cpu(os.getpid())
            seen.add(Mode.TOGETHER if same else Mode.APART)
        modes.append(seen.pop() if len(seen) == 1 else Mode.MIXED)
        return sum(costs) / SLICES

    return watched


def _last_cpu(pid: int) -> int:
    """Returns the CPU on which a process ran last: field 39 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[39 - 3])


def _restrict(pid: int, allowed: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), allowed)
