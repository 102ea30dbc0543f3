"""What is measured, row by row, and the figures that must be reached."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import lockd
from benchmarks import daemons, guests, peers
from benchmarks.daemons import Daemon, SkipError
from benchmarks.measure import Duel, Round, Spread, median_of, repeat, take_turns
from benchmarks.table import Goal, Result
from benchmarks.wires import LockdWire, VirtlockdWire, in_flight, names, one_by_one

_IN_FLIGHT: Final = 50
_HELD_BY_OTHERS: Final = 10_000
_LOCKS_PER_SESSION: Final = 500
_BATCH: Final = 100
_LOCKS_OF_A_GUEST: Final = 4
_GUESTS: Final = (1, 50)
_WAITERS: Final = 1_000
_WEIGHED: Final = 50_000
_WEIGHINGS: Final = 3
_SPARE_DESCRIPTORS: Final = 200

_LOCKSPACE_OF_KIND: Final = {"memory": "default", "directory": daemons.DIRECTORY}

Row = Callable[[Path], Iterator[Result]]
"""Measures in a directory of its own; raises `SkipError` where a peer is absent."""


def one_by_one_row(directory: Path) -> Iterator[Result]:
    with ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        library = stack.enter_context(_library_pair(daemon))
        rounds = {"virtlockd": one_by_one(virtlockd, names(_IN_FLIGHT))}
        for kind in _LOCKSPACE_OF_KIND:
            wire = _opened(stack, daemon, kind)
            rounds[kind] = one_by_one(wire, names(_IN_FLIGHT))
        rounds["library"] = repeat(library)
        costs = take_turns(rounds)
    what = "acquire + release one by one, "
    yield _times(what + "directory", costs, "directory", "virtlockd", Goal(0.9))
    yield _times(what + "memory", costs, "memory", "virtlockd")
    yield _times("  directory, through `import lockd`", costs, "library", "virtlockd")


def look_row(directory: Path) -> Iterator[Result]:
    """What it costs to look who else has a file locked."""
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory))
        paths = [str(daemon.locks / name) for name in names(_IN_FLIGHT)]
        for path in paths:
            Path(path).touch()
        rounds = {
            lockspace: one_by_one(stack.enter_context(closing(wire)), paths)
            for lockspace in (daemons.LOOKING, daemons.NOT_LOOKING)
            for wire in [daemon.wire(lockspace)]
        }
        costs = take_turns(rounds)
    what = "acquire + release of a file, with a look"
    yield _times(what, costs, daemons.LOOKING, daemons.NOT_LOOKING, Goal(1.05))


def in_flight_row(directory: Path) -> Iterator[Result]:
    with ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        rounds = {"virtlockd": in_flight(virtlockd, names(_IN_FLIGHT))}
        for kind in _LOCKSPACE_OF_KIND:
            wire = _opened(stack, daemon, kind)
            rounds[kind] = in_flight(wire, names(_IN_FLIGHT))
        costs = take_turns(rounds)
    for kind, least in ("directory", 1.5), ("memory", 3):
        duel = Duel(costs[kind], costs["virtlockd"])
        yield Result(
            f"{_IN_FLIGHT} requests in flight, {kind}",
            _rate(duel.ours),
            f"virtlockd {_rate(duel.theirs)}",
            duel.rate_ratio(),
            Goal(least, at_least=True),
        )


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
            wire = _opened(stack, daemon, kind)
            rounds[f"{name} held"] = one_by_one(wire, names(_IN_FLIGHT))
            guest = _guest(daemon, _LOCKSPACE_OF_KIND[kind])
            rounds[f"{name} held, session"] = repeat(guest)
        costs = take_turns(rounds)
    held = f"with {_HELD_BY_OTHERS:,} held, {kind}"
    pair = f"acquire + release {held}"
    yield _times(pair, costs, "many held", "none held", Goal(1.2))
    session = f"session of {_LOCKS_OF_A_GUEST} locks {held}"
    ours, theirs = "many held, session", "none held, session"
    yield _times(session, costs, ours, theirs, Goal(1.2))


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


def kept_row(directory: Path) -> Iterator[Result]:
    """What it costs that all of it would survive a crash."""
    ways = {"one by one": one_by_one, f"{_IN_FLIGHT} in flight": in_flight}
    with ExitStack() as stack:
        kept = stack.enter_context(daemons.lockd_that_is_kept(directory / "kept"))
        plain = stack.enter_context(daemons.lockd(directory / "plain"))
        for way, rounds_of in ways.items():
            for kind in _LOCKSPACE_OF_KIND:
                rounds = {
                    name: rounds_of(_opened(stack, daemon, kind), names(_IN_FLIGHT))
                    for name, daemon in (("kept", kept), ("not kept", plain))
                }
                costs = take_turns(rounds)
                what = f"acquire + release {way}, {kind}, kept"
                yield _times(what, costs, "kept", "not kept", Goal(1.4))


def guests_row(directory: Path) -> Iterator[Result]:
    """Guests that start with four disks and stop, in libvirt's protocol, to both."""
    with ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        path = directory / "virtlockd" / "virtlockd.sock"
        ours = VirtlockdWire(daemon.virtlockd_socket, daemon.locks)
        stack.enter_context(closing(ours))
        contenders = {
            "lockd": (daemon.virtlockd_socket, ours),
            "virtlockd": (path, virtlockd),
        }
        owners = [
            stack.enter_context(guests.Process(path)) for _ in range(max(_GUESTS))
        ]
        for count in _GUESTS:
            ends: dict[str, dict[str, Round]] = {"releases": {}, "is killed": {}}
            for name, (socket, wire) in contenders.items():
                at_once = [
                    guests.Guest.of(
                        wire, owner.pid, names(_LOCKS_OF_A_GUEST, f"{owner.pid}-")
                    )
                    for owner in owners[:count]
                ]
                ends["releases"][name] = guests.starts_and_stops(socket, at_once)
                ends["is killed"][name] = guests.starts_and_deaths(
                    socket, at_once, wire
                )
            for how, rounds in ends.items():
                costs = take_turns(rounds)
                duel = Duel(costs["lockd"], costs["virtlockd"])
                yield Result(
                    f"guest starts, {how}; {count} at a time",
                    _rate(duel.ours, "guests"),
                    f"virtlockd {_rate(duel.theirs, 'guests')}",
                    duel.rate_ratio(),
                    Goal(1, at_least=True),
                )


