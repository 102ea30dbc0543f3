"""`lockctl list`, `waiters`, `sessions`, `spaces`: all of a kind, one line each."""

import pwd
import sys
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final

import click

from lockd.client.blocking import connect
from lockd.ctl.options import PROCESS_ID, as_json
from lockd.ctl.render import obstacle, ordinal, purpose, show_json, show_table, user
from lockd.names import canonical_path, quoted
from lockd.text import duration

Thing = dict[str, Any]

NO_USER: Final = 2**32 - 1
"""The uid that means nobody (setresuid(2)); those of users are below."""


def _first(resource: Thing) -> Thing:
    return resource["holders"][0] if resource["holders"] else {}


#: By what resources are sorted; where less says more, the most comes first.
_ORDERS: Final[dict[str, Callable[[Thing], Any]]] = {
    "name": lambda x: (x["lockspace"], x["resource"]),
    "for": lambda x: -_first(x).get("held_for", -1.0),
    "holder": lambda x: _first(x).get("name", ""),
    "pid": lambda x: _first(x).get("pid", 0),
    "user": lambda x: user(_first(x).get("uid", -1)),
    "waiting": lambda x: -x["waiter_count"],
}


def _uid(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    # No more digits than a uid has: int() reads a few thousand and no more.
    if value.isdecimal() and len(value) <= len(str(NO_USER)) and int(value) < NO_USER:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError):
        raise click.BadParameter(f"there is no user {quoted(value)}") from None


