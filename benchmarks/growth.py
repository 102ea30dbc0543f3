"""What grows with what: locks that are held, who waits, who is connected."""

import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from benchmarks import daemons
from benchmarks.comparisons import IN_FLIGHT, LOCKSPACE_OF_KIND, opened, times
from benchmarks.cpus import Cpus, use
from benchmarks.daemons import Daemon, SkipError
from benchmarks.measure import Round, Spread, median_of, repeat, take_turns
from benchmarks.table import Goal, Result
from benchmarks.wires import LockdWire, names, one_by_one
from campaigns import recovery, tools, upgrade
from support.wire_client import WireClient

_HELD_BY_OTHERS: Final = 10_000
_LOCKS_PER_SESSION: Final = 500
_BATCH: Final = 100
_LOCKS_OF_A_GUEST: Final = 4
_WAITERS: Final = 1_000
_WEIGHED: Final = 50_000
_WEIGHED_SESSIONS: Final = 1_000
_WEIGHINGS: Final = 3
_UPGRADES: Final = 10
_KILLS: Final = 20
_SPARE_DESCRIPTORS: Final = 200


def held_memory_row(directory: Path) -> Iterator[Result]:
    return _held_row(directory, "memory")


def held_directory_row(directory: Path) -> Iterator[Result]:
    _need_descriptors(_HELD_BY_OTHERS)
    return _held_row(directory, "directory")


def _held_row(directory: Path, kind: str) -> Iterator[Result]:
    """What many locks held by others cost; two daemons, so that rounds alternate."""
    with ExitStack() as stack:
        empty = stack.enter_context(daemons.lockd(directory / "empty"))
        full = stack.enter_context(daemons.lockd(directory / "full"))
        _hold(_sessions(stack, full, kind, _HELD_BY_OTHERS), _HELD_BY_OTHERS)
        rounds: dict[str, Round] = {}
        for name, daemon in ("none", empty), ("many", full):
            wire = opened(stack, daemon, kind)
            rounds[f"{name} held"] = one_by_one(wire, names(IN_FLIGHT))
            guest = _guest(daemon, LOCKSPACE_OF_KIND[kind])
            rounds[f"{name} held, session"] = repeat(guest)
        costs = take_turns(rounds)
    held = f"with {_HELD_BY_OTHERS:,} held, {kind}"
    pair = f"pair {held}"
    yield times(pair, costs, "many held", "none held", Goal(1.1))
    session = f"session of {_LOCKS_OF_A_GUEST} locks {held}"
    ours, theirs = "many held, session", "none held, session"
    yield times(session, costs, ours, theirs, Goal(1.1))


def _guest(daemon: Daemon, lockspace: str) -> Callable[[], None]:
    """A session as the start and stop of a virtual machine makes it.

    The next one waits for the same locks, so the cost of the end counts too.
    """
    resources = names(_LOCKS_OF_A_GUEST, "guest")
    owner = {"owner": {"name": "guest", "pid": os.getpid()}}

    def session() -> None:
        with closing(daemon.wire(lockspace)) as wire:
            wire.call("register", owner)
            for name in resources:
                wire.call("acquire", {"lockspace": lockspace, "resource": name})

    return session


def handover_row(directory: Path) -> Iterator[Result]:
    """From the holder's release to the grant of the first who waits."""
    _need_descriptors(_WAITERS)
    (name,) = names(1)
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        line = deque(opened(stack, daemon, "memory") for _ in range(_WAITERS + 1))
        line[0].call("acquire", {"resource": name})
        for wire in islice(line, 1, None):
            _enqueue(wire, name)
        idle = opened(stack, daemon, "memory")
        costs = take_turns(
            {
                "round trip": median_of(lambda: _round_trip(idle, name)),
                "hand-over": median_of(lambda: _hand_over(line, name)),
            }
        )
    what = f"hand-over to the first of {_WAITERS:,} waiters"
    yield times(what, costs, "hand-over", "round trip", Goal(3))


def _enqueue(wire: LockdWire, name: str) -> None:
    wire.send(wire.encode(1, "acquire", {"resource": name}))
    _round_trip(wire, name)  # its answer says that the acquire is in the queue


def _round_trip(wire: LockdWire, name: str) -> float:
    start = time.perf_counter()
    wire.call("check", {"resource": name, "fencing_token": 1})
    return time.perf_counter() - start


def _hand_over(line: deque[LockdWire], name: str) -> float:
    """Lets the first in line release and go to the end of the line."""
    holder, heir = line[0], line[1]
    release = holder.encode_release(name, 2)
    start = time.perf_counter()
    holder.send(release)
    heir.receive()
    took = time.perf_counter() - start
    holder.receive()
    _enqueue(holder, name)
    line.rotate(-1)
    return took


