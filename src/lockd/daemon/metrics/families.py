"""All metrics of the daemon (docs/reference/metrics.md).

`FAMILIES` is the table of all metrics. It only reads values; `counts`, the engine and
other parts count them. Labels are lockspaces, codes, methods and the like, which are
few; never a resource, a user or a client.
"""

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import add
from typing import Any, Final, NamedTuple

from msgspec import to_builtins

from lockd import __version__, compilation
from lockd.daemon.activity.counts import CAUSES, Space
from lockd.daemon.assembly import Parts
from lockd.daemon.clients.limits import open_descriptors
from lockd.daemon.metrics.exposition import Family, Format, Kind, Value, render
from lockd.daemon.replies import statistics
from lockd.daemon.system.listener import ROLES
from lockd.lockspaces.files import FileLockspace

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """The metrics of a daemon."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        #: When this program began to serve, and when its process started, since 1970.
        self.started = time.time()
        self.process_started = self.started - process_age()

    def text(self, wanted: Format = "openmetrics") -> str:
        """Returns the current metrics for admins."""
        return self._text(lambda name: name, wanted)

    def public_text(self, wanted: Format = "openmetrics") -> str:
        """Returns the current metrics for everybody.

        Lockspaces that not everybody may know of are summed up without a name.
        """
        is_known = self.parts.access.is_known_to_all
        return self._text(lambda x: x if is_known(x) else "", wanted)

    def _text(self, shown: Callable[[str], str], wanted: Format) -> str:
        moment = Moment(self, shown)
        return render(
            (_family(name, row, moment) for name, row in FAMILIES.items()), wanted
        )


class Moment:
    """The source of the values at one moment.

    Args:
        metrics: the metrics.
        shown: returns the name under which a lockspace is reported. Several may share
            one.
    """

    def __init__(self, metrics: Metrics, shown: Callable[[str], str]) -> None:
        self.metrics = metrics
        self.parts = parts = metrics.parts
        self.life = parts.life
        self.counts = parts.answers.counts
        self.processes = parts.runtime.processes
        self.limits: dict[str, int] = to_builtins(parts.limits.limits)
        self.kept = statistics.kept(parts.engine, parts.keeping)
        self.spaces: dict[str, list[Space]] = {}
        for space in self.counts.spaces.values():
            self.spaces.setdefault(shown(space.name), []).append(space)
        self.anchors: Counter[str] = Counter()
        for name, lockspace in parts.runtime.lockspaces.items():
            if isinstance(lockspace, FileLockspace):
                self.anchors[shown(name)] += lockspace.anchor_count


class Metric(NamedTuple):
    """A metric: its kind, its help, and the source of its value.

    With labels (their names, separated by spaces) it has a value for each text of the
    label, or for each tuple of texts. An empty text omits the label.
    """

    kind: Kind
    help: str
    value: Callable[[Moment], Value | Mapping[Any, Value]]
    labels: str = ""


_counter = partial(Metric, "counter")
_gauge = partial(Metric, "gauge")
_histogram = partial(Metric, "histogram")
_info = partial(Metric, "info")


def _family(name: str, row: Metric, moment: Moment) -> Family:
    found = row.value(moment)
    values = found if isinstance(found, Mapping) else {(): found}
    labels = row.labels.split()
    samples = [(_labels(labels, key), value) for key, value in values.items()]
    return Family(name, row.kind, row.help, samples)


def _labels(names: list[str], key: str | tuple[str, ...]) -> dict[str, str]:
    texts = (key,) if isinstance(key, str) else key
    return {name: x for name, x in zip(names, texts, strict=True) if x}


def _of_each(
    kind: Callable[..., Metric],
    about: str,
    value: Callable[[Space], Value],
    of_several: Callable[[Any, Any], Any] = add,
) -> Metric:
    """Returns a metric with a value for each lockspace."""

    def found(moment: Moment) -> dict[str, Value]:
        return {
            name: reduce(of_several, map(value, same))
            for name, same in moment.spaces.items()
        }

    return kind(about, found, "lockspace")


def _longest_wait(space: Space) -> float:
    oldest = space.waiting.oldest()
    return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest.since)


def _ends(moment: Moment) -> dict[tuple[str, str], int]:
    return {
        (name, cause): sum(space.ends[cause] for space in same)
        for name, same in moment.spaces.items()
        for cause in CAUSES
    }


def _sessions(moment: Moment) -> dict[str, int]:
    at = Counter(peer.role for peer in moment.parts.answers.peers.values())
    return {role: at[role] for role in ROLES if role != "metrics"}


def _used(moment: Moment) -> dict[str, int]:
    usage = statistics.limits(moment.parts.limits, moment.parts.keeping)
    return {name: usage[name]["used"] or 0 for name in moment.limits if name in usage}


# The process, as the kernel sees it.


def resident_bytes() -> int:
    """Returns how many bytes of memory are resident (proc_pid_statm(5))."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def _yes(it_is: bool) -> str:
    return "yes" if it_is else "no"


