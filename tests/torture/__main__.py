"""Faults by the thousand on a booted systemd: no lock, no connection, no place is lost.

    python -m torture [--kills N] [--seconds S] [--seed N] [--slice] [--share I/N]
                      [--keep] [PART[:NAME] ...]

Parts: `rounds` (load and faults at random times), `calls` (SIGKILL at every system
call), `errors` (an error of each system call), `damage` (records that were spoilt),
`recovery` (how soon it serves again), `virtlockd` (what virtlockd loses). All of them
are run if none is named. With a name only that of a part is run: `calls:upgrade`,
`errors:release`, "rounds:SIGKILL, one at a time".

With --keep, `lockd keep` is the parent of the daemon, and systemd keeps nothing of it.
Only `rounds` can be run then, of the kinds that do not need systemd.

Interrupted (SIGINT), it tells what it has found so far.

Several campaigns can run side by side: `--share 1/2` takes every second system call of
`calls` and `errors`, `--share 2/2` the others.
"""

import argparse
import fcntl
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from torture import scenarios
from torture.board import TALLIES, Board
from torture.calls import Calls, bystanders
from torture.damage import KINDS as DAMAGES
from torture.damage import Damage
from torture.judge import Judge
from torture.kept import KeptTarget
from torture.kinds import KILLING, KINDS, WITHOUT_SYSTEMD
from torture.peers import compare
from torture.portion import Portion
from torture.rebirth import Rebirth
from torture.recovery import price, recovery
from torture.report import Report
from torture.rounds import Counted, Rounds
from torture.target import Target, booted

SLICE_SECONDS: Final = 4.0

#: Of a slice: one system call out of so many.
CALL_STRIDE, UPGRADE_STRIDE, RECOVERY_STRIDE = 10, 500, 100

DAMAGE_TIMES: Final = 20
RECOVERY_KILLS, SLICE_RECOVERY_KILLS = 200, 5

UPGRADE: Final = "upgrade"
RECOVERY: Final = "recovery"


@dataclass
class Options:
    """What was chosen.

    Attributes:
        parts: and of each the names of what is run of it.
    """

    kills: int
    seconds: float
    seed: int
    is_slice: bool
    keeps: bool
    share: tuple[int, int]
    parts: dict[str, list[str]]

    def portion(self, stride: int) -> Portion:
        """Returns what is taken; of a slice it is one in so many."""
        return Portion(stride if self.is_slice else 1, *self.share)


def options(words: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=int, default=1_000, metavar="N")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S",
                        help="of faults, of each round")  # fmt: skip
    parser.add_argument("--seed", type=int, default=None, metavar="N")
    parser.add_argument("--slice", action="store_true", help="three minutes of it all")
    parser.add_argument("--keep", action="store_true", help="with `lockd keep`")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="I/N")
    parser.add_argument("parts", nargs="*", metavar="PART[:NAME]")
    found = parser.parse_args(words)
    seed = int(time.time()) if found.seed is None else found.seed
    kills, seconds = found.kills, found.seconds
    if found.slice:
        kills, seconds = 0, SLICE_SECONDS
    every = [f"rounds:{kind}" for kind in WITHOUT_SYSTEMD] if found.keep else PARTS
    try:
        parts = _parts(found.parts or list(every))
    except LookupError as error:
        parser.error(str(error))
    if found.keep and (parts.keys() != {"rounds"}
                       or not {*parts["rounds"]} <= {*WITHOUT_SYSTEMD}):  # fmt: skip
        parser.error("some of this needs systemd")
    return Options(kills, seconds, seed, found.slice, found.keep, found.share, parts)


def _share(text: str) -> tuple[int, int]:
    number, of = map(int, text.split("/"))
    if not 1 <= number <= of:
        raise ValueError(text)
    return number, of


def _parts(words: Sequence[str]) -> dict[str, list[str]]:
    """Raises LookupError for a word that names nothing."""
    chosen: dict[str, list[str]] = {}
    for word in words:
        part, _, name = word.partition(":")
        if part not in PARTS or name not in ("", *PARTS[part].names):
            raise LookupError(f"no such part: {word}")
        chosen.setdefault(part, []).extend([name] if name else PARTS[part].names)
    return chosen


