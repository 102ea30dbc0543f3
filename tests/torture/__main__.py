"""Faults by the thousand on a booted systemd: no lock, no connection, no place is lost.

    python -m torture [--kills N] [--seconds S] [--seed N] [--slice] [PART ...]

Parts: `rounds` (load and faults at random times), `calls` (SIGKILL at every system
call), `errors` (an error of each system call), `damage` (records that were spoilt),
`recovery` (how soon it serves again), `virtlockd` (what virtlockd loses). All of them
are run if none is named.
"""

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torture import scenarios
from torture.board import TALLIES, Board
from torture.calls import Calls, bystanders
from torture.damage import KINDS as DAMAGES
from torture.damage import Damage
from torture.judge import Judge
from torture.kinds import KILLING, KINDS
from torture.peers import compare
from torture.rebirth import Rebirth
from torture.recovery import price, recovery
from torture.report import Report
from torture.rounds import Counted, Rounds
from torture.target import Target, booted

SLICE_SECONDS: Final = 4.0

#: Of a slice: one call out of so many.
CALL_STRIDE, UPGRADE_STRIDE, RECOVERY_STRIDE = 20, 1_000, 300

DAMAGE_TIMES: Final = 20
RECOVERY_KILLS: Final = 200


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
    if unknown := set(found.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    seed = int(time.time()) if found.seed is None else found.seed
    kills, seconds = found.kills, found.seconds
    if found.slice:
        kills, seconds = 0, SLICE_SECONDS
    return Options(kills, seconds, seed, found.slice, found.parts or list(PARTS))


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


def calls(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """SIGKILL at every system call of each scenario, and of recovery."""
    report.title("SIGKILL at every system call (hit/total)")
    with Board(target.scratch / "complaints-calls") as board:
        with bystanders(target, board, judge):
            killer = Calls(target, board, judge, chosen.seed)
            for name, scenario in scenarios.SCENARIOS.items():
                report.hit(killer.every(name, scenario, CALL_STRIDE**chosen.is_slice))
            stride = UPGRADE_STRIDE**chosen.is_slice
            report.hit(killer.every("upgrade", scenarios.UPGRADE, stride))
        with bystanders(target, board, judge):
            reborn = Rebirth(target, board, judge, chosen.seed)
            report.hit(reborn.every(RECOVERY_STRIDE**chosen.is_slice))


def errors(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """An error of each system call of each scenario."""
    report.title("Errors of system calls (injected/total)")
    with (
        Board(target.scratch / "complaints-errors") as board,
        bystanders(target, board, judge),
    ):
        injector = Calls(target, board, judge, chosen.seed)
        for name, scenario in scenarios.SCENARIOS.items():
            report.hit(injector.errors(name, scenario, CALL_STRIDE**chosen.is_slice))


def damage(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """Records that were spoilt."""
    report.title("Records that were spoilt, then SIGKILL")
    with Board(target.scratch / "complaints-damage") as board:
        spoiler = Damage(target, board, judge, chosen.seed)
        for kind in DAMAGES:
            found: Counter[str] = Counter()
            for _ in range(1 if chosen.is_slice else DAMAGE_TIMES):
                found += spoiler.once(kind)
            for what, count in found.items():
                report.show(f"{kind}: sessions that {what}", count)
        report.must("violations", spoiler.violations, 0)
        report.at_least("memories spoilt", spoiler.spoilt, len(DAMAGES))


def recovered(target: Target, report: Report, _: Judge, chosen: Options) -> None:
    """How soon it serves again, and the price."""
    with Board(target.scratch / "complaints-recovery") as board:
        recovery(target, board, report, 10 if chosen.is_slice else RECOVERY_KILLS)
        if not chosen.is_slice:
            price(target, board, report)


def virtlockd(target: Target, report: Report, _: Judge, __: Options) -> None:
    """The same to virtlockd."""
    with Board(target.scratch / "complaints-virtlockd") as board:
        compare(target, board, report)


Part = Callable[[Target, Report, Judge, Options], None]

PARTS: Final[dict[str, Part]] = {
    "rounds": rounds,
    "calls": calls,
    "errors": errors,
    "damage": damage,
    "recovery": recovered,
    "virtlockd": virtlockd,
}


def main(words: Sequence[str]) -> int:
    """Runs what was chosen; returns the exit status."""
    assert os.geteuid() == 0, "booting a machine takes root"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen, report, judge = options(words), Report(), Judge()
    with booted() as target:
        for part in chosen.parts:
            PARTS[part](target, report, judge, chosen)
    report.judged(judge)
    report.again()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
