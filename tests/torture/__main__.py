"""Faults by the thousand on a booted systemd: no lock, no connection, no place is lost.

    python -m torture [--kills N] [--seconds S] [--seed N] [--slice] [PART ...]

Parts: `rounds` (load and faults at random times), `calls` (SIGKILL at every system
call), `errors` (an error of each system call), `damage` (records that were spoilt),
`recovery` (how soon it serves again), `virtlockd` (what virtlockd loses), `bugs` (each
planted bug must be found). All but the last are run without one.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torture.board import TALLIES, Board
from torture.judge import Judge
from torture.kinds import KILLING, KINDS
from torture.report import Report
from torture.rounds import Counted, Rounds
from torture.target import Target, booted

PARTS: Final = ("rounds", "calls", "errors", "damage", "recovery", "virtlockd", "bugs")

SLICE_SECONDS: Final = 5.0


@dataclass
class Options:
    kills: int
    seconds: float
    seed: int
    is_slice: bool
    parts: Sequence[str]


def options(words: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000, metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S",
                        help="of faults, of each round")  # fmt: skip
    parser.add_argument("--seed", type=int, default=None, metavar="N")
    parser.add_argument("--slice", action="store_true", help="three minutes of it all")
    parser.add_argument("parts", nargs="*", metavar="PART")
    found = parser.parse_args(words)
    if unknown := set(found.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    seed = int(time.time()) if found.seed is None else found.seed
    kills, seconds = found.kills, found.seconds
    if found.slice:
        kills, seconds = 0, SLICE_SECONDS
    return Options(kills, seconds, seed, found.slice, found.parts or PARTS[:-1])


def rounds(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """Load and faults at random times, each kind at least once."""
    report.title(f"Faults at random times (seed {chosen.seed})")
    with Board(target.scratch / "complaints") as board:
        runner = Rounds(target, board, judge, chosen.seed)
        tallies = dict.fromkeys(TALLIES, 0)
        all_counted = {name: Counted(name) for name in KINDS}
        killed = 0
        waiting = list(KINDS)
        while waiting or killed < chosen.kills:
            name = waiting.pop(0) if waiting else KILLING[0]
            counted = all_counted[name]
            before = counted.faults
            runner.round(counted, KINDS[name], chosen.seconds)
            if name in KILLING:
                killed += counted.faults - before
            for tally in TALLIES:
                tallies[tally] += board.total(tally)
            if killed < chosen.kills and not waiting:
                waiting = list(KILLING)
        for counted in all_counted.values():
            report.rounds(counted)
        for tally, count in tallies.items():
            report.show(f"load: {tally}", count)
        report.show("load: workers killed while they held", judge.killed)
        report.at_least("SIGKILLs", killed, chosen.kills)
        report.show("used at the end", runner.used)


def main(words: Sequence[str]) -> int:
    assert os.geteuid() == 0, "booting a machine takes root"
    chosen, report, judge = options(words), Report(), Judge()
    if "rounds" in chosen.parts:
        with booted() as target:
            rounds(target, report, judge, chosen)
    report.judged(judge)
    report.again()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
