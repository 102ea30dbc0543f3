"""`lockctl show`, `test`, `wait`, `lock-name`: about one lock."""

import math
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from lockd.client import within
from lockd.client.blocking import Client, connect
from lockd.ctl.line.clicks import Read, as_json, in_lockspace
from lockd.ctl.look.files import check_exists, program_of
from lockd.ctl.look.state import State, state_of
from lockd.ctl.options import meant, seconds
from lockd.ctl.render import (
    Thing,
    is_overdue,
    key_of,
    note_unnamed,
    ordinal,
    other_name,
    show_json,
)
from lockd.ctl.table import Cells, cells_of, show_table
from lockd.errors import AcquireTimeoutError, DeadlockError
from lockd.names import default_lockspace, hashed_name, plain, quoted
from lockd.terms import DIRECT_LOCKSPACE, ResourceKey
from lockd.text import counted, duration, exact_duration

_UNHEARD: Final = 5.0
"""Seconds after which to ask again without an event: a waiter that dies causes none."""

_UNHEARD_OUTSIDE: Final = 0.5
"""The same if a lock outside lockd or under another name is in the way: its end causes
no event."""


@click.command(short_help="Show the holders, waiters and last events of a lock.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def show(
    socket: str | None, /, name: str, lockspace: str | None, as_json: bool
) -> None:
    """Show the holders of NAME, its waiters in their order, and its last holder.

    For a file, lockctl also shows locks outside lockd, and locks under other names of
    the file; `lockctl test --help` has the limits. On a terminal and with --json, the
    last events of the lock follow.

    In a pipe, tabs separate the columns: state, name, pid, user, command, unit, mode,
    time, fencing token, reason, other name of the file, slot, fencing token of the
    innermost lock that it is inside of. The state is `free` if NAME has no holder, no
    waiter and no history.

    lockctl names at most 16 holders, and says how many more there are. `lockctl list
    --pid PID --json` shows the holder that is process PID, with its slot and token.
    """
    with connect(socket) as client:
        state = state_of(client, meant(name, lockspace))
    found = state.resource
    if as_json:
        show_json(resource=found, outside=state.outside, elsewhere=state.elsewhere)
        return
    titles = (
        "STATE", "NAME", "PID", "USER", "COMMAND", "UNIT", "MODE", "FOR", "TOKEN",
        "REASON", "UNDER", "SLOT", "INSIDE",
    )  # fmt: skip
    story = list(_story(state))
    if not story and not sys.stdout.isatty():
        story = [{"STATE": "free"}]
    empty = f"{quoted(found['resource'])} is free, and has no known last holder."
    if found.get("slots"):  # an older daemon does not send it
        empty += f" It has {counted(found['slots'], 'slot')}."
    show_table(titles, story, empty=empty)
    for each in (found, *state.elsewhere):
        note_unnamed(each)
    if sys.stdout.isatty() and found["history"]:
        print()
        events = ("WHEN", "EVENT", "NAME", "PID", "USER", "MODE", "FOR", "TOKEN")
        show_table(events, map(_event, found["history"]), empty="")


