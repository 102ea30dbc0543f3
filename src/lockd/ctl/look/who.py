"""`lockctl who`: the holders of a name or a file, in lockd and outside."""

import os
from collections.abc import Iterator
from contextlib import suppress

import click

from lockd.client.blocking import Client, connect
from lockd.ctl.line.clicks import as_json
from lockd.ctl.look.files import (
    check_exists,
    keys_of_file,
    outsiders_of,
    program_of,
    states_of,
)
from lockd.ctl.options import is_path
from lockd.ctl.render import Thing, note_unnamed, show_json
from lockd.ctl.streams import say
from lockd.ctl.table import Cells, cells_of, show_table
from lockd.errors import LockdError
from lockd.names import CHECK_OF_KIND, canonical_path, check_name, plain, quoted
from lockd.terms import ResourceKey


@click.command(short_help="Show the holders of a name or a file.")
@click.argument("name", metavar="PATH-or-NAME")
@as_json
@click.pass_obj
def who(socket: str | None, /, name: str, as_json: bool) -> int:
    """Show the holders of a name or a file, in all lockspaces and outside lockd.

    lockctl finds a file by its canonical path, by the hash of that path (see `lockctl
    lock-name`), by labels, and by its other paths (hard links and bind mounts).

    lockctl also shows locks that other programs have on the file, and the processes
    that hold them. Only root sees processes of other users. If you may not see the
    locks of lockd, lockctl marks a lock that perhaps belongs to lockd. lockctl exits
    with 0 if the lock is held, with 1 if it is free, and with 64 if nobody holds it and
    the file does not exist.

    In a pipe, tabs separate the columns: lockspace (`-` for a lock outside lockd),
    locked name; name, pid, user, command and unit of the holder; mode, start time,
    reason (or the kind of a lock outside lockd), slot.

    lockctl names at most 16 holders of a lock, and says how many more there are.
    `lockctl list --pid PID --json` shows the holder that is process PID.
    """
    is_file = is_path(name)
    if not is_file:
        check_name(name)
    with connect(socket) as client:
        keys = keys_of_file(client, name) if is_file else _keys_of_name(client, name)
        states = list(states_of(client, keys))
        held = sum(bool(state["holders"]) for state in states)
        others = outsiders_of(client, name, held) if is_file else []
    if is_file and not (held or others):
        check_exists(canonical_path(name))
    count = sum(state["holder_count"] for state in states)
    holders = [holder for state in states for holder in _holders(state)]
    if as_json:
        show_json(name=name, holders=holders, holder_count=count, outside=others)
    elif holders or others:
        titles = (
            "LOCKSPACE", "LOCKED", "NAME", "PID", "USER", "COMMAND", "UNIT", "MODE",
            "SINCE", "REASON", "SLOT",
        )  # fmt: skip
        rows = [row for state in states for row in _rows(state)]
        rows += [_outsider_row(name, x) for x in others]
        show_table(titles, rows, empty="")
        for state in states:
            note_unnamed(state)
    else:
        is_both = not is_file and os.path.lexists(name)
        hint = f"; to look up the file, write ./{plain(name)}" if is_both else ""
        say(f"nobody holds {quoted(name)}{hint}")
    return 0 if holders or others else 1


def _keys_of_name(client: Client, name: str) -> list[ResourceKey]:
    found = []
    for space in client.list_lockspaces():
        with suppress(LockdError):
            CHECK_OF_KIND[space["kind"]](name)
            found.append(ResourceKey(space["name"], name))
    return found


def _holders(state: Thing) -> Iterator[Thing]:
    where = {key: state[key] for key in ("lockspace", "resource")}
    for holder in state["holders"]:
        yield where | holder


def _rows(state: Thing) -> Iterator[Cells]:
    for holder in _holders(state):
        where = {"LOCKSPACE": holder["lockspace"], "LOCKED": holder["resource"]}
        when = {"SINCE": holder["since"], "SLOT": holder.get("slot")}
        yield cells_of(holder) | where | when
    if more := state["holder_count"] - len(state["holders"]):
        where = {"LOCKSPACE": state["lockspace"], "LOCKED": state["resource"]}
        yield where | {"NAME": f"{more} more hold it"}


def _outsider_row(name: str, found: Thing) -> Cells:
    end = "EOF" if found["to"] is None else found["to"]
    span = "" if (found["from"], end) == (0, "EOF") else f", {found['from']} to {end}"
    waits = "waits for a " if found["waits"] else ""
    whose = "perhaps lockd's" if found["perhaps_lockd"] else "not lockd's"
    whose = {"qemu": "QEMU's", "sqlite": "SQLite's"}.get(found["by"], whose)
    return cells_of(found) | {
        "LOCKED": canonical_path(name),
        "NAME": program_of(found),
        "REASON": f"{waits}{found['kind']} lock{span}, {whose}",
    }
