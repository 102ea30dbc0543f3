"""What the daemon tells of itself to those who collect figures (docs/metrics.md).

Only reads: the figures are kept where things happen (`counts`, the engine, and whoever
does what is counted). The labels are lockspaces, codes, methods and the like, of which
there are few; never a resource, a user or a client.
"""

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from msgspec import to_builtins

from lockd import __version__
from lockd.daemon.activity.counts import CAUSES, Histogram, Space
from lockd.daemon.assembly import Parts
from lockd.daemon.clients.limits import used_descriptors
from lockd.daemon.metrics.exposition import Family, Format, Kind, Value, render
from lockd.daemon.replies import statistics
from lockd.daemon.system.listener import ROLES
from lockd.lockspaces.files import FileLockspace

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """All metrics of a daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started = time.time()
        self._process_started = self._started - process_age()

    def text(self, wanted: Format = "openmetrics") -> str:
        """Returns all metrics as they are at this moment, for admins."""
        return render(self._families(lambda name: name), wanted)

    def public_text(self, wanted: Format = "openmetrics") -> str:
        """Returns the same for everybody.

        Lockspaces that not everybody may know of stand together, without a name.
        """
        is_known = self._parts.access.is_known_to_all
        return render(self._families(lambda x: x if is_known(x) else ""), wanted)

    def _families(self, shown: Callable[[str], str]) -> Iterator[Family]:
        yield from self._program()
        yield from self._lockspaces(shown)
        yield from self._requests()
        yield from self._limits()
        yield from self._loop()
        yield from self._processes()
        yield from self._survival()

    def _program(self) -> Iterator[Family]:
        build = {"version": __version__, "python": platform.python_version()}
        yield Family("lockd_build", "info", "The program that runs.", [(build, 1)])
        yield _one(
            "lockd_start_time_seconds",
            "gauge",
            "When this program began to serve, since 1970: all counters are from then.",
            self._started,
        )
        yield _one(
            "lockd_epoch",
            "gauge",
            "How often locks began anew: no start that goes on raises it.",
            self._parts.epoch.number,
        )
        yield _one(
            "process_start_time_seconds",
            "gauge",
            "When the process was started, since 1970; a live upgrade is no start.",
            self._process_started,
        )
        times = os.times()
        yield _one(
            "process_cpu_seconds",
            "counter",
            "Processor time of the process.",
            times.user + times.system,
        )
        yield _one(
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the process.",
            resident_bytes(),
        )
        yield _one(
            "process_open_fds",
            "gauge",
            "Descriptors that are open.",
            open_descriptors(),
        )
        yield _one(
            "process_max_fds",
            "gauge",
            "Descriptors that may be open (LimitNOFILE).",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )

    def _lockspaces(self, shown: Callable[[str], str]) -> Iterator[Family]:
        """Goes through the metrics of lockspaces.

        Args:
            shown: under which name a lockspace is told; several may have the same.
        """
        service = self._parts
        spaces: dict[str, list[Space]] = {}
        for space in service.answers.counts.spaces.values():
            spaces.setdefault(shown(space.name), []).append(space)
        now = time.monotonic()

        def of_each(name: str, kind: Kind, about: str, value: str) -> Family:
            found = [
                (_label(x), _total([getattr(space, value) for space in same]))
                for x, same in spaces.items()
            ]
            return Family(name, kind, about, found)

        yield of_each("lockd_held", "gauge", "Locks that are held.", "held_count")
        waiting = [
            (_label(x), sum(len(space.waiting) for space in same))
            for x, same in spaces.items()
        ]
        yield Family(
            "lockd_waiting", "gauge", "Requests that wait for a lock.", waiting
        )
        oldest = [
            (_label(x), max(_longest_wait(space, now) for space in same))
            for x, same in spaces.items()
        ]
        yield Family(
            "lockd_longest_wait_seconds",
            "gauge",
            "How long the request has waited that waits longest now.",
            oldest,
        )
        anchors: Counter[str] = Counter()
        for name, anchored in service.runtime.lockspaces.items():
            if isinstance(anchored, FileLockspace):
                anchors[shown(name)] += anchored.anchor_count
        yield Family(
            "lockd_anchors",
            "gauge",
            "Lock files that are open.",
            [(_label(x), number) for x, number in anchors.items()],
        )
        yield of_each("lockd_grants", "counter", "Locks that were granted.", "granted")
        yield of_each(
            "lockd_conversions", "counter", "Locks that were converted.", "converted"
        )
        ends = [
            (_label(x) | {"cause": cause}, sum(space.ends[cause] for space in same))
            for x, same in spaces.items()
            for cause in CAUSES
        ]
        yield Family("lockd_ends", "counter", "Locks that ended, by cause.", ends)
        yield of_each(
            "lockd_wait_seconds",
            "histogram",
            "From the request to the grant, of each lock that was granted.",
            "waits",
        )
        yield of_each(
            "lockd_hold_seconds",
            "histogram",
            "From the grant to its end, of each lock that ended.",
            "holds",
        )
        yield of_each(
            "lockd_slow_waits", "counter", "Waits over slow_wait.", "slow_waits"
        )
        yield of_each(
            "lockd_slow_holds", "counter", "Holds over slow_hold.", "slow_holds"
        )

    def _requests(self) -> Iterator[Family]:
        service = self._parts
        counts = service.answers.counts
        at = Counter(peer.role for peer in service.answers.peers.values())
        roles = [role for role in ROLES if role != "metrics"]
        yield Family(
            "lockd_sessions",
            "gauge",
            "Clients that are connected, by socket.",
            [({"socket": role}, at[role]) for role in roles],
        )
        yield _by("lockd_requests", "Requests, by method.", "method", counts.requests)
        yield _by(
            "lockd_refusals", "Errors that clients were told.", "code", counts.refusals
        )
        yield _one(
            "lockd_turned_away",
            "counter",
            "Clients that were not taken in: a limit, or no descriptor left.",
            counts.turned_away,
        )

    def _limits(self) -> Iterator[Family]:
        limiter = self._parts.limits
        limits = to_builtins(limiter.limits)
        usage = statistics.limits(limiter, self._parts.keeping)
        yield Family(
            "lockd_limit",
            "gauge",
            "What is allowed ([limits]).",
            [({"limit": name}, number) for name, number in limits.items()],
        )
        yield Family(
            "lockd_limit_used",
            "gauge",
            "How much of it is used; of limits for users, by the fullest one.",
            [
                ({"limit": name}, usage[name]["used"] or 0)
                for name in limits
                if name in usage
            ],
        )

    def _loop(self) -> Iterator[Family]:
        yield _one(
            "lockd_turn_seconds",
            "histogram",
            "How long a turn of the loop took, for which everybody else waits.",
            self._parts.answers.counts.turns,
        )

    def _processes(self) -> Iterator[Family]:
        processes = self._parts.runtime.processes
        yield _one(
            "lockd_fencings",
            "counter",
            "Processes that were told to end before their locks are given on.",
            processes.begun,
        )
        yield _one(
            "lockd_fencing_kills",
            "counter",
            "Processes that did not, and were sent SIGKILL.",
            processes.killed,
        )
        yield _one(
            "lockd_fencings_outstanding",
            "gauge",
            "Processes that are not dead yet.",
            processes.begun - processes.fenced,
        )

    def _survival(self) -> Iterator[Family]:
        life = self._parts.life
        handovers = {"upgrade": life.upgrades, "revival": life.revivals}
        yield _by(
            "lockd_handovers",
            "How often another program went on with everything; never begins anew.",
            "kind",
            handovers,
        )
        yield Family(
            "lockd_handover_seconds",
            "gauge",
            "For how long clients waited at the handover to this program.",
            [] if life.took_over is None else [({}, life.took_over)],
        )
        kept = statistics.kept(self._parts.engine, self._parts.keeping)
        yield _one(
            "lockd_survives_crash",
            "gauge",
            "Whether all of it would go on if the process were killed now.",
            int(kept["by"] is not None),
        )
        yield _one(
            "lockd_kept_descriptors",
            "gauge",
            "Descriptors that are kept outside the process.",
            kept["in_flight"],
        )
        yield _one("lockd_kept_bytes", "gauge", "Records that are kept.", kept["bytes"])
        yield _one(
            "lockd_complaint",
            "gauge",
            "Whether the status line tells of something to be mended.",
            int(bool(self._parts.health.problems)),
        )


def _label(name: str) -> dict[str, str]:
    return {"lockspace": name} if name else {}


def _total(values: list[Value]) -> Value:
    first = values[0]
    if not isinstance(first, Histogram):
        return sum(x for x in values if not isinstance(x, Histogram))
    total = Histogram(first.bounds)
    for value in values:
        assert isinstance(value, Histogram)
        total.counts = [x + y for x, y in zip(total.counts, value.counts, strict=True)]
        total.total += value.total
    return total


def _longest_wait(space: Space, now: float) -> float:
    oldest = space.waiting.oldest()
    return 0.0 if oldest is None else max(0.0, now - oldest.since)


def _one(name: str, kind: Kind, about: str, value: Value) -> Family:
    return Family(name, kind, about, [({}, value)])


def _by(name: str, about: str, label: str, numbers: Mapping[str, int]) -> Family:
    return Family(name, "counter", about, [({label: x}, n) for x, n in numbers.items()])


# What the kernel says of this process.


def open_descriptors() -> int:
    """Returns how many descriptors are open.

    Where the kernel does not say (before Linux 6.2), what the limits go by. To count
    them would take longer, the more there are.
    """
    return os.stat("/proc/self/fd").st_size or used_descriptors()


def resident_bytes() -> int:
    """Returns how much memory is ours and not swapped out (proc_pid_statm(5))."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def process_age() -> float:
    """Returns for how many seconds the process has been there (proc_pid_stat(5))."""
    with open("/proc/self/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19]) / TICKS
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