def rounds(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """Load and faults at random times, each kind at least once."""
    report.title(f"Faults at random times (seed {chosen.seed})")
    names = chosen.parts["rounds"]
    killing = [name for name in KILLING if name in names]
    kills = chosen.kills if killing else 0
    with Board(target.scratch / "complaints") as board:
        runner = Rounds(target, board, judge, chosen.seed)
        tallies = dict.fromkeys(TALLIES, 0)
        all_counted = {name: Counted(name) for name in names}
        killed = 0
        waiting = list(names)
        try:
            while waiting or killed < kills:
                counted = all_counted[name := waiting.pop(0)]
                before = counted.faults
                runner.round(counted, KINDS[name], chosen.seconds)
                more = counted.faults - before
                print(f"  ... {name}: {more} faults; found: {judge.count}", flush=True)
                if name in KILLING:
                    killed += more
                for tally in TALLIES:
                    tallies[tally] += board.total(tally)
                if killed < kills and not waiting:
                    waiting = list(killing)
        finally:
            for counted in all_counted.values():
                report.rounds(counted)
            for tally, count in tallies.items():
                report.show(f"load: {tally}", count)
            report.show("load: workers killed while they held", judge.killed)
            shared = max(counted.most_shared for counted in all_counted.values())
            report.show("most shared memory of the daemon", shared / 2**20, "MiB")
            report.at_least("SIGKILLs", killed, kills)
            report.show("used at the end", runner.used)


def calls(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """SIGKILL at every system call of each scenario, and of recovery."""
    report.title("SIGKILL at every system call (hit/total)")
    names = chosen.parts["calls"]
    with Board(target.scratch / "complaints-calls") as board:
        with bystanders(target, board, judge):
            killer = Calls(target, board, judge, chosen.seed)
            for name, scenario in scenarios.SCENARIOS.items():
                if name in names:
                    portion = chosen.portion(CALL_STRIDE)
                    with report.hits(name) as found:
                        killer.every(found, scenario, portion)
            if UPGRADE in names:
                portion = chosen.portion(UPGRADE_STRIDE)
                with report.hits(UPGRADE) as found:
                    killer.every(found, scenarios.UPGRADE, portion)
        if RECOVERY in names:
            with bystanders(target, board, judge):
                reborn = Rebirth(target, board, judge, chosen.seed)
                with report.hits(RECOVERY) as found:
                    reborn.every(found, chosen.portion(RECOVERY_STRIDE))


def errors(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """An error of each system call of each scenario."""
    report.title("Errors of system calls (injected/total)")
    with (
        Board(target.scratch / "complaints-errors") as board,
        bystanders(target, board, judge),
    ):
        injector = Calls(target, board, judge, chosen.seed)
        for name, scenario in scenarios.SCENARIOS.items():
            if name in chosen.parts["errors"]:
                portion = chosen.portion(CALL_STRIDE)
                with report.hits(name) as found:
                    injector.errors(found, scenario, portion)


def damage(target: Target, report: Report, judge: Judge, chosen: Options) -> None:
    """Records that were spoilt."""
    report.title("Records that were spoilt, then SIGKILL")
    kinds = chosen.parts["damage"]
    with Board(target.scratch / "complaints-damage") as board:
        spoiler = Damage(target, board, judge, chosen.seed)
        for kind in kinds:
            found: Counter[str] = Counter()
            for _ in range(1 if chosen.is_slice else DAMAGE_TIMES):
                found += spoiler.once(kind)
            for what, count in found.items():
                report.show(f"{kind}: sessions that {what}", count)
        report.must("violations", spoiler.violations, 0)
        report.at_least("memories spoilt", spoiler.spoilt, len(kinds))


@contextmanager
def _alone() -> Iterator[None]:
    """Waits until no other campaign of this host does the same.

    The kernel counts what is in flight by user (RLIMIT_NOFILE), and lockd's is the same
    in all machines.
    """
    with open(Path(tempfile.gettempdir()) / "lockd-torture-recovery", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recovered(target: Target, report: Report, _: Judge, chosen: Options) -> None:
    """How soon it serves again, and the price."""
    with _alone(), Board(target.scratch / "complaints-recovery") as board:
        kills = SLICE_RECOVERY_KILLS if chosen.is_slice else RECOVERY_KILLS
        recovery(target, board, report, kills)
        if not chosen.is_slice:
            price(target, board, report)


def virtlockd(target: Target, report: Report, _: Judge, __: Options) -> None:
    """The same to virtlockd."""
    with Board(target.scratch / "complaints-virtlockd") as board:
        compare(target, board, report)


class Part(NamedTuple):
    """What can be run by itself, and the names of what it is made of."""

    run: Callable[[Target, Report, Judge, Options], None]
    names: Sequence[str] = ()


PARTS: Final = {
    "rounds": Part(rounds, list(KINDS)),
    "calls": Part(calls, [*scenarios.SCENARIOS, UPGRADE, RECOVERY]),
    "errors": Part(errors, list(scenarios.SCENARIOS)),
    "damage": Part(damage, list(DAMAGES)),
    "recovery": Part(recovered),
    "virtlockd": Part(virtlockd),
}


def main(words: Sequence[str]) -> int:
    """Runs what was chosen; returns the exit status."""
    chosen = options(words)
    assert os.geteuid() == 0, "booting a machine takes root"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # How fast it is says something of a machine that has nothing else to do.
    report, judge = Report(is_speed_judged=not chosen.is_slice), Judge()
    took = {}
    began = time.monotonic()
    # Also where a shell has it ignored, as that of a background job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        make = KeptTarget if chosen.keeps else Target
        with booted(make=make) as target:
            took["boot"] = time.monotonic() - began
            for part in chosen.parts:
                began = time.monotonic()
                try:
                    PARTS[part].run(target, report, judge, chosen)
                finally:
                    took[part] = time.monotonic() - began
    except KeyboardInterrupt:
        print("ended early", flush=True)
        return 128 + signal.SIGINT
    finally:
        report.title("How long it took")
        for part, seconds in took.items():
            report.show(part, seconds, "s")
        report.judged(judge)
        report.again()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
