"""`lockctl break` and `disconnect`: show the victim, then take away."""

from collections.abc import Callable
from typing import Final

import click

from lockd.client.blocking import Client, connect
from lockd.ctl import exits
from lockd.ctl.act.confirm import NOT_WANTED, is_wanted, sure
from lockd.ctl.look.state import state_of
from lockd.ctl.options import Whole, as_json, in_lockspace, meant
from lockd.ctl.render import Thing, key_of, purpose, say, show_json, user
from lockd.ctl.table import show_facts
from lockd.errors import InvalidRequestError, NotFoundError
from lockd.names import plain, quoted
from lockd.text import counted, duration

MOST: Final = 2**63 - 1
"""The greatest fencing token or session number."""


def _because(told: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option(
        "--reason", required=True, metavar="TEXT", callback=_some, help=f"Why: {told}"
    )


def _some(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("it is empty: say why, in some words")
    return value


@click.command("break", short_help="Take a lock away from its holder.")
@click.argument("victim", metavar="NAME-or-TOKEN")
@in_lockspace
@_because("the victim is told, and the daemon's log keeps it.")
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
    """Take away the lock NAME, or that with a fencing token, after showing whose it is.

    Its holder is told that it was broken and why. Where the lockspace, or the holder,
    says `kill`, its process is ended first, and all its locks go with it; else it may
    run on in the belief that it holds the lock. The next in line gets the lock.

    Of a lock that several share, one holder is named by its fencing token, which
    `lockctl show` tells. A number is a token, unless --lockspace says that it is a
    name. What is broken is the lock of the holder that was shown, and of nobody else.

    It asks on a terminal; elsewhere it needs --yes. Exits with 1 if the answer is no.
    """
    with connect(socket, name="lockctl") as client:
        found = _found(client, victim, lockspace)
        if not as_json:
            show_facts(_facts(found))
        name = quoted(str(key_of(found)))
        if not is_wanted(f"break the lock on {name}?", yes=yes):
            return NOT_WANTED
        client.break_grant(found["fencing_token"], reason)
    if as_json:
        show_json(broken=found)
    elif found["on_disconnect"] == "kill":
        say(f"{name} is free when process {found['pid']} has been ended")
    else:
        say(f"{name} was taken from {plain(found['name'])}, pid {found['pid']}")
    return exits.OK


@click.command(short_help="End a session, and with it all that it holds.")
@click.argument("session", type=Whole(1, MOST), metavar="SESSION")
@_because("the daemon's log keeps it; the victim sees only that it was disconnected.")
@sure
@as_json
@click.pass_obj
def disconnect(
    socket: str | None, /, session: int, reason: str, yes: bool, as_json: bool
) -> int:
    """End the session SESSION, after showing whose it is.

    What it holds goes as if its client had closed the connection: by the lockspace's
    rule, and not what it took for a registered process. Numbers are shown by `lockctl
    sessions`.

    It asks on a terminal; elsewhere it needs --yes. Exits with 1 if the answer is no.
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


def _found(client: Client, name: str, lockspace: str | None) -> Thing:
    """Returns the grant for a name or a fencing token.

    Raises:
        NotFoundError: nobody in lockd holds the lock.
        InvalidRequestError: several hold it.
    """
    if lockspace is None and is_token(name):
        return _holder_of(client, int(name))
    key = meant(name, lockspace)
    state = state_of(client, key)
    said = quoted(str(key))
    if not state.holders:
        if state.is_held:
            why = f"is {state.held}, so lockd cannot take it away: end that process"
        else:
            why = "is held by nobody: there is nothing to break"
        raise NotFoundError(f"{said} {why}")
    if len(state.holders) > 1:
        tokens = ", ".join(str(x["fencing_token"]) for x in state.holders)
        raise InvalidRequestError(
            f"{said} is held by several: break one of the fencing tokens {tokens}, "
            "of which `lockctl show` says whose they are"
        )
    (holder,) = state.holders
    return _holder_of(client, holder["fencing_token"])


def is_token(name: str) -> bool:
    """Returns whether a word on the command line is a fencing token."""
    return name.isascii() and name.isdecimal() and 0 < int(name[:20]) <= MOST


def _holder_of(client: Client, token: int) -> Thing:
    """Returns the grant for a fencing token.

    Raises:
        NotFoundError: nobody holds it.
    """
    resource: Thing
    for resource in client.list_resources(fencing_token=token):
        where: Thing = {key: resource[key] for key in ("lockspace", "resource")}
        for holder in resource["holders"]:
            if holder["fencing_token"] == token:
                where.update(holder)
                return where
    raise NotFoundError(
        f"no lock is held with fencing token {token}: `lockctl show NAME` tells the "
        "token of a lock"
    )


def _facts(victim: Thing) -> list[tuple[str, object]]:
    return [
        ("lock", str(key_of(victim))),
        ("mode", victim["mode"]),
        ("fencing token", victim["fencing_token"]),
        *_party(victim),
        ("held for", duration(victim["held_for"])),
        ("for", purpose(victim)),
        (
            "then",
            f"process {victim['pid']} is ended, then the lock is free"
            if victim["on_disconnect"] == "kill"
            else "it is told, and may run on; the lock is free at once",
        ),
    ]


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
