"""`lockctl watch`: prints events as they happen."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import click

from lockd.client import paths
from lockd.client.blocking import Client, connect
from lockd.ctl import streams
from lockd.ctl.options import meant
from lockd.ctl.render import (
    VERSION,
    Thing,
    clock,
    key_of,
    to_json,
    user,
)
from lockd.ctl.streams import say
from lockd.errors import ConnectionLostError, UnavailableError
from lockd.names import plain

PAUSES: Final = (0.1, 0.2, 0.5, 1.0)
"""Seconds between two attempts to reach the daemon again; the last one repeats."""

_CAUSES: Final = {
    "disconnected": "disconnected",
    "owner_died": "its owner ended",
    "broken": "broken",
}


@click.command(short_help="Print events as they happen.")
@click.argument("lockspace", required=False)
@click.option("--name", metavar="NAME", help="Only events of this lock.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
@click.pass_obj
def watch(
    socket: str | None, /, lockspace: str | None, name: str | None, as_json: bool
) -> None:
    """Print the events of LOCKSPACE, or of all lockspaces, until you interrupt it.

    lockctl also exits when its output has no reader. If the daemon goes away, lockctl
    says so and waits for the next daemon; it misses the events in between.

    In a pipe, tabs separate the columns: time (seconds since 1970), event, lockspace,
    name, mode, name of the owner, pid, user, and one of fencing token, error code or
    cause. The first event is `watching`; it comes again for each new daemon.
    """
    if name is not None:
        name = meant(name, lockspace).resource
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams.end_with_reader()
    for event in _events(socket, lockspace):
        if name is None or event.get("resource", name) == name:
            _tell(event, as_json=as_json)


def _events(socket: str | None, lockspace: str | None) -> Iterator[Thing]:
    """Yields all events, of one daemon after the other at the same socket."""
    address = paths.find_socket(socket)
    with connect(address) as client:
        epoch = client.epoch
        # The watch begins before this line, so its reader misses no event.
        yield from _of_one_daemon(client, lockspace, {"event": "watching"})
    while True:
        say("the daemon is gone; waiting for the next one")
        with _connect_again(address) as client:
            again = {"event": "watching", "missed": True}
            say(f"watching again, epoch {client.epoch} after {epoch}")
            epoch = client.epoch
            yield from _of_one_daemon(client, lockspace, again)


def _of_one_daemon(
    client: Client, lockspace: str | None, first: Thing
) -> Iterator[Thing]:
    # The end of the daemon is not an error.
    with suppress(ConnectionLostError), client.watch(lockspace) as events:
        yield first | {"epoch": client.epoch, "missed": "missed" in first}
        yield from events


def _connect_again(address: paths.Address) -> Client:
    number = 0
    while True:
        time.sleep(PAUSES[min(number, len(PAUSES) - 1)])
        number += 1
        with suppress(ConnectionLostError, UnavailableError):
            return connect(address)


def _tell(event: Thing, *, as_json: bool) -> None:
    now = time.time()
    if as_json:
        line = to_json({"version": VERSION, "at": now} | event)
    elif sys.stdout.isatty():
        line = plain(_sentence(event, now))
    else:
        line = "\t".join(plain(str(x)) for x in _cells(event, now))
    print(line, flush=True)


def _sentence(event: Thing, now: float) -> str:
    if event["event"] == "watching":
        return "Watching. Ctrl-C ends it."
    what, key = event["event"], key_of(event)
    why = f" ({event['code']})" if "code" in event else ""
    if event.get("cause") in _CAUSES:
        why = f" ({_CAUSES[event['cause']]})"
    token = f", token {event['fencing_token']}" if what == "granted" else ""
    if event.get("inside"):
        token += f", inside {event['inside'][-1]}"
    mode = f" {event['mode']}" if event.get("mode") else ""
    return (
        f"{clock(now)}  {what:<9} {plain(str(key))}{mode}  {plain(event['name'])} "
        f"(pid {event['pid']}, {user(event['uid'])}){why}{token}"
    )


def _cells(event: Thing, now: float) -> Iterator[object]:
    yield f"{now:.3f}"
    for key in ("event", "lockspace", "resource", "mode", "name", "pid"):
        yield event.get(key) or "-"
    yield user(event["uid"]) if "uid" in event else "-"
    yield event.get("code") or event.get("cause") or event.get("fencing_token") or "-"
