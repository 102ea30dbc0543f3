"""The daemon's counters and limits as plain maps."""

import os
from typing import Any

from lockd import __version__, compilation
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.engine.lock_engine import LockEngine
from lockd.procs import unit_of

Map = dict[str, Any]


def counts(engine: LockEngine) -> Map:
    """Returns the current numbers, and the counters since the start."""
    return {
        "sessions": len(engine.sessions),
        "owners": len(engine.owners),
        "resources": len(engine.resources),
        "held": engine.held,
        "waiting": engine.waiting,
        "granted": engine.granted,
        "refused": engine.refused,
        "released": engine.ended,
        "last_fencing_token": engine.last_token,
    }


def program() -> Map:
    """Returns the version of the program, whether it is compiled, pid and unit."""
    pid = os.getpid()
    return {
        "version": __version__,
        "compiled": compilation.is_compiled(),
        "pid": pid,
        "unit": unit_of(pid),
    }


def kept(engine: LockEngine, keeping: Keeping) -> Map:
    """Returns what would survive if this process were killed now."""
    if keeping.by is None:
        return {"by": None, "locks": 0, "connections": 0, "in_flight": 0, "bytes": 0}
    return {
        "by": keeping.by,
        # All or nothing: no answer leaves before it is recorded, and no grant is
        # recorded before its file is in flight.
        "locks": engine.held,
        "connections": len(engine.sessions),
        "in_flight": keeping.in_flight,
        "bytes": keeping.record_bytes,
    }


def limits(limiter: Limiter, keeping: Keeping) -> Map:
    """Returns the usage of each limit, and the user with the most."""
    most = limiter.limits.record_bytes
    return limiter.usage() | {
        "record_bytes": {"used": keeping.memory_bytes, "most": most, "uid": None}
    }


def upgrade(why_not: str | None) -> Map:
    """Returns whether a live upgrade is possible now, as far as known.

    Only an upgrade itself tries whether the new program can read the state.
    """
    return {"ready": why_not is None, "why": why_not}
