"""`lockctl reload`, and `lockctl stop`, which loses all locks."""

import os
import select
import signal
import subprocess
import threading
from itertools import islice
from typing import Final

import click

from lockd.client.blocking import connect
from lockd.ctl import exits
from lockd.ctl.act.confirm import NOT_WANTED, is_wanted, sure
from lockd.ctl.act.units import manager_of
from lockd.ctl.look.listings import show_resources
from lockd.ctl.streams import say
from lockd.errors import UnknownMethodError
from lockd.text import counted

SHOWN: Final = 20
"""How many of the lost locks are listed."""


@click.command(short_help="Reload the daemon's configuration and program.")
@click.pass_obj
def reload(socket: str | None, /) -> int:
    """Reload the configuration of the daemon, and upgrade it to the installed version.

    lockctl exits when both are in effect. All locks and connections stay. If the
    configuration is invalid, or the new version cannot take over, nothing changes and
    lockctl exits with 69. Only admins may reload. `systemctl reload lockd` does the
    same.
    """
    # Under `systemctl reload` the manager names the daemon before the daemon can
    # answer.
    if (pid := os.environ.get("MAINPID", "")).isdecimal():
        _end_with(int(pid))
    with connect(socket) as client:
        if not pid:
            _end_with(client.statistics()["pid"])
        try:
            client.reload()
        except UnknownMethodError:
            # An older version. The new one is about to replace it.
            pid = client.statistics()["pid"]
            os.kill(pid, signal.SIGUSR1)
            say(f"lockd (pid {pid}) is an older version: see its log for the result")
            return exits.OK
        found = client.statistics()
    say(f"lockd {found['version']} (pid {found['pid']}) has reloaded")
    for problem in found["problems"]:
        say(f"problem: {problem}")
    return exits.OK


def _end_with(pid: int) -> None:
    """Ends this process when the daemon ends.

    The connection may outlive the daemon, so its end would go unnoticed. A service
    manager may restart the daemon only after this command has ended.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pidfd = None
    except OSError:  # the process cannot be watched
        return

    def watch() -> None:
        if pidfd is not None:
            select.select([pidfd], [], [])
        say(f"lockd (pid {pid}) exited during the reload: see its log")
        os._exit(exits.UNAVAILABLE)

    threading.Thread(target=watch, daemon=True).start()


@click.command(short_help="Show which locks will be lost, ask, and stop the daemon.")
@sure
@click.pass_obj
def stop(socket: str | None, /, yes: bool) -> int:
    """Stop the daemon and its sockets. lockctl first lists the locks that will be lost.

    lockctl asks on a terminal; elsewhere it needs --yes. It exits with 1 if the answer
    is no. This works only for a daemon that systemd runs.
    """
    with connect(socket) as client:
        found = client.statistics()
        manager, units = manager_of(found["pid"], found["unit"])
        # Our own session loses nothing.
        others = found["sessions"] - 1
        first = list(islice(client.list_resources(), SHOWN))
    if first:
        show_resources(first)
    say(_loss(found["held"], others, more=found["resources"] - len(first)))
    command = [*manager, "stop", *units]
    if not is_wanted(f"run `{' '.join(command)}`?", yes=yes):
        return NOT_WANTED
    if status := subprocess.run(command, check=False).returncode:
        say(f"`{' '.join(command)}` failed with status {status}")
        return exits.UNAVAILABLE
    again = [unit for unit in units if unit != found["unit"]] or units
    say(f"stopped; `{' '.join([*manager, 'start', *again])}` starts it again")
    return exits.OK


def _loss(held: int, sessions: int, *, more: int) -> str:
    listed = f" ({more} more are not listed)" if more > 0 else ""
    if not held and not sessions:
        return "nobody holds a lock, and nobody else is connected"
    return (
        f"{counted(held, 'lock')} would be lost{listed}, and "
        f"{counted(sessions, 'session')} would end"
    )
