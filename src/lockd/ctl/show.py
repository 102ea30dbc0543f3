"""`lockctl show`, `test`, `wait`, `lock-name`: about one lock."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from lockd.client.blocking import Client, connect
from lockd.ctl.options import as_json, in_lockspace, meant, seconds
from lockd.ctl.render import (
    clock,
    ordinal,
    purpose,
    show_json,
    show_table,
    user,
)
from lockd.errors import AcquireTimeoutError
from lockd.names import hashed_name, plain, quoted
from lockd.terms import ResourceKey
from lockd.text import duration

Thing = dict[str, Any]

_WITHOUT_EVENTS = 5.0
"""Seconds after which it is asked anew although nothing was heard: a waiter that dies
leaves its line unheard."""


@click.command(short_help="Show who holds a lock, who waits, and what happened to it.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def show(
    socket: str | None, /, name: str, lockspace: str | None, as_json: bool
) -> None:
    """Show who holds NAME, who waits for it in which order, and who held it last.

    On a terminal, and with --json, its last events follow. Piped, the columns are
    separated by tabs: state, name, pid, user, command, unit, mode, for how long,
    fencing token, reason.
    """
    with connect(socket) as client:
        state = _query(client, meant(name, lockspace))
    if as_json:
        show_json(resource=state)
        return
    columns = (
        "STATE", "NAME", "PID", "USER", "COMMAND", "UNIT", "MODE", "FOR", "TOKEN",
        "REASON",
    )  # fmt: skip
    empty = f"{quoted(state['resource'])} is free; nobody is known to have held it."
    show_table(columns, _story(state), empty=empty)
    if sys.stdout.isatty() and state["history"]:
        print()
        events = ("WHEN", "EVENT", "NAME", "PID", "USER", "MODE", "FOR", "TOKEN")
        show_table(events, map(_event, state["history"]), empty="")


@click.command(short_help="Tell whether a lock is free, without taking it.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def test(socket: str | None, /, name: str, lockspace: str | None, as_json: bool) -> int:
    """Say in one word whether NAME is free, held, shared or waited for.

    Exits with 0 if it is free, with 1 if somebody holds it or waits for it. Nothing is
    taken, and nobody is held up.
    """
    with connect(socket) as client:
        state = _query(client, meant(name, lockspace))
    if as_json:
        show_json(free=_is_free(state), resource=state)
    else:
        print(_word(state))
    return 0 if _is_free(state) else 1


@click.command(short_help="Wait until a lock is free, without taking it.")
@click.argument("name")
@click.option(
    "-w", "--timeout", metavar="SECONDS", callback=seconds,
    help="Wait at most so long, then exit with 75.",
)  # fmt: skip
@in_lockspace
@click.pass_obj
def wait(
    socket: str | None, /, name: str, timeout: float | None, lockspace: str | None
) -> None:
    """Wait until nobody holds NAME and nobody waits for it, without taking it.

    Who wants to be alone with it should use `lockctl run` instead: somebody else may
    have it by the time this ends.
    """
    key = meant(name, lockspace)
    until = None if timeout is None else time.monotonic() + timeout
    with connect(socket) as client, client.watch(key.lockspace) as events:
        # Asked after the watch began: no end of it passes unheard.
        while not _is_free(state := _query(client, key)):
            left = _WITHOUT_EVENTS if until is None else until - time.monotonic()
            if left <= 0:
                raise AcquireTimeoutError(
                    f"{quoted(str(key))} was not free within {duration(timeout or 0)}: "
                    f"{_in_the_way(state)}"
                )
            _wait_for_end(events, key, min(left, _WITHOUT_EVENTS))


@click.command(short_help="Print the name under which a file is locked elsewhere.")
@click.argument("path")
def lock_name(path: str) -> None:
    """Print the name of a file in lockspaces that lock files by the hash of their path.

    That is the SHA-256 of the canonical path, as virtlockd and its hosts have it.
    """
    print(hashed_name(path))


def _query(client: Client, key: ResourceKey) -> Thing:
    return client.query(key.resource, lockspace=key.lockspace)


def _is_free(state: Thing) -> bool:
    return not (state["holders"] or state["waiters"])


def _word(state: Thing) -> str:
    if not state["holders"]:
        return "waited for" if state["waiters"] else "free"
    return "shared" if state["holders"][0]["mode"] == "shared" else "held"


def _in_the_way(state: Thing) -> str:
    if not state["holders"]:
        return "somebody waits for it who is not served yet"
    first = state["holders"][0]
    return (
        f"held for {duration(first['held_for'])} by {plain(first['name'])}, "
        f"pid {first['pid']}, {user(first['uid'])}; see `lockctl show`"
    )


def _wait_for_end(events: Iterator[Thing], key: ResourceKey, patience: float) -> None:
    """Waits until something about a resource has ended, or for some seconds."""
    import signal

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        for event in events:
            if (event["lockspace"], event["resource"]) == key and event["event"] in (
                "released",
                "refused",
            ):
                return
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


#: How a holder's time may have ended, in a word.
_ENDINGS = {
    "released": "released",
    "disconnected": "disconnected",
    "owner_died": "ended",
    "broken": "broken",
}


def _story(state: Thing) -> Iterator[list[object]]:
    for holder in state["holders"]:
        yield _act(holder, "holds", holder["held_for"], holder["fencing_token"])
    if more := state["holder_count"] - len(state["holders"]):
        yield [f"{more} more hold it", *[None] * 9]
    for place, waiter in enumerate(state["waiters"], 1):
        what = "converts" if waiter["converting"] else f"{ordinal(place)} in queue"
        yield _act(waiter, what, waiter["waited"], None)
    if more := state["waiter_count"] - len(state["waiters"]):
        yield [f"{more} more wait", *[None] * 9]
    if last := state["last_holder"]:
        how = f"{_ENDINGS[last['ended']]} {duration(last['ended_ago'])} ago"
        yield _act(last, how, last["held_for"], last["fencing_token"])


def _act(party: Thing, state: str, seconds: float, token: int | None) -> list[object]:
    return [
        state,
        party["name"],
        party["pid"],
        user(party["uid"]),
        party.get("command"),
        party.get("unit"),
        party["mode"],
        duration(seconds),
        token,
        purpose(party),
    ]


def _event(event: Thing) -> list[object]:
    what = event["event"]
    if what == "released":
        what = _ENDINGS[event["cause"]]
    elif what == "refused":
        what = f"refused: {event['code']}"
    span = event.get("held_for", event.get("waited") or None)
    return [
        clock(event["since"]),
        what,
        event["name"],
        event["pid"],
        user(event["uid"]),
        event["mode"],
        None if span is None else duration(span),
        event.get("fencing_token"),
    ]
