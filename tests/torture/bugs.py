"""Plants each bug of planted.py into the installed daemon: the rounds must find it.

    python -m torture.bugs [--seconds S] [--rounds N] [WORD ...]

With words, only the bugs are planted whose names contain one of them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from torture import scenarios
from torture.board import Board
from torture.calls import Calls, Hit
from torture.judge import Judge
from torture.kinds import KINDS
from torture.line import UnansweredError
from torture.planted import BUGS, Bug
from torture.report import Report
from torture.rounds import Counted, Rounds
from torture.target import SERVICE, Target, booted

#: The kinds of rounds that look for a bug, one after the other.
LOOKED_IN: Final = (
    "SIGKILL, one at a time",
    "SIGKILL, some in a row",
    "PID 1 stopped, SIGKILL",
    # Where each start begins anew with little, what piles up is not seen.
    "nothing",
)

#: Those that are played call by call if no round has found it, after the bug's own.
SCENARIOS_LOOKED_IN: Final = ("acquire (memory)", "release", "grant to waiter")

#: What is no proof: it may come of anything.
NO_PROOF: Final = frozenset(("memory", "harness"))


@contextmanager
def planted(target: Target, bug: Bug) -> Iterator[None]:
    """Has the daemon run with a bug.

    Raises:
        ValueError: its text is not there exactly once.
    """
    text = target.machine.run("cat", bug.path).stdout
    try:
        target.machine.write(bug.path, bug.plant(text))
        _begin_anew(target)
        yield
    finally:
        target.machine.write(bug.path, text)
        _begin_anew(target)


def _begin_anew(target: Target) -> None:
    """Has the daemon run as it is installed now, with nothing of before."""
    run = target.machine.run
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", SERVICE)
    run("systemctl", "reset-failed", SERVICE, check=False)
    run("systemctl", "start", "lockd.socket", "lockd-admin.socket", check=False)
    run("systemctl", "start", "lockd-virtlockd.socket", SERVICE, check=False)


def _proofs(judge: Judge) -> dict[str, int]:
    return {kind: n for kind, n in judge.found.items() if kind not in NO_PROOF}


def look(
    target: Target, board: Board, seconds: float, rounds: int, scenario: str = ""
) -> str:
    """Looks for what is wrong; returns what was found first, nothing if all is well.

    Args:
        scenario: is played after the first round.
    """
    judge = Judge()
    try:
        runner = Rounds(target, board, judge, seed=1)

        def in_round(kind: str) -> None:
            runner.round(Counted(kind), KINDS[kind], seconds)

        def in_scenario(name: str) -> None:
            calls = Calls(target, board, judge, seed=1)
            calls.every(Hit(name), scenarios.SCENARIOS[name])

        kinds = [LOOKED_IN[number % len(LOOKED_IN)] for number in range(rounds)]
        names = dict.fromkeys((scenario, *SCENARIOS_LOOKED_IN))
        places = [(kind, partial(in_round, kind)) for kind in kinds]
        places += [(f"{x}, call by call", partial(in_scenario, x)) for x in names if x]
        if scenario:
            places.insert(1, places.pop(rounds))
        for place, look_there in places:
            look_there()
            if proofs := _proofs(judge):
                return f"{place}: {proofs}"
    except (AssertionError, UnansweredError, subprocess.TimeoutExpired) as error:
        # It is not there any more, or does not even start.
        board.complaints()
        return f"it does not serve: {str(error)[:60]!r}"
    return ""


def main(words: Sequence[str]) -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="torture.bugs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=len(LOOKED_IN))
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args(words)
    bugs = [
        bug
        for bug in BUGS
        if not chosen.words or any(word in bug.name for word in chosen.words)
    ]
    report = Report()
    report.title("Planted bugs")
    with booted() as target, Board(target.scratch / "complaints") as board:
        found = look(target, board, chosen.seconds, len(LOOKED_IN))
        if found:
            report.must(f"found without any bug: {found}", 1, 0)
            return 1
        missed = 0
        for bug in bugs:
            began = time.monotonic()
            with planted(target, bug):
                found = look(target, board, chosen.seconds, chosen.rounds, bug.scenario)
            missed += not found
            took = time.monotonic() - began
            report.show(f"{bug.name[:60]}", took, f"s  {found or 'MISSED'}")
        report.at_least("planted bugs found", len(bugs) - missed, len(bugs))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
