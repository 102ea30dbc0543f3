"""`lockctl status`: how the daemon is, and what a crash would cost just now."""

from typing import Any

import click

from lockd.client.blocking import connect
from lockd.ctl.options import as_json
from lockd.ctl.render import show_facts, show_json
from lockd.text import counted, duration


@click.command(short_help="Say how the daemon is, and what would survive a crash.")
@as_json
@click.pass_obj
def status(socket: str | None, /, as_json: bool) -> None:
    """Say how the daemon is, and what would survive if it were killed just now.

    Piped, what each line is about and its value are separated by a tab.
    """
    with connect(socket) as client:
        found = client.statistics()
    if as_json:
        show_json(found)
    else:
        show_facts(_facts(found))


def _facts(found: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("version", found["version"]),
        ("pid", found["pid"]),
        ("unit", found["unit"]),
        ("uptime", duration(found["uptime"])),
        ("epoch", found["epoch"]),
        ("live upgrades", found["upgrades"]),
        ("sessions", found["sessions"]),
        ("held", found["held"]),
        ("waiting", found["waiting"]),
        ("survives a crash", _what_survives(found["kept"])),
    ]


def _what_survives(kept: dict[str, Any]) -> str:
    if kept["by"] is None:
        return (
            "nothing: it was not started by a service manager with a descriptor "
            "store, and all locks and connections end with it"
        )
    locks, connections = kept["locks"], kept["connections"]
    return (
        f"everything: {counted(locks, 'lock')} and "
        f"{counted(connections, 'connection')} are kept by the {kept['by']}"
    )