def handover_row(directory: Path) -> Iterator[Result]:
    """From the holder's release to the grant of the first who waits."""
    _need_descriptors(_WAITERS)
    (name,) = names(1)
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        line = deque(_opened(stack, daemon, "memory") for _ in range(_WAITERS + 1))
        line[0].call("acquire", {"resource": name})
        for wire in islice(line, 1, None):
            _enqueue(wire, name)
        idle = _opened(stack, daemon, "memory")
        costs = take_turns(
            {
                "round trip": median_of(lambda: _round_trip(idle, name)),
                "hand-over": median_of(lambda: _hand_over(line, name)),
            }
        )
    what = f"hand-over to the first of {_WAITERS:,} waiters"
    yield _times(what, costs, "hand-over", "round trip", Goal(3))


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
    """What the daemon's memory grows by for each lock that is held."""
    spread = Spread.of([_weigh(directory / str(n)) for n in range(_WEIGHINGS)])
    what = f"daemon's memory per held `memory` lock, {_WEIGHED:,} held"
    yield Result(what, f"{spread.median * 1024:.0f} B", "1 KiB", spread, Goal(1))


def _weigh(directory: Path) -> float:
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory))
        sessions = _sessions(stack, daemon, "memory", _WEIGHED)
        before = daemon.rss_bytes()
        _hold(sessions, _WEIGHED)
        return (daemon.rss_bytes() - before) / _WEIGHED / 1024


