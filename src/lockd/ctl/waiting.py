"""Tells a person why `lockctl run` waits. Loaded only when it has waited a while."""

from collections.abc import Mapping, Sequence
from typing import Any

from lockd.client.blocking import connect
from lockd.ctl.render import ordinal, since
from lockd.names import plain, quoted
from lockd.text import duration

#: Seconds after which people want the time of day, too.
_LONG = 60


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
        states = [client.query(name, lockspace=lockspace) for name in names]
    # Of several names, the one that is in the way: the one with the longest queue.
    state = max(states, key=lambda state: (state["holder_count"], _place(state, pid)))
    place = ordinal(_place(state, pid))
    return f"waiting for {quoted(state['resource'])} ({place} in queue; {_held(state)})"


def _place(state: Mapping[str, Any], pid: int) -> int:
    pids = [waiter["pid"] for waiter in state["waiters"]]
    # The daemon names only the first waiters; who is not among them came last.
    return pids.index(pid) + 1 if pid in pids else state["waiter_count"]


def _held(state: Mapping[str, Any]) -> str:
    if not state["holders"]:
        return "held by nobody in lockd"
    holder = state["holders"][0]
    others = state["holder_count"] - 1
    more = f" and {others} more" if others else ""
    held = f"held for {duration(holder['held_for'])}"
    if holder["held_for"] >= _LONG:
        held += f", since {since(holder['since'])},"
    return (
        f"{held} by {plain(holder['name'])}, "
        f"pid {holder['pid']}, uid {holder['uid']}{more}"
    )
