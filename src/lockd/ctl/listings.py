"""`lockctl list`, `sessions` and `spaces`: everything of a kind, one line each."""

from collections.abc import Iterable
from typing import Any

import click

from lockd.client.blocking import connect
from lockd.ctl.options import as_json
from lockd.ctl.render import purpose, show_json, show_table, user
from lockd.text import duration


@click.command("list", short_help="List what is held or waited for.")
@click.argument("lockspace", required=False)
@as_json
@click.pass_obj
def list_(socket: str | None, /, lockspace: str | None, as_json: bool) -> None:
    """List the resources that are held or waited for, in LOCKSPACE or everywhere.

    Piped, the columns are separated by tabs: lockspace, name, mode, number of holders,
    then of the first holder its name, pid, user, how long it has held and why, the
    number of waiters, and the first holder's UUID, which guests have.
    """
    with connect(socket) as client:
        resources = list(client.list_resources(lockspace))
    if as_json:
        show_json(resources)
        return
    show_resources(resources)


@click.command(short_help="List who is connected.")
@as_json
@click.pass_obj
def sessions(socket: str | None, /, as_json: bool) -> None:
    """List the sessions: the daemon's connections.

    Piped, the columns are separated by tabs: session, name, pid, user, command, unit,
    client, for how long it is connected, locks held, locks waited for.
    """
    with connect(socket) as client:
        rows = client.list_sessions()
    if as_json:
        show_json(rows)
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
    process of a session that ends, resources held.
    """
    with connect(socket) as client:
        rows = client.list_lockspaces()
    if as_json:
        show_json(rows)
        return
    columns = ("NAME", "KIND", "PATH", "ON DISCONNECT", "HELD")
    show_table(columns, map(_lockspace, rows), empty="There are no lockspaces.")


def show_resources(resources: Iterable[dict[str, Any]]) -> None:
    """Shows resources as the protocol lists them, one line each."""
    columns = (
        "LOCKSPACE", "NAME", "MODE", "HOLDERS", "HELD BY", "PID", "USER", "FOR",
        "REASON", "WAITING", "UUID",
    )  # fmt: skip
    show_table(columns, map(_resource, resources), empty="Nothing is locked.")


def _resource(resource: dict[str, Any]) -> list[object]:
    first = resource["holders"][0] if resource["holders"] else None
    return [
        resource["lockspace"],
        resource["resource"],
        first and first["mode"],
        resource["holder_count"],
        first and first["name"],
        first and first["pid"],
        first and user(first["uid"]),
        first and duration(first["held_for"]),
        first and purpose(first),
        resource["waiter_count"],
        first and first["uuid"],
    ]


def _session(session: dict[str, Any]) -> list[object]:
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


def _lockspace(space: dict[str, Any]) -> list[object]:
    keys = ("name", "kind", "path", "on_disconnect", "held")
    return [space[key] for key in keys]