@click.command("list", short_help="List what is held or waited for.")
@click.argument("lockspace", required=False)
@click.option("--owner", metavar="NAME", help="Of an owner with this name or UUID.")
@click.option(
    "--user", "uid", metavar="USER", callback=_uid, help="Of a user, by name or uid."
)
@click.option("--pid", type=PROCESS_ID, metavar="PID", help="Of a process.")
@click.option("--unit", metavar="UNIT", help="Of the processes of a systemd unit.")
@click.option(
    "--path", metavar="PATH", help="Of a file, or of all files below a directory."
)
@click.option("--waiting", is_flag=True, help="Only what somebody waits for.")
@click.option(
    "--sort", type=click.Choice(list(_ORDERS)), default="name", show_default=True,
    help="In which order: `for` has what is held longest first, `waiting` what most "
    "wait for.",
)  # fmt: skip
@as_json
@click.pass_obj
def list_(
    socket: str | None,
    /,
    lockspace: str | None,
    path: str | None,
    sort: str,
    waiting: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """List the resources that are held or waited for, in LOCKSPACE or everywhere.

    Several options leave what all of them are about. Whose a resource is counts who
    holds it and who waits for it.

    Piped, the columns are separated by tabs: lockspace, name, mode, number of holders,
    then of the first holder its name, pid, user, how long it has held and why, the
    number of waiters, and the first holder's UUID, which guests have, its command and
    systemd unit.
    """
    if path is not None:
        wanted["path"] = canonical_path(path)
    with connect(socket) as client:
        # Nothing is the same as not said.
        found = client.list_resources(lockspace, waiting=waiting or None, **wanted)
        if sort != "name":
            found = iter(sorted(found, key=_ORDERS[sort]))
        if as_json:
            show_json(resources=found)
        else:
            show_resources(found)


@click.command(short_help="List who waits, for what, behind whom.")
@click.argument("lockspace", required=False)
@click.option(
    "--sort", type=click.Choice(["name", "for"]), default="name", show_default=True,
    help="In which order: by what is waited for, or who waits longest first.",
)  # fmt: skip
@as_json
@click.pass_obj
def waiters(
    socket: str | None, /, lockspace: str | None, sort: str, as_json: bool
) -> None:
    """List who waits for locks, in LOCKSPACE or everywhere, and who must go first.

    Piped, the columns are separated by tabs: lockspace, name, place in the queue, name
    of the waiter, pid, user, mode, for how long it waits, behind whom, reason, command,
    unit.
    """
    with connect(socket) as client:
        found = client.list_waiters(lockspace)
        if sort == "for":
            found = iter(sorted(found, key=itemgetter("waited"), reverse=True))
        if as_json:
            show_json(waiters=found)
            return
        columns = (
            "LOCKSPACE", "LOCKED", "PLACE", "NAME", "PID", "USER", "MODE", "FOR",
            "BEHIND", "REASON", "COMMAND", "UNIT",
        )  # fmt: skip
        show_table(columns, map(_waiter, found), empty="Nobody waits.")


@click.command(short_help="List who is connected.")
@as_json
@click.pass_obj
def sessions(socket: str | None, /, as_json: bool) -> None:
    """List the sessions: the daemon's connections, that of this very command included.

    Piped, the columns are separated by tabs: session, name, pid, user, command, unit,
    client, for how long it is connected, locks held, locks waited for.
    """
    with connect(socket) as client:
        rows = client.list_sessions()
    if as_json:
        show_json(sessions=rows)
        return
    columns = (
        "SESSION", "NAME", "PID", "USER", "COMMAND", "UNIT", "CLIENT", "CONNECTED",
        "HELD", "WAITING",
    )  # fmt: skip
    show_table(columns, map(_session, rows), empty="Nobody is connected.")


@click.command(short_help="List the lockspaces.")
@as_json
@click.pass_obj
def spaces(socket: str | None, /, as_json: bool) -> None:
    """List the lockspaces.

    Piped, the columns are separated by tabs: name, kind, path, what happens to the
    process of a session that ends, resources held, file system.
    """
    with connect(socket) as client:
        rows = client.list_lockspaces()
    if as_json:
        show_json(lockspaces=rows)
        return
    columns = ("NAME", "KIND", "PATH", "ON DISCONNECT", "HELD", "FILE SYSTEM")
    show_table(columns, map(_lockspace, rows), empty="There are no lockspaces.")


def show_resources(resources: Iterable[Thing]) -> None:
    """Shows resources as the protocol lists them, one line each."""
    brief = sys.stdout.isatty()
    columns = (
        "LOCKSPACE", "NAME", "MODE", *(() if brief else ("HOLDERS",)), "HELD BY",
        "PID", "USER", "FOR", "REASON", "WAITING", "UUID", "COMMAND", "UNIT",
    )  # fmt: skip
    rows = (_resource(resource, brief=brief) for resource in resources)
    show_table(columns, rows, empty="Nothing is locked.")


_NOBODY: Final[Thing] = dict.fromkeys(
    ("mode", "name", "pid", "label", "reason", "uuid", "command", "unit")
)


def _resource(resource: Thing, *, brief: bool) -> list[object]:
    holders, count = resource["holders"], resource["holder_count"]
    first = holders[0] if holders else _past_lockd(resource)
    # On a terminal, that others share the lock outlives every cut: `tar +1`.
    more = f" +{count - 1}" if brief and count > 1 else ""
    return [
        resource["lockspace"],
        resource["resource"],
        first["mode"],
        *(() if brief else (count,)),
        first["name"] and first["name"] + more,
        first["pid"],
        user(first["uid"]) if holders else None,
        duration(first["held_for"]) if holders else None,
        purpose(first),
        resource["waiter_count"],
        first["uuid"],
        first["command"],
        first["unit"],
    ]


def _past_lockd(resource: Thing) -> Thing:
    """Returns who holds what nobody holds in lockd, as far as the daemon met him."""
    outside = resource.get("outside")  # a daemon that is older does not say
    if outside is None:
        return _NOBODY
    return _NOBODY | {
        "mode": outside["mode"],
        "name": obstacle(outside | {"pid": None}),
        "pid": outside["pid"],
    }


def _waiter(waiter: Thing) -> list[object]:
    place = "converts" if waiter["converting"] else ordinal(waiter["place"])
    return [
        waiter["lockspace"],
        waiter["resource"],
        place,
        waiter["name"],
        waiter["pid"],
        user(waiter["uid"]),
        waiter["mode"],
        duration(waiter["waited"]),
        ", ".join(_behind(waiter)),
        purpose(waiter),
        waiter["command"],
        waiter["unit"],
    ]


def _behind(waiter: Thing) -> Iterator[str]:
    for other in waiter["behind"]:
        yield f"{other['name']} ({other['pid']})"
    if outside := waiter["outside"]:
        yield obstacle(outside)


def _session(session: Thing) -> list[object]:
    return [
        session["session"],
        session["name"],
        session["pid"],
        user(session["uid"]),
        session["command"],
        session["unit"],
        session["client"],
        duration(session["connected_for"]),
        session["held"],
        session["waiting"],
    ]


def _lockspace(space: Thing) -> list[object]:
    keys = ("name", "kind", "path", "on_disconnect", "held", "file_system")
    return [space[key] for key in keys]
