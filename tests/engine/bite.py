"""Plants each bug of planted_bugs.py into a copy of the source and runs its tests.

    PYTHONPATH=tests python -m engine.bite [--third 0|1|2] [WORD ...]

Its tests must find every one of them, or the exit status is 1. With words,
only the bugs are planted whose names contain one of them; with a third, every
third one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from engine.planted_bugs import PLANTED_BUGS, STATEFUL, PlantedBug
from support.places import ROOT

STORIES = "tests/engine"
ANCHORED = (
    f"{STATEFUL}::test_nothing_unsafe_is_seen_through_anchors",
    f"{STATEFUL}::test_engine_agrees_with_the_naive_model",
)
"""The same with the more likely one first, where anchors or deaths are needed."""

PLACES = "tests/engine/test_planted_bugs.py"
PATIENCE = 90.0
"""Seconds for one run of the tests: a planted bug may also make the engine hang."""

FAILED = 1
"""pytest's exit status when tests ran and failed, and not for any other reason."""


class Bite(NamedTuple):
    """What became of one planted bug."""

    bug: str
    found: bool
    how: str
    seconds: float


def run_tests(tree: Path, *arguments: str) -> tuple[bool, str]:
    """Tells whether the tests of a copied tree fail, and on what."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    if arguments[0].startswith(STORIES):
        command.append("--no-shrink")
    try:
        done = subprocess.run(
            [*command, "--tb=short", *arguments],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree / "src")},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return True, f"did not end within {PATIENCE:.0f} s"
    if done.returncode not in (0, FAILED):
        why = f"{done.stdout}{done.stderr}"
        raise SystemExit(f"pytest ended with status {done.returncode}:\n{why}")
    return done.returncode == FAILED, _cause(done.stdout)


def _cause(report: str) -> str:
    said = [line[1:].strip() for line in report.splitlines() if line[:2] == "E "]
    for error, more in pairwise(said):
        if "BrokenLawError" in error:
            return more
        if "Error" in error:
            return error.removeprefix("AssertionError: ")
    return said[0] if said else ""


@contextmanager
def copied(origin: Path) -> Iterator[Path]:
    """Copies all that the engine's tests need to where it may be changed."""
    with tempfile.TemporaryDirectory(prefix="lockd-bite-") as directory:
        tree = Path(directory)
        for name in ("src", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin / name, tree / name, ignore=ignored)
        shutil.copy(origin / "pyproject.toml", tree)
        yield tree


def bite(origin: Path, bug: PlantedBug) -> Bite:
    """Plants one bug and looks for it, with the stories too if all else misses it."""
    if (count := bug.count(origin / "src")) != 1:
        raise SystemExit(f"{bug.name}: its text is there {count} times, not once")
    began = time.monotonic()
    with copied(origin) as tree:
        bug.plant(tree / "src")
        found, how = run_tests(tree, *(ANCHORED if bug.has_anchors else [bug.tests]))
        if not found and bug.tests == STATEFUL:
            ignored = [f"--ignore={path}" for path in (STATEFUL, PLACES)]
            stories = run_tests(tree, STORIES, *ignored)
            how = "MISSED, but for the stories" if stories[0] else "MISSED"
    return Bite(bug.name, found, how, time.monotonic() - began)


def main(arguments: Sequence[str]) -> int:
    """Prints a table of the bugs and how each was found."""
    parser = argparse.ArgumentParser(prog="bite")
    parser.add_argument("--third", type=int, choices=(0, 1, 2))
    parser.add_argument("words", nargs="*", metavar="WORD")
    given = parser.parse_args(arguments)
    chosen = PLANTED_BUGS if given.third is None else PLANTED_BUGS[given.third :: 3]
    words = given.words or [""]
    bugs = [bug for bug in chosen if any(word in bug.name for word in words)]
    if not bugs:
        parser.error("no planted bug has such a name")
    missed = 0
    with copied(ROOT) as origin, ThreadPoolExecutor(max_workers=2) as pool:
        for tests in sorted({bug.tests for bug in bugs}):
            failed, how = run_tests(origin, tests)
            if failed:
                raise SystemExit(f"the tests fail without any planted bug: {how}")
        for result in pool.map(partial(bite, origin), bugs):
            missed += not result.found
            how = result.how or ("" if result.found else "MISSED")
            line = f"{result.bug:56} {result.seconds:5.1f} s  {how:.60}"
            print(line, flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
