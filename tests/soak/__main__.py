"""Hundreds of clients that misbehave beside a few that are honest, on a booted systemd.

    python -m soak [--seconds N] [--clients N] [--seed N] [--judge-p99]

The honest ones take locks and say what they held when. Every grant is judged: no two
may overlap, tokens must rise, every request must be answered. The service must not
restart, and must give back its memory and descriptors. The honest work alone first,
then beside the others for so many seconds, then alone again.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Final

from soak.clients import Honest, Misbehaving
from soak.meter import Meter
from soak.screen import Screen
from torture.board import Board
from torture.judge import Judge
from torture.target import Target, booted

CONFIG: Final = """
[lockspaces.files]
kind = "directory"
path = "/var/lib/locks"
"""

ALONE_SHARE: Final = 0.1
"""For which share of the time the honest are alone before, and again after."""

QUIET_SECONDS: Final = 60.0
"""Within which what the misbehaving used must be given back."""

HONEST: Final = 4


def options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N",
                        help="for which clients misbehave (default: 600)")  # fmt: skip
    parser.add_argument("--clients", type=int, default=200, metavar="N",
                        help="that misbehave (default: 200)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--judge-p99", action="store_true",
                        help="fail also if the honest wait too long; this says "
                        "something only where nothing else runs")  # fmt: skip
    return parser.parse_args(words)


def soak(target: Target, chosen: argparse.Namespace) -> Screen:
    """Runs the three phases; returns what was measured and found."""
    alone = chosen.seconds * ALONE_SHARE
    with Board(target.scratch / "complaints") as board:
        board.clear()
        meter = Meter(target)
        honest = Honest(board, target.first_pid, HONEST, 2 * alone + chosen.seconds)
        before = meter.watch("before", alone)
        crowd = Misbehaving(target.first_pid, chosen.clients, chosen.seed)
        during = meter.watch("during", chosen.seconds)
        crowd.end()
        meter.wait_back(before, QUIET_SECONDS)
        after = meter.watch("after", alone)
        board.stop()
        honest.wait()
        judge = Judge()
        judge.judge(board)
        return Screen(
            seconds=chosen.seconds,
            is_p99_judged=chosen.judge_p99,
            phases=(before, during, after),
            records=list(board.records()),
            acts=crowd.counts(),
            restarts=int(target.machine.show("lockd.service", "NRestarts")),
            defects=target.defects(),
            judge=judge,
        )


def main(words: Sequence[str]) -> int:
    """Prints one screen; returns 1 if something is wrong."""
    chosen = options(words)
    assert os.geteuid() == 0, "booting a machine takes root"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    total = chosen.seconds * (1 + 2 * ALONE_SHARE)
    print(f"booting a machine, then {total:.0f} s of soak ...", flush=True)
    began = time.monotonic()
    with booted(CONFIG) as target:
        screen = soak(target, chosen)
    print(screen.text(time.monotonic() - began), flush=True)
    return 1 if screen.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