def weight_row(directory: Path) -> Iterator[Result]:
    """What the daemon's memory grows by for each lock held and each session."""
    _need_descriptors(_WEIGHED_SESSIONS)
    locks = Spread.of([_weigh(directory / f"locks{n}") for n in range(_WEIGHINGS)])
    sessions = Spread.of(
        [_weigh_sessions(directory / f"sessions{n}") for n in range(_WEIGHINGS)]
    )
    what = "daemon's memory for a "
    weights = {
        f"held lock, {_WEIGHED:,} held": (locks, 512),
        f"session, {_WEIGHED_SESSIONS:,} open": (sessions, 6 * 1024),
    }
    for of, (spread, most) in weights.items():
        weight = f"{spread.median:.0f} B"
        yield Result(what + of, weight, "-", spread, Goal(most), "B")


def _weigh(directory: Path) -> float:
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory))
        sessions = _sessions(stack, daemon, "memory", _WEIGHED)
        before = daemon.rss_bytes()
        _hold(sessions, _WEIGHED)
        return (daemon.rss_bytes() - before) / _WEIGHED


def _weigh_sessions(directory: Path) -> float:
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory))
        _registered(stack, daemon)
        before = daemon.rss_bytes()
        for _ in range(_WEIGHED_SESSIONS):
            _registered(stack, daemon)
        return (daemon.rss_bytes() - before) / _WEIGHED_SESSIONS


def _registered(stack: ExitStack, daemon: Daemon) -> None:
    """Opens a session that has said all that a client can say of itself."""
    wire = opened(stack, daemon, "memory")
    wire.call("hello", {"protocol": 1, "client": "benchmark"})
    wire.call("register", {"owner": {"name": "benchmark", "pid": os.getpid()}})


def upgrade_row(directory: Path) -> Iterator[Result]:
    """How long a client waits at most while the daemon is upgraded."""
    use(Cpus.FREE)
    with tools.daemon() as process, WireClient(process.socket) as probe:
        held = upgrade.hold(process.socket, _HELD_BY_OTHERS)
        pauses = [
            upgrade.upgrade_once(process, probe, number)
            for number in range(1, _UPGRADES + 1)
        ]
        for client in {client for client, *_ in held}:
            client.close()
    yield Result(
        f"live upgrade, {_HELD_BY_OTHERS:,} held: longest of {_UPGRADES} pauses",
        f"half {statistics.median(pauses):.3f} s",
        "-",
        Spread(max(pauses), min(pauses), max(pauses)),
        Goal(0.25),
        "s",
        Cpus.FREE.value,
    )


def crash_row(directory: Path) -> Iterator[Result]:
    """How long it takes after kill -9 until somebody else gets a lock."""
    _need_descriptors(recovery.CONNECTIONS)
    use(Cpus.FREE)
    times_of_kills, lost = recovery.kill_again_and_again(directory, _KILLS)
    if lost:
        raise RuntimeError(f"{lost} locks were lost")
    held = recovery.CONNECTIONS * recovery.LOCKS_EACH
    what = f"kill -9, {held:,} held, {recovery.CONNECTIONS:,} clients: "
    spread = Spread.of(times_of_kills)
    slowest = max(times_of_kills)
    for which, figure, most in (
        ("half", spread, 0.25),
        (f"slowest of {_KILLS}", Spread(slowest, slowest, slowest), 0.4),
    ):
        shown = f"{figure.median:.3f} s"
        cpus = Cpus.FREE.value
        yield Result(what + which, shown, "-", figure, Goal(most), "s", cpus)


def _sessions(
    stack: ExitStack, daemon: Daemon, kind: str, locks: int
) -> list[LockdWire]:
    """Opens the sessions that are to hold so many locks."""
    count = locks // _LOCKS_PER_SESSION
    return [opened(stack, daemon, kind) for _ in range(count)]


def _hold(sessions: list[LockdWire], locks: int) -> None:
    resources = names(locks, "held")
    starts = range(0, locks, _BATCH)
    for wire, start in zip(cycle(sessions), starts, strict=False):
        batch = resources[start : start + _BATCH]
        wire.send(b"".join(wire.encode_acquire(name, 0) for name in batch))
        answers = 0
        while answers < len(batch):
            answers += len(wire.receive())


def _need_descriptors(count: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < count + _SPARE_DESCRIPTORS:
        raise SkipError(
            f"{count:,} descriptors are needed, `ulimit -n` allows {limit:,}"
        )
