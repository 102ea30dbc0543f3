"""`lockctl break` and `disconnect`: show the victim, then take away."""

from collections.abc import Callable
from typing import Final

import click

from lockd.client.blocking import Client, connect
from lockd.ctl import exits
from lockd.ctl.act.confirm import NOT_WANTED, is_wanted, sure
from lockd.ctl.line.clicks import Read, as_json, in_lockspace
from lockd.ctl.look.state import state_of
from lockd.ctl.options import meant, whole
from lockd.ctl.render import (
    UNNAMED,
    Thing,
    key_of,
    purpose,
    show_json,
    user,
)
from lockd.ctl.streams import say
from lockd.ctl.table import show_facts
from lockd.errors import InvalidRequestError, NotFoundError
from lockd.names import plain, quoted
from lockd.text import counted, duration

MOST: Final = 2**63 - 1
"""The greatest fencing token or session number."""


def _because(told: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option(
        "--reason", required=True, metavar="TEXT", callback=_some,
        help=f"The reason. {told}",
    )  # fmt: skip


def _some(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("it is empty: give a reason")
    return value


@click.command("break", short_help="Take a lock away from its holder.")
@click.argument("victim", metavar="NAME-or-TOKEN")
@in_lockspace
@_because("The holder gets it, and the daemon logs it.")
@sure
@as_json
@click.pass_obj
def break_(
    socket: str | None,
    /,
    victim: str,
    lockspace: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> int:
    """Take a lock away from its holder. lockctl shows the holder first, and asks.

    The holder gets a message with the reason, and the next in line gets the lock. If
    the lockspace or the holder has on_disconnect = `kill`, lockd kills the process
    first, and all its locks end. Otherwise the process may run on as if it still held
    the lock.

    Commands inside the lock that hold it too keep it; lockctl shows them.

    If the lock has several holders, name one by its fencing token; `lockctl show`
    prints it. A number is a token unless you give --lockspace. lockctl breaks only the
    lock of the holder that it showed.

    lockctl asks on a terminal; elsewhere it needs --yes. It exits with 1 if the answer
    is no.
    """
    with connect(socket, name="lockctl") as client:
        resource, found = _found(client, victim, lockspace)
        inside = _inside(client, found)
        if not as_json:
            show_facts(_facts(resource, found, inside))
        name = quoted(str(key_of(found)))
        if not is_wanted(f"break the lock on {name}?", yes=yes):
            return NOT_WANTED
        client.break_grant(found["fencing_token"], reason)
    if as_json:
        show_json(broken=found, inside=inside)
    elif found["on_disconnect"] == "kill":
        say(f"{name} is free when process {found['pid']} is dead")
    else:
        say(f"{name} was taken from {plain(found['name'])}, pid {found['pid']}")
    return exits.OK


@click.command(short_help="End a session, and its locks with it.")
@click.argument("session", type=Read(whole(1, MOST)), metavar="SESSION")
@_because("The daemon logs it. The client only sees the end of its connection.")
@sure
@as_json
@click.pass_obj
def disconnect(
    socket: str | None, /, session: int, reason: str, yes: bool, as_json: bool
) -> int:
    """End the session SESSION. lockctl shows the session first, and asks.

    Its locks end as if its client had closed the connection: by the rule of their
    lockspace. Locks of a registered process stay. `lockctl sessions` lists the numbers.

    lockctl asks on a terminal; elsewhere it needs --yes. It exits with 1 if the answer
    is no.
    """
    with connect(socket, name="lockctl") as client:
        found = [x for x in client.list_sessions() if x["session"] == session]
        if not found:
            raise NotFoundError(
                f"there is no session {session}: `lockctl sessions` lists them"
            )
        (victim,) = found
        if not as_json:
            show_facts(_session_facts(victim))
        if not is_wanted(f"end session {session}?", yes=yes):
            return NOT_WANTED
        client.disconnect_session(session, reason)
    if as_json:
        show_json(disconnected=victim)
    else:
        say(f"session {session} of {plain(victim['name'])} was ended")
    return exits.OK


def _found(client: Client, name: str, lockspace: str | None) -> tuple[Thing, Thing]:
    """Returns the resource and the grant for a name or a fencing token.

    Raises:
        NotFoundError: nobody in lockd holds the lock.
        InvalidRequestError: several hold it.
    """
    if lockspace is None and is_token(name):
        return holder_of(client, int(name))
    key = meant(name, lockspace)
    state = state_of(client, key)
    said = quoted(str(key))
    if not state.holders:
        if state.is_held:
            why = f"is {state.held}, so lockd cannot take it away: end that process"
        else:
            why = "has no holder: there is nothing to break"
        raise NotFoundError(f"{said} {why}")
    if len(state.holders) > 1:
        tokens = ", ".join(str(x["fencing_token"]) for x in state.holders)
        all_of_them = [state.resource, *state.elsewhere]
        count = sum(x["holder_count"] for x in all_of_them)
        more = count - len(state.holders)
        rest = f"; {more} more are not shown: {UNNAMED}" if more else ""
        raise InvalidRequestError(
            f"{said} has several holders: break one of the fencing tokens {tokens}; "
            f"`lockctl show` prints the holder of each{rest}"
        )
    (holder,) = state.holders
    return holder_of(client, holder["fencing_token"])


def is_token(name: str) -> bool:
    """Returns whether a word on the command line is a fencing token."""
    return name.isascii() and name.isdecimal() and 0 < int(name[:20]) <= MOST


def holder_of(client: Client, token: int) -> tuple[Thing, Thing]:
    """Returns the resource and the grant for a fencing token.

    Raises:
        NotFoundError: nobody holds it.
    """
    resource: Thing
    for resource in client.list_resources(fencing_token=token):
        where: Thing = {key: resource[key] for key in ("lockspace", "resource")}
        for holder in resource["holders"]:
            if holder["fencing_token"] == token:
                where.update(holder)
                return resource, where
    raise NotFoundError(
        f"no lock has the fencing token {token}: `lockctl show NAME` prints the token "
        "of a lock"
    )


def _facts(
    resource: Thing, victim: Thing, inside: list[Thing]
) -> list[tuple[str, object]]:
    return [
        ("lock", str(key_of(victim))),
        ("mode", victim["mode"]),
        ("fencing token", victim["fencing_token"]),
        *_party(victim),
        ("held for", duration(victim["held_for"])),
        ("reason", purpose(victim)),
        *(("held inside it by", _shown(holder)) for holder in inside),
        ("then", _then(resource, victim)),
    ]


def _inside(client: Client, victim: Thing) -> list[Thing]:
    """Returns the holders that hold the lock inside that of the victim."""
    key, token = key_of(victim), victim["fencing_token"]
    found = client.query(key.resource, lockspace=key.lockspace)
    # An older daemon does not tell.
    return [x for x in found["holders"] if token in x.get("inside", ())]


def _shown(holder: Thing) -> str:
    token = holder["fencing_token"]
    return f"{plain(holder['name'])} (pid {holder['pid']}, token {token})"


def _then(resource: Thing, victim: Thing) -> str:
    """Returns what follows the break: who has the lock then, and the holder's fate."""
    if (others := resource["holder_count"] - 1) > 0:
        kept = "keeps" if others == 1 else "keep"
        who = f"{counted(others, 'other holder')} {kept} the lock"
    elif resource["waiters"]:
        first = resource["waiters"][0]
        # Not "at once": it may wait for more locks, or for a program outside lockd.
        who = f"{quoted(first['name'])} (pid {first['pid']}) gets the lock next"
    else:
        who = "nobody waits, so the lock is free"
    if victim["on_disconnect"] == "kill":
        return f"lockd kills process {victim['pid']}, then {who}"
    return f"{who}; the old holder is notified, and may run on"


def _session_facts(victim: Thing) -> list[tuple[str, object]]:
    return [
        ("session", victim["session"]),
        *_party(victim),
        ("client", victim["client"]),
        ("connected for", duration(victim["connected_for"])),
        ("holds", counted(victim["held"], "lock")),
        ("waits for", counted(victim["waiting"], "lock")),
    ]


def _party(victim: Thing) -> list[tuple[str, object]]:
    return [
        ("held by" if "fencing_token" in victim else "name", victim["name"]),
        ("pid", victim["pid"]),
        ("user", f"{user(victim['uid'])} (uid {victim['uid']})"),
        ("command", victim["command"]),
        ("unit", victim["unit"]),
    ]
