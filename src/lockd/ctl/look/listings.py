"""`lockctl list`, `waiters`, `sessions`, `spaces`: one line for each."""

import pwd
import sys
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final

import click

from lockd.client.blocking import connect
from lockd.ctl.line.clicks import Read, as_json
from lockd.ctl.options import process_id
from lockd.ctl.render import (
    Thing,
    configured_slots,
    held_by,
    inside_of,
    is_overdue,
    obstacle,
    show_json,
    shown_mode,
    standing,
    user,
)
from lockd.ctl.table import Cells, cells_of, show_table
from lockd.names import canonical_path, quoted

NO_USER: Final = 2**32 - 1
"""The uid that means nobody (setresuid(2)). Uids of users are lower."""


def _first(resource: Thing) -> Thing:
    return resource["holders"][0] if resource["holders"] else {}


#: The sort keys of resources. Numbers are sorted with the greatest first.
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
    # No more digits than a uid has: int() rejects a few thousand.
    if value.isdecimal() and len(value) <= len(str(NO_USER)) and int(value) < NO_USER:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError):
        raise click.BadParameter(f"there is no user {quoted(value)}") from None


@click.command("list", short_help="List all locks that are held or waited for.")
@click.argument("lockspace", required=False)
@click.option(
    "--owner", metavar="NAME", help="Only locks of owners with this name or UUID."
)
@click.option(
    "--user", "uid", metavar="USER", callback=_uid,
    help="Only locks of this user (name or uid).",
)  # fmt: skip
@click.option(
    "--pid", type=Read(process_id), metavar="PID", help="Only locks of a process."
)
@click.option(
    "--unit", metavar="UNIT", help="Only locks of the processes of a systemd unit."
)
@click.option(
    "--path", metavar="PATH",
    help="Only locks on a file, or on files below a directory.",
)  # fmt: skip
@click.option("--waiting", is_flag=True, help="Only locks that somebody waits for.")
@click.option(
    "--sort", type=click.Choice(list(_ORDERS)), default="name", show_default=True,
    help="Sort by this; `for`: the longest hold first, `waiting`: the most waiters "
    "first.",
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
    """List the locks that are held or waited for, in LOCKSPACE or everywhere.

    Filters combine with AND. A lock belongs to its holders and to its waiters. If you
    filter by a party, lockctl shows the first holder that matches, and --json all.

    In a pipe, tabs separate the columns: lockspace, name, mode, number of holders;
    name, pid and user of the first holder, time held, reason; number of waiters; UUID
    (for guests), command and systemd unit of the first holder; `overdue` if a holder
    holds the lock for longer than it may; token of the innermost lock inside which it
    is held.
    """
    if path is not None:
        wanted["path"] = canonical_path(path)
    with connect(socket) as client:
        # None means not given.
        found = client.list_resources(lockspace, waiting=waiting or None, **wanted)
        if sort != "name":
            found = iter(sorted(found, key=_ORDERS[sort]))
        if as_json:
            show_json(resources=found)
        else:
            show_resources(found)


@click.command(short_help="List the waiters, and the owners that go first.")
@click.argument("lockspace", required=False)
@click.option(
    "--sort", type=click.Choice(["name", "for"]), default="name", show_default=True,
    help="Sort by the name of the lock, or `for`: the longest wait first.",
)  # fmt: skip
@as_json
@click.pass_obj
def waiters(
    socket: str | None, /, lockspace: str | None, sort: str, as_json: bool
) -> None:
    """List the waiters in LOCKSPACE or everywhere, and the owners that go before them.

    In a pipe, tabs separate the columns: lockspace, lock, place in the queue; name, pid
    and user of the waiter, mode, time waited, owners before it, reason, command, unit,
    token of the innermost lock that the waiter is inside of.
    """
    with connect(socket) as client:
        found = client.list_waiters(lockspace)
        if sort == "for":
            found = iter(sorted(found, key=itemgetter("waited"), reverse=True))
        if as_json:
            show_json(waiters=found)
            return
        titles = (
            "LOCKSPACE", "LOCKED", "PLACE", "NAME", "PID", "USER", "MODE", "FOR",
            "BEHIND", "REASON", "COMMAND", "UNIT", "INSIDE",
        )  # fmt: skip
        show_table(titles, map(_waiter, found), empty="Nobody waits.")


@click.command(short_help="List the connected sessions.")
@as_json
@click.pass_obj
def sessions(socket: str | None, /, as_json: bool) -> None:
    """List the sessions: the daemon's connections, including that of this command.

    In a pipe, tabs separate the columns: session, name, pid, user, command, unit,
    client, time connected, locks held, locks waited for.
    """
    with connect(socket) as client:
        rows = client.list_sessions()
    if as_json:
        show_json(sessions=rows)
        return
    titles = (
        "SESSION", "NAME", "PID", "USER", "COMMAND", "UNIT", "CLIENT", "CONNECTED",
        "HELD", "WAITING",
    )  # fmt: skip
    show_table(titles, map(_session, rows), empty="Nobody is connected.")


@click.command(short_help="List the lockspaces.")
@as_json
@click.pass_obj
def spaces(socket: str | None, /, as_json: bool) -> None:
    """List the lockspaces.

    SLOTS has the patterns of names with a configured number of slots; the first pattern
    that matches counts.

    In a pipe, tabs separate the columns: name, kind, path, on_disconnect, locks held,
    file system, slots.
    """
    with connect(socket) as client:
        rows = client.list_lockspaces()
    if as_json:
        show_json(lockspaces=rows)
        return
    titles = ("NAME", "KIND", "PATH", "ON DISCONNECT", "HELD", "FILE SYSTEM", "SLOTS")
    show_table(titles, map(_lockspace, rows), empty="There are no lockspaces.")


def show_resources(resources: Iterable[Thing]) -> None:
    """Prints resources of a listing, one line each."""
    brief = sys.stdout.isatty()
    titles = (
        "LOCKSPACE", "NAME", "MODE", *(() if brief else ("HOLDERS",)), "HELD BY",
        "PID", "USER", "FOR", "REASON", "WAITING", "UUID", "COMMAND", "UNIT", "OVERDUE",
        "INSIDE",
    )  # fmt: skip
    rows = (_resource(resource, brief=brief) for resource in resources)
    show_table(titles, rows, empty="Nothing is locked.")


def _resource(resource: Thing, *, brief: bool) -> Cells:
    count = resource["holder_count"]
    first = resource["holders"][0] if resource["holders"] else None
    outside = resource.get("outside")  # an older daemon does not send it
    # Piped, the number of holders has its own column.
    by = held_by(first, count if brief else 1, outside)
    return _holder(first, outside) | {
        "LOCKSPACE": resource["lockspace"],
        "NAME": resource["resource"],
        "MODE": shown_mode(resource),
        "HOLDERS": count,
        "HELD BY": by,
        "WAITING": resource["waiter_count"],
        "OVERDUE": "overdue" if any(map(is_overdue, resource["holders"])) else None,
        "INSIDE": inside_of(resource["holders"]),
    }


def _holder(first: Thing | None, outside: Thing | None) -> dict[str, Any]:
    """Returns the cells for the first holder, or for the process outside lockd."""
    if first is not None:
        return cells_of(first) | {"FOR": first["held_for"], "UUID": first["uuid"]}
    if outside is not None:
        return {"MODE": outside["mode"], "PID": outside["pid"]}
    return {}


def _waiter(waiter: Thing) -> Cells:
    place = standing(waiter["place"], converting=waiter["converting"])
    return cells_of(waiter) | {
        "LOCKSPACE": waiter["lockspace"],
        "LOCKED": waiter["resource"],
        "PLACE": place,
        "FOR": waiter["waited"],
        "BEHIND": ", ".join(_behind(waiter)),
    }


def _behind(waiter: Thing) -> Iterator[str]:
    for other in waiter["behind"]:
        yield f"{other['name']} ({other['pid']})"
    if outside := waiter["outside"]:
        yield obstacle(outside)


def _session(session: Thing) -> Cells:
    return cells_of(session) | {
        "SESSION": session["session"],
        "CLIENT": session["client"],
        "CONNECTED": session["connected_for"],
        "HELD": session["held"],
        "WAITING": session["waiting"],
    }


def _lockspace(space: Thing) -> Cells:
    return {
        "NAME": space["name"],
        "KIND": space["kind"],
        "PATH": space["path"],
        "ON DISCONNECT": space["on_disconnect"],
        "HELD": space["held"],
        "FILE SYSTEM": space["file_system"],
        "SLOTS": configured_slots(space),
    }