def process_age() -> float:
    """Returns the age of the process in seconds (proc_pid_stat(5))."""
    with open("/proc/self/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19]) / TICKS
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


FAMILIES: Final = {
    # The program.
    "lockd_build": _info(
        "The running program.",
        lambda _: {
            (__version__, platform.python_version(), _yes(compilation.is_compiled())): 1
        },
        "version python compiled",
    ),
    "lockd_start_time_seconds": _gauge(
        "Start of this program in seconds since 1970; counters begin there.",
        lambda at: at.metrics.started,
    ),
    "lockd_epoch": _gauge(
        "Rises at each start that lost all locks.",
        lambda at: at.parts.epoch.number,
    ),
    "process_start_time_seconds": _gauge(
        "Start of the process in seconds since 1970; a live upgrade keeps it.",
        lambda at: at.metrics.process_started,
    ),
    "process_cpu_seconds": _counter(
        "Processor time of the process.", lambda _: sum(os.times()[:2])
    ),
    "process_resident_memory_bytes": _gauge(
        "Memory of the process.", lambda _: resident_bytes()
    ),
    "process_open_fds": _gauge("Open descriptors.", lambda _: open_descriptors()),
    "process_max_fds": _gauge(
        "Limit of open descriptors (LimitNOFILE).",
        lambda _: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    ),
    # Lockspaces.
    "lockd_held": _of_each(_gauge, "Locks held now.", lambda x: x.held_count),
    "lockd_waiting": _of_each(
        _gauge, "Requests that wait for a lock now.", lambda x: len(x.waiting)
    ),
    "lockd_longest_wait_seconds": _of_each(
        _gauge,
        "Time that the longest waiting request has waited.",
        _longest_wait,
        max,
    ),
    "lockd_anchors": _gauge("Locked files.", lambda at: at.anchors, "lockspace"),
    "lockd_grants": _of_each(_counter, "Locks granted.", lambda x: x.granted),
    "lockd_grants_inside": _of_each(
        _counter, "Locks granted inside a lock.", lambda x: x.inside
    ),
    "lockd_conversions": _of_each(_counter, "Locks converted.", lambda x: x.converted),
    "lockd_ends": _counter("Locks ended, by cause.", _ends, "lockspace cause"),
    "lockd_wait_seconds": _of_each(
        _histogram,
        "Time from the request to the grant of a lock.",
        lambda x: x.waits,
    ),
    "lockd_hold_seconds": _of_each(
        _histogram,
        "Time from the grant to the end of a lock.",
        lambda x: x.holds,
    ),
    "lockd_slow_waits": _of_each(
        _counter, "Waits over slow_wait.", lambda x: x.slow_waits
    ),
    "lockd_slow_holds": _of_each(
        _counter, "Holds over slow_hold.", lambda x: x.slow_holds
    ),
    "lockd_overdue": _of_each(
        _counter, "Locks held for longer than max_hold.", lambda x: x.overdue
    ),
    # Requests.
    "lockd_sessions": _gauge("Connected clients, by socket.", _sessions, "socket"),
    "lockd_requests": _counter(
        "Requests, by method.", lambda at: at.counts.requests, "method"
    ),
    "lockd_refusals": _counter(
        "Errors sent to clients.", lambda at: at.counts.refusals, "code"
    ),
    "lockd_turned_away": _counter(
        "Clients rejected because of a limit, or for lack of a descriptor.",
        lambda at: at.counts.turned_away,
    ),
    # Limits and the loop.
    "lockd_limit": _gauge(
        "Configured limits ([limits]).", lambda at: at.limits, "limit"
    ),
    "lockd_limit_used": _gauge(
        "Use of each limit; of a limit per user, that of the fullest user.",
        _used,
        "limit",
    ),
    "lockd_turn_seconds": _histogram(
        "Time of one turn of the loop; all other clients wait meanwhile.",
        lambda at: at.counts.turns,
    ),
    # Processes.
    "lockd_fencings": _counter(
        "Processes that lockd began to kill before it passes on their locks.",
        lambda at: at.processes.begun,
    ),
    "lockd_fencing_kills": _counter(
        "Those of them that got SIGKILL.", lambda at: at.processes.killed
    ),
    "lockd_fencings_outstanding": _gauge(
        "Those of them that are not dead yet.",
        lambda at: at.processes.begun - at.processes.fenced,
    ),
    # Upgrades and revivals.
    "lockd_handovers": _counter(
        "Handovers of all locks to another program; never reset.",
        lambda at: {"upgrade": at.life.upgrades, "revival": at.life.revivals},
        "kind",
    ),
    "lockd_handover_seconds": _gauge(
        "Time that clients waited at the handover to this program.",
        lambda at: {} if (x := at.life.took_over) is None else x,
    ),
    "lockd_survives_crash": _gauge(
        "Whether all locks would survive a crash now (1 or 0).",
        lambda at: int(at.kept["by"] is not None),
    ),
    "lockd_kept_descriptors": _gauge(
        "Descriptors kept outside the process.",
        lambda at: at.kept["in_flight"],
    ),
    "lockd_kept_bytes": _gauge("Bytes of kept records.", lambda at: at.kept["bytes"]),
    "lockd_complaint": _gauge(
        "Whether the status line names a problem (1 or 0).",
        lambda at: int(bool(at.parts.health.problems)),
    ),
}
