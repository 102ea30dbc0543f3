"""`lockctl show`, `who`, `query` and `lock-name`: about one thing."""

from collections.abc import Iterator
from typing import Any

import click

from lockd.client.blocking import Client, connect
from lockd.ctl.options import as_json, in_lockspace, meant
from lockd.ctl.render import (
    ordinal,
    purpose,
    say,
    show_json,
    show_table,
    since,
    user,
)
from lockd.errors import InvalidRequestError
from lockd.names import CHECK_OF_KIND, canonical_path, hashed_name, quoted
from lockd.terms import ResourceKey
from lockd.text import duration


@click.command(short_help="Show who holds a lock, who waits, who had it last.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def show(
    socket: str | None, /, name: str, lockspace: str | None, as_json: bool
) -> None:
    """Show who holds NAME, who waits for it in which order, and who held it last.

    Piped, the columns are separated by tabs: state, name, pid, user, command, unit,
    mode, for how long, fencing token, reason.
    """
    with connect(socket) as client:
        state = _query(client, meant(name, lockspace))
    if as_json:
        show_json(state)
        return
    columns = (
        "STATE", "NAME", "PID", "USER", "COMMAND", "UNIT", "MODE", "FOR", "TOKEN",
        "REASON",
    )  # fmt: skip
    empty = f"{quoted(state['resource'])} is free; nobody is known to have held it."
    show_table(columns, _story(state), empty=empty)


@click.command(short_help="Say who holds a name or a file.")
@click.argument("name", metavar="PATH-or-NAME")
@as_json
@click.pass_obj
def who(socket: str | None, /, name: str, as_json: bool) -> int:
    """Say who holds a name, or a file, in any lockspace.

    A path begins with `/`, `./` or `../`. Files are looked for under their own path
    and under its hash, as `lockctl lock-name` prints it. Exits with 0 if somebody
    holds it, with 1 if it is free.

    Piped, the columns are separated by tabs: lockspace, locked name, name of the
    holder, pid, user, command, unit, mode, since when, reason.
    """
    with connect(socket) as client:
        holders = list(_find_holders(client, name))
    if as_json:
        show_json(holders)
    elif holders:
        columns = (
            "LOCKSPACE", "LOCKED", "NAME", "PID", "USER", "COMMAND", "UNIT", "MODE",
            "SINCE", "REASON",
        )  # fmt: skip
        show_table(columns, map(_holder, holders), empty="")
    else:
        say(f"nobody holds {quoted(name)}")
    return 0 if holders else 1


@click.command(short_help="Ask whether a lock is free, without taking it.")
@click.argument("name")
@in_lockspace
@as_json
@click.pass_obj
def query(
    socket: str | None, /, name: str, lockspace: str | None, as_json: bool
) -> int:
    """Say in one word whether NAME is free, held or shared; never wait for it.

    Exits with 0 if it is free, with 1 if somebody holds it or waits for it.
    """
    with connect(socket) as client:
        state = _query(client, meant(name, lockspace))
    if as_json:
        show_json(state)
    else:
        print(_sentence(state))
    return 1 if state["holders"] or state["waiters"] else 0


@click.command(short_help="Print the name under which a file is locked elsewhere.")
@click.argument("path")
def lock_name(path: str) -> None:
    """Print the name of a file in lockspaces that lock files by the hash of their path.

    That is the SHA-256 of the canonical path, as virtlockd and its hosts have it.
    """
    print(hashed_name(path))


def _query(client: Client, key: ResourceKey) -> dict[str, Any]:
    return client.query(key.resource, lockspace=key.lockspace)


def _find_holders(client: Client, name: str) -> Iterator[dict[str, Any]]:
    for space in client.list_lockspaces():
        resource = _name_in(space["kind"], name)
        if resource is not None:
            state = client.query(resource, lockspace=space["name"])
            for holder in state["holders"]:
                yield {"lockspace": space["name"], "resource": resource, **holder}


def _name_in(kind: str, name: str) -> str | None:
    """Returns how a lockspace of a kind calls a thing; None if it cannot be there."""
    if name.startswith(("/", "./", "../")):
        if kind == "directory":
            return hashed_name(name)
        if kind == "direct":
            return canonical_path(name)
    try:
        CHECK_OF_KIND[kind](name)
    except InvalidRequestError:
        return None
    return name


def _story(state: dict[str, Any]) -> Iterator[list[object]]:
    for holder in state["holders"]:
        yield _act(holder, "holds", holder["held_for"], holder["fencing_token"])
    for place, waiter in enumerate(state["waiters"], 1):
        what = "converts" if waiter["converting"] else f"{ordinal(place)} in queue"
        yield _act(waiter, what, waiter["waited"], None)
    if last := state["last_holder"]:
        how = f"{_ENDINGS[last['ended']]} {duration(last['ended_ago'])} ago"
        yield _act(last, how, last["held_for"], last["fencing_token"])


#: How a holder's time may have ended, in a word.
_ENDINGS = {
    "released": "released",
    "disconnected": "disconnected",
    "owner_died": "ended",
    "broken": "broken",
}


def _act(
    party: dict[str, Any], state: str, seconds: float, token: int | None
) -> list[object]:
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


def _holder(holder: dict[str, Any]) -> list[object]:
    return [
        holder["lockspace"],
        holder["resource"],
        holder["name"],
        holder["pid"],
        user(holder["uid"]),
        holder["command"],
        holder["unit"],
        holder["mode"],
        since(holder["since"]),
        purpose(holder),
    ]


def _sentence(state: dict[str, Any]) -> str:
    if not state["holders"]:
        return "waited for" if state["waiters"] else "free"
    return "shared" if state["holders"][0]["mode"] == "shared" else "held"
