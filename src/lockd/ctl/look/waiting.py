"""Tells a person why `lockctl run` waits. Loaded only when it has waited a while."""

from collections.abc import Mapping, Sequence
from typing import Any

from lockd.client.blocking import connect
from lockd.ctl.look.state import state_of
from lockd.ctl.render import ordinal
from lockd.names import quoted
from lockd.terms import ResourceKey


def explain_wait(socket: str, lockspace: str, names: Sequence[str], pid: int) -> str:
    """Returns the sentence for a waiter, looked up through a session of its own.

    Args:
        socket: where the daemon listens.
        lockspace: where the names are.
        names: what the waiter wants.
        pid: the waiter.

    Raises:
        LockdError: the daemon does not say.
    """
    with connect(socket) as client:
        states = [state_of(client, ResourceKey(lockspace, name)) for name in names]
    # Of several names, the one that is in the way: the one with the longest queue.
    state = max(states, key=lambda x: (x.is_held, _place(x.resource, pid)))
    place = _place(state.resource, pid)
    # The wait may have ended since it was asked about: nobody is in line then.
    where = f"{ordinal(place)} in queue; " if place else ""
    name = quoted(state.resource["resource"])
    return f"waiting for {name} ({where}{state.held})"


def _place(state: Mapping[str, Any], pid: int) -> int:
    pids = [waiter["pid"] for waiter in state["waiters"]]
    # The daemon names only the first waiters; who is not among them came last.
    return pids.index(pid) + 1 if pid in pids else state["waiter_count"]
