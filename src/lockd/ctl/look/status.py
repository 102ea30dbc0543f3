"""`lockctl status` and `metrics`: the state of the daemon."""

import click

from lockd.client import paths
from lockd.client.blocking import connect
from lockd.ctl.line.clicks import as_json
from lockd.ctl.others import CHOOSE
from lockd.ctl.render import Thing, configured_slots, show_json, user
from lockd.ctl.table import show_facts
from lockd.text import counted, duration

_LIMITS = {
    "sessions": "sessions",
    "admin_sessions": "admins' sessions",
    "descriptors": "descriptors",
    "sessions_per_user": "sessions of one user",
    "locks_per_user": "locks of one user",
    "requests_per_user": "requests of one user",
    "text_bytes_per_user": "bytes of text of one user",
    "record_bytes": "bytes of records",
}


@click.command(short_help="Show the daemon's state, limits and survival of a crash.")
@as_json
@click.pass_obj
def status(socket: str | None, /, as_json: bool) -> None:
    """Show the state of the daemon, its limits, and what would survive a crash now.

    The first line has the socket that lockctl uses. If another daemon listens at a
    default socket, the second line has that socket.

    For a limit per user, lockctl shows the user that is nearest to it. In a pipe, a tab
    separates the name of each line from its value.
    """
    address = paths.find_socket(socket)
    with connect(address) as client:
        found = client.statistics()
        spaces = client.list_lockspaces()
    if as_json:
        show_json(
            socket=address.path,
            other_sockets=list(address.others),
            status=found,
            lockspaces=spaces,
        )
        return
    others = [("another daemon", f"{path}: {CHOOSE}") for path in address.others]
    facts = [*_facts(found, spaces), *_limits(found), *map(_space, spaces)]
    show_facts([("socket", address.path), *others, *facts])


@click.command(short_help="Print the daemon's metrics, for Prometheus.")
@click.pass_obj
def metrics(socket: str | None, /) -> None:
    """Print the daemon's metrics in the text format of OpenMetrics."""
    with connect(socket) as client:
        click.echo(client.metrics(), nl=False)


def _held(spaces: list[Thing]) -> int:
    """Returns how many locks are held; a shared one counts once."""
    return sum(space["held"] or 0 for space in spaces)


def _version(found: Thing) -> str:
    """Returns the version, and how the daemon runs; an older one does not say it."""
    ways: dict[object, str] = {True: " (compiled)", False: " (interpreted)"}
    return f"{found['version']}{ways.get(found.get('compiled'), '')}"


def _facts(found: Thing, spaces: list[Thing]) -> list[tuple[str, object]]:
    upgrade = found["upgrade"]
    ready = "ready" if upgrade["ready"] else f"not now: {upgrade['why']}"
    return [
        ("version", _version(found)),
        ("pid", found["pid"]),
        ("unit", found["unit"]),
        ("uptime", duration(found["uptime"])),
        ("epoch", found["epoch"]),
        ("live upgrades", f"{found['upgrades']} so far; {ready} for another"),
        ("sessions", found["sessions"]),
        ("held", _held(spaces)),
        ("holders", found["held"]),
        ("waiting", found["waiting"]),
        ("survives a crash", _what_survives(found["kept"], _held(spaces))),
        *(("problem", problem) for problem in found.get("problems", ())),
    ]


def _limits(found: Thing) -> list[tuple[str, object]]:
    return [
        (f"limit: {_LIMITS.get(name, name)}", _fullness(limit))
        for name, limit in found["limits"].items()
    ]


def _fullness(limit: Thing) -> str:
    used, most = limit["used"], limit["most"]
    share = f"{100 * used // most} %" if used * 100 >= most or not used else "< 1 %"
    whose = f", {user(limit['uid'])}" if limit["uid"] is not None and used else ""
    return f"{used} of {most} ({share}{whose})"


def _space(space: Thing) -> tuple[str, object]:
    where = f" in {space['path']}" if space["path"] else ""
    on = f" ({space['file_system']})" if space["file_system"] else ""
    held = "" if space["held"] is None else f", {space['held']} held"
    kill = ", kills owners that disconnect" if space["on_disconnect"] == "kill" else ""
    slots = f", slots: {found}" if (found := configured_slots(space)) else ""
    return (
        f"lockspace {space['name']}",
        f"{space['kind']}{where}{on}{held}{kill}{slots}",
    )


def _what_survives(kept: Thing, locks: int) -> str:
    if kept["by"] is None:
        return (
            "nothing: neither `lockd keep` nor a service manager with a descriptor "
            "store started lockd, so a crash loses all locks and connections"
        )
    connections = counted(kept["connections"], "connection")
    held = counted(locks, "lock")
    by = kept["by"] if kept["by"].startswith("lockd") else f"the {kept['by']}"
    return f"everything: {by} keeps {held} and {connections}"
