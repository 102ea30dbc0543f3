"""What programs use: lockd's clients and command, beside the other ways to lock."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

import trio

import lockd
from benchmarks import daemons, peers
from benchmarks.comparisons import IN_FLIGHT, LOCKSPACE_OF_KIND, times
from benchmarks.daemons import Daemon, SkipError
from benchmarks.installed import LOCKCTL, as_installed, installing_python
from benchmarks.measure import Round, repeat, take_turns
from benchmarks.table import Goal, Result
from benchmarks.wires import names
from lockd import aio

_PEERS: Final[
    dict[str, Callable[[Path], AbstractContextManager[Callable[[], None]]]]
] = {
    "redis-py's Lock": peers.redis_lock_pair,
    "Redis SET NX, DEL": peers.redis_pair,
    "filelock": peers.filelock_pair,
    "open, flock(2), close": peers.flock_pair,
}

_ASYNC_GOAL: Final = 120
_WITH_GOAL: Final = 55
_BEST_PEERS: Final = ("redis-py's Lock", "filelock")
"""`with` must take less time than these."""


def clients_row(directory: Path) -> Iterator[Result]:
    """A lock from Python: `with` and `async with`, beside what others offer."""
    missing: list[str] = []
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        rounds: dict[str, Round] = {}
        for kind in LOCKSPACE_OF_KIND:
            pair = stack.enter_context(_library_pair(daemon, kind))
            rounds[f"with, {kind}"] = repeat(pair)
        rounds["trio"] = partial(_in_trio, daemon)
        rounds["asyncio"] = partial(_in_asyncio, daemon)
        for number, (name, open_pair) in enumerate(_PEERS.items()):
            try:
                pair = stack.enter_context(open_pair(directory / f"peer{number}"))
            except SkipError as reason:
                missing.append(f"{name}: {reason}")
            else:
                rounds[name] = repeat(pair)
        costs = take_turns(rounds)
    for peer in (name for name in _PEERS if name in rounds):
        goal = Goal(1) if peer in _BEST_PEERS else None
        what = "`with client.lock()`, memory"
        yield times(what, costs, "with, memory", peer, goal)
    if "filelock" in rounds:
        what = "`with client.lock()`, directory"
        yield times(what, costs, "with, directory", "filelock")
    microseconds = {
        "`with client.lock()`, memory": ("with, memory", _WITH_GOAL),
        "`async with client.hold()`, memory, trio": ("trio", _ASYNC_GOAL),
        "`async with client.hold()`, memory, asyncio": ("asyncio", _ASYNC_GOAL),
    }
    for what, (ours, most) in microseconds.items():
        yield Result.of_times(what, costs[ours], Goal(most))
    if missing:
        raise SkipError("; ".join(missing))


def lockctl_row(directory: Path) -> Iterator[Result]:
    python = installing_python()
    lockctl = as_installed(LOCKCTL, directory / "lockctl")

    def run(*command: str) -> Round:
        return repeat(
            lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        )

    with daemons.lockd(directory / "lockd") as daemon:
        to_daemon = ["--socket", str(daemon.socket)]
        rounds = {
            "python3 -c pass": run(python, "-c", "pass"),
            "lockctl": run(*lockctl, *to_daemon, "run", "nightly", "--", "true"),
        }
        if flock := shutil.which("flock"):
            rounds["flock(1)"] = run(flock, str(directory / "nightly"), "true")
        costs = take_turns(rounds)
    what = "`lockctl run NAME -- true`"
    yield times(what, costs, "lockctl", "python3 -c pass", Goal(2.6))
    if not flock:
        raise SkipError("flock(1) comes with Debian's util-linux")
    yield times(what, costs, "lockctl", "flock(1)")


@contextmanager
def _library_pair(daemon: Daemon, kind: str) -> Iterator[Callable[[], None]]:
    with lockd.connect(daemon.socket) as client:
        space = LOCKSPACE_OF_KIND[kind]
        locks = cycle([client.lock(n, lockspace=space) for n in names(IN_FLIGHT)])

        def pair() -> None:
            with next(locks):
                pass

        yield pair


def _in_trio(daemon: Daemon, seconds: float) -> float:
    return trio.run(_hold_all_the_time, daemon, seconds)


def _in_asyncio(daemon: Daemon, seconds: float) -> float:
    return asyncio.run(_hold_all_the_time(daemon, seconds))


async def _hold_all_the_time(daemon: Daemon, seconds: float) -> float:
    """Returns what a pair takes; to start the loop and to connect do not count."""
    async with aio.connect(daemon.socket) as client:
        resources = cycle(names(IN_FLIGHT))
        count = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            async with client.hold(next(resources)):
                pass
            count += 1
        return elapsed / count
