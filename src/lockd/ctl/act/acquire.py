"""`lockctl acquire`: takes a lock for another process, which holds it until it ends."""

import click

from lockd.client.blocking import connect
from lockd.ctl.act.units import main_pid
from lockd.ctl.options import (
    PROCESS_ID,
    as_json,
    common_lockspace,
    meant,
    note_files,
    of_holder,
)
from lockd.ctl.render import say, show_json
from lockd.names import quoted
from lockd.procs import name_of
from lockd.terms import EXCLUSIVE, SHARED


@click.command(
    short_help="Take a lock for another process or unit.",
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--owner-pid", type=PROCESS_ID, metavar="PID",
    help="Let this process hold the lock until it ends.",
)  # fmt: skip
@click.option(
    "--owner-unit", metavar="UNIT",
    help="Let the main process of this systemd unit hold the lock until it ends.",
)  # fmt: skip
@of_holder
@as_json
@click.pass_obj
def acquire(
    socket: str | None,
    /,
    names: tuple[str, ...],
    owner_pid: int | None,
    owner_unit: str | None,
    shared: bool,
    timeout: float | None,
    max_waiting: int | None,
    lockspace: str | None,
    owner: str | None,
    reason: str | None,
    label: str | None,
    as_json: bool,
) -> None:
    """Take the lock NAME for another process, which then holds it until it ends.

    lockctl prints the fencing token and exits when the lock is granted. `lockctl break`
    takes the lock away before the process ends. lockctl takes several NAMEs together or
    none of them. To hold a lock yourself, use `lockctl run` or `lockctl hold`.

    The process may belong to any user. Unless you are root, a lock for another user's
    process stays yours: others see your user name as its owner, the process cannot
    release it, and lockd never kills the process to free it.
    """
    if (owner_pid is None) is (owner_unit is None):
        raise click.UsageError(
            "name the process with either --owner-pid or --owner-unit; to hold a lock "
            "yourself use `lockctl hold` or `lockctl run`"
        )
    pid = owner_pid if owner_unit is None else main_pid(owner_unit)
    assert pid is not None
    keys = [meant(name, lockspace) for name in names]
    note_files(names, lockspace)
    with connect(socket) as client:
        client.register(owner or owner_unit or name_of(pid), pid=pid)
        grants = client.acquire_all(
            [key.resource for key in keys],
            lockspace=common_lockspace(keys),
            mode=SHARED if shared else EXCLUSIVE,
            timeout=timeout,
            max_waiting=max_waiting,
            label=label,
            reason=reason,
        )
        found = [
            {
                "lockspace": grant.lockspace,
                "resource": grant.resource,
                "mode": grant.mode,
                "fencing_token": grant.fencing_token,
                "waited": grant.waited,
            }
            for grant in grants
        ]
    if as_json:
        show_json(pid=pid, grants=found)
        return
    names_shown = ", ".join(quoted(str(key)) for key in keys)
    # Print this first: it is true even if printing the tokens fails.
    say(f"process {pid} holds {names_shown} until it ends")
    for grant in found:
        print(grant["fencing_token"])