def lockctl_row(directory: Path) -> Iterator[Result]:
    script = Path(sys.executable).parent / "lockctl"
    module = [sys.executable, "-m", "lockd.ctl.main"]
    lockctl = [str(script)] if script.exists() else module
    # As installed: modules are compiled once, whatever this environment says.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(directory / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(*command: str) -> Round:
        return repeat(
            lambda: subprocess.run(
                command, check=True, stdin=subprocess.DEVNULL, env=environment
            )
        )

    with daemons.lockd(directory / "lockd") as daemon:
        to_daemon = ["--socket", str(daemon.socket)]
        costs = take_turns(
            {
                "python3 -c pass": run(sys.executable, "-c", "pass"),
                "lockctl": run(*lockctl, *to_daemon, "run", "nightly", "--", "true"),
            }
        )
    what = "`lockctl run NAME -- true`"
    yield _times(what, costs, "lockctl", "python3 -c pass", Goal(6))


def filelock_row(directory: Path) -> Iterator[Result]:
    return _peer_row(directory, "filelock", peers.filelock_pair)


def flock_row(directory: Path) -> Iterator[Result]:
    return _peer_row(directory, "open, flock, close", peers.flock_pair)


def redis_row(directory: Path) -> Iterator[Result]:
    return _peer_row(directory, "Redis SET NX", peers.redis_pair)


def _peer_row(
    directory: Path,
    name: str,
    open_pair: Callable[[Path], AbstractContextManager[Callable[[], None]]],
) -> Iterator[Result]:
    with ExitStack() as stack:
        peer = stack.enter_context(open_pair(directory / "peer"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        ours = stack.enter_context(_library_pair(daemon))
        costs = take_turns({"lockd": repeat(ours), name: repeat(peer)})
    yield _times("`import lockd`, directory", costs, "lockd", name)


@contextmanager
def _library_pair(daemon: Daemon) -> Iterator[Callable[[], None]]:
    with lockd.connect(daemon.socket) as client:
        space = daemons.DIRECTORY
        locks = cycle([client.lock(n, lockspace=space) for n in names(_IN_FLIGHT)])

        def pair() -> None:
            with next(locks):
                pass

        yield pair


def _opened(stack: ExitStack, daemon: Daemon, kind: str) -> LockdWire:
    return stack.enter_context(closing(daemon.wire(_LOCKSPACE_OF_KIND[kind])))


def _sessions(
    stack: ExitStack, daemon: Daemon, kind: str, locks: int
) -> list[LockdWire]:
    """Opens the sessions that are to hold so many locks."""
    count = locks // _LOCKS_PER_SESSION
    return [_opened(stack, daemon, kind) for _ in range(count)]


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


def _times(
    what: str,
    costs: dict[str, list[float]],
    ours: str,
    theirs: str,
    goal: Goal | None = None,
) -> Result:
    duel = Duel(costs[ours], costs[theirs])
    against = f"{theirs} {_time(duel.theirs)}"
    return Result(what, _time(duel.ours), against, duel.cost_ratio(), goal)


def _time(costs: list[float]) -> str:
    microseconds = statistics.median(costs) * 1e6
    if microseconds < 10_000:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1000:.1f} ms"


def _rate(costs: list[float], unit: str = "pairs") -> str:
    return f"{1 / statistics.median(costs):,.0f} {unit}/s"


ROWS: Final[dict[str, Row]] = {
    "one-by-one": one_by_one_row,
    "look": look_row,
    "in-flight": in_flight_row,
    "kept": kept_row,
    "guests": guests_row,
    "held-memory": held_memory_row,
    "held-directory": held_directory_row,
    "handover": handover_row,
    "weight": weight_row,
    "lockctl": lockctl_row,
    "filelock": filelock_row,
    "flock": flock_row,
    "redis": redis_row,
}