@click.command(short_help="Test whether a lock is free, without taking it.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def test(socket: str | None, /, name: str, lockspace: str | None, as_json: bool) -> int:
    """Print whether NAME is free, held, shared or waited for.

    If it has slots, lockctl prints how many are taken.

    lockctl exits with 0 if NAME is free, and with 1 if it has a holder or a waiter. It
    exits with 64 if NAME is the path of a file that does not exist. It takes no lock
    and delays nobody.

    A file also counts as held under its other names: a hard link, or the hash of its
    path in another lockspace. `lockctl show` prints that name.

    A file also counts as held if a program outside lockd has locked it in a way that
    keeps lockd from it: any part of a file that is named by its path, as QEMU, SQLite
    and flock(1) do; the first byte of a lock file in a directory, as virtlockd does.
    lockctl sees such locks only on this host, outside containers, and only if you may
    look up the file. Often only root may do that in the directory of a lockspace. If
    lockd itself finds such a lock, lockctl shows it to everybody, but only while
    somebody waits for the file.
    """
    key = meant(name, lockspace)
    with connect(socket) as client:
        state = state_of(client, key)
    if state.is_free and key.lockspace == DIRECT_LOCKSPACE:
        check_exists(key.resource)
    if as_json:
        show_json(
            free=state.is_free,
            resource=state.resource,
            outside=state.outside,
            elsewhere=state.elsewhere,
        )
    else:
        print(state.word)
    return 0 if state.is_free else 1


@click.command(short_help="Wait until a lock is free, without taking it.")
@click.argument("name")
@click.option(
    "-w", "--timeout", metavar="SECONDS", type=Read(seconds),
    help="Wait at most SECONDS, then exit with 75.",
)  # fmt: skip
@in_lockspace
@click.pass_obj
def wait(
    socket: str | None, /, name: str, timeout: float | None, lockspace: str | None
) -> None:
    """Wait until nobody holds NAME and nobody waits for it, without taking it.

    lockctl also waits for locks outside lockd, if `lockctl test` can see them.

    Another program may take the lock as soon as lockctl exits. To use the lock
    yourself, use `lockctl run`.
    """
    key = meant(name, lockspace)
    until = None if timeout is None else time.monotonic() + timeout
    with connect(socket) as client, client.watch(key.lockspace) as events:
        # Ask after the watch has begun, so that no event is missed.
        while not (state := state_of(client, key)).is_free:
            refuse_if_within(client, state, key)
            left = math.inf if until is None else until - time.monotonic()
            if left <= 0:
                raise AcquireTimeoutError(_still(state, key, timeout or 0))
            unheard = state.outside or state.elsewhere
            patience = _UNHEARD_OUTSIDE if unheard else _UNHEARD
            _wait_for_end(events, key, min(left, patience))


@click.command(short_help="Print the hash that stands for a file in a lockspace.")
@click.argument("path")
def lock_name(path: str) -> None:
    """Print the name of a file in lockspaces that name files by a hash of their path.

    The name is the SHA-256 of the canonical path, as in virtlockd.
    """
    print(hashed_name(path))


def refuse_if_within(client: Client, state: State, key: ResourceKey) -> None:
    """Refuses to wait for a lock that an ancestor holds while it waits for us.

    Raises:
        DeadlockError: the wait would never end.
    """
    around = within.tokens_of(client.instance)
    for holder in state.holders:
        if holder["fencing_token"] in around:
            raise DeadlockError(
                f"{quoted(str(key))} is {state.held}, which waits for the end of this "
                f"command; unset {within.VARIABLE} if it does not"
            )


def _still(state: State, key: ResourceKey, waited: float) -> str:
    """Returns the sentence for a lock that is not free after `waited` seconds."""
    name = quoted(str(key))
    still = f"was not free within {exact_duration(waited)}" if waited else "is not free"
    why = state.held
    if not state.is_held:
        why = "others wait for it"
    return f"{name} {still}: {why}; see `{_show(key)}`"


def _show(key: ResourceKey) -> str:
    """Returns the command that shows a lock."""
    words = ["lockctl", "show", plain(key.resource)]
    if key.lockspace != default_lockspace(key.resource):
        words += ["--lockspace", plain(key.lockspace)]
    return shlex.join(words)


def _wait_for_end(events: Iterator[Thing], key: ResourceKey, patience: float) -> None:
    """Waits until something about a resource ends, at most `patience` seconds."""
    import signal

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        for event in events:
            if key_of(event) == key and event["event"] in ("released", "refused"):
                return
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


#: The words for the ways in which a grant ends.
_ENDINGS = {
    "released": "released",
    "disconnected": "disconnected",
    "owner_died": "ended",
    "broken": "broken",
}

#: The outcomes of work under a lock that did not end well.
_FAILURES = ("failed", "died")


def _story(found: State) -> Iterator[Cells]:
    state = found.resource
    everywhere = [(state, None), *((x, str(key_of(x))) for x in found.elsewhere)]
    for each, name in everywhere:
        yield from _holders(each, name)
    for other in found.outside:
        how = {"STATE": "holds, outside lockd", "NAME": program_of(other)}
        yield cells_of(other) | how
    if not (found.outside or found.elsewhere) and (other := state["outside"]):
        under = other_name(other)
        yield {
            "STATE": "holds, outside lockd" if under is None else "holds",
            "NAME": other["command"],
            "PID": other["pid"],
            "MODE": other["mode"],
            "UNDER": under,
        }
    for each, name in everywhere:
        yield from _waiters(each, name)
    if last := state["last_holder"]:
        # An older daemon tells no outcome.
        how = last.get("outcome")
        ended = how if how in _FAILURES else _ENDINGS[last["ended"]]
        yield _holding(last, f"{ended} {duration(last['ended_ago'])} ago")


def _holders(found: Thing, name: str | None) -> Iterator[Cells]:
    for holder in found["holders"]:
        state = "holds, overdue" if is_overdue(holder) else "holds"
        yield _holding(holder, state) | {"UNDER": name}
    if more := found["holder_count"] - len(found["holders"]):
        yield {"STATE": f"{more} more hold it", "UNDER": name}


def _holding(holder: Thing, state: str) -> dict[str, Any]:
    return cells_of(holder) | {
        "STATE": state,
        "SLOT": holder.get("slot"),
        "FOR": holder["held_for"],
        "TOKEN": holder["fencing_token"],
    }


def _waiters(state: Thing, name: str | None) -> Iterator[Cells]:
    for place, waiter in enumerate(state["waiters"], 1):
        what = "converts" if waiter["converting"] else f"{ordinal(place)} in queue"
        act = {"STATE": what, "FOR": waiter["waited"], "UNDER": name}
        yield cells_of(waiter) | act
    if more := state["waiter_count"] - len(state["waiters"]):
        yield {"STATE": f"{more} more wait", "UNDER": name}


def _event(event: Thing) -> Cells:
    what = event["event"]
    if what == "released":
        what = _ENDINGS[event["cause"]]
    elif what == "refused":
        what = f"refused: {event['code']}"
    span = event.get("held_for", event.get("waited") or None)
    return cells_of(event) | {
        "WHEN": event["since"],
        "EVENT": what,
        "FOR": span,
        "TOKEN": event.get("fencing_token"),
    }
