"""`lockctl acquire`: takes a lock for another process, which holds it until it ends."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from lockd.client import within
from lockd.client.blocking import connect
from lockd.client.threads.grants import Grant
from lockd.ctl.act.reserve import Sleeper
from lockd.ctl.act.units import main_pid
from lockd.ctl.line.clicks import Read, as_json, of_holder
from lockd.ctl.options import (
    common_lockspace,
    meant,
    mode_of,
    note_files,
    process_id,
    span,
)
from lockd.ctl.render import Thing, show_json
from lockd.ctl.streams import say
from lockd.names import quoted
from lockd.procs import name_of
from lockd.terms import SLOT, Mode
from lockd.text import duration


@click.command(
    short_help="Take a lock for another process or unit.",
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--owner-pid", type=Read(process_id), metavar="PID",
    help="Let this process hold the lock until it ends.",
)  # fmt: skip
@click.option(
    "--owner-unit", metavar="UNIT",
    help="Let the main process of this systemd unit hold the lock until it ends.",
)  # fmt: skip
@click.option(
    "--for", "reserve_for", metavar="TIME", type=Read(span),
    help="Reserve the lock for a TIME such as 90, 30m, 4h or 2d: a process that sleeps "
    "holds it. `lockctl release NAME` gives it back.",
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
    reserve_for: int | None,
    shared: bool,
    slots: int | None,
    slot: bool,
    timeout: float | None,
    max_waiting: int | None,
    max_hold: int | None,
    lockspace: str | None,
    owner: str | None,
    reason: str | None,
    label: str | None,
    as_json: bool,
) -> None:
    """Take the lock NAME for another process, which then holds it until it ends.

    lockctl prints the fencing token and exits when the lock is granted. `lockctl
    release` gives the lock back before the process ends. lockctl takes several NAMEs
    together or none of them. To hold a lock yourself, use `lockctl run` or `lockctl
    hold`.

    With --for, lockctl starts a process that sleeps, and takes the lock for it. So the
    lock is yours after you close the terminal, until the time is over, until `lockctl
    release`, or until a reboot. The time begins when the lock is granted.

    The process may belong to any user. Unless you are root, a lock for another user's
    process stays yours: others see your user name as its owner, the process cannot
    release it, and lockd never kills the process to free it.
    """
    if (owner_pid, owner_unit, reserve_for).count(None) != 2:
        raise click.UsageError(
            "name the process with either --owner-pid or --owner-unit, or reserve the "
            "lock with --for; to hold a lock yourself use `lockctl hold` or `lockctl "
            "run`"
        )
    keys = [meant(name, lockspace) for name in names]
    note_files(names, lockspace)
    how = mode_of(names, shared=shared, slots=slots, slot=slot)
    take = partial(
        _take,
        socket,
        common_lockspace(keys),
        [key.resource for key in keys],
        mode=how["mode"],
        slots=how["slots"],
        timeout=timeout,
        max_waiting=max_waiting,
        max_hold=max_hold,
        label=label,
        reason=reason,
    )
    names_shown = ", ".join(quoted(str(key)) for key in keys)
    if reserve_for is None:
        pid = owner_pid or main_pid(owner_unit or "")
        found = take(owner or owner_unit or name_of(pid), pid)
        said = f"process {pid} holds {names_shown} until it ends"
    else:
        # Before the connection, so that the process does not share it.
        with Sleeper(reserve_for) as sleeper:
            pid = sleeper.pid
            found = take(owner or "reserved", pid)
            sleeper.start()
        how_long = f"for {duration(reserve_for)}, or until `lockctl release`"
        said = f"process {pid} holds {names_shown} {how_long}"
    if as_json:
        show_json(pid=pid, grants=found)
        return
    # Print this first: it is true even if printing the tokens fails.
    slot = found[0]["slot"]
    say(said if slot is None else f"{said}, in slot {slot} of {found[0]['slots']}")
    for grant in found:
        print(grant["fencing_token"])


def _take(
    socket: str | None,
    lockspace: str,
    names: list[str],
    owner: str,
    pid: int,
    *,
    mode: Mode,
    slots: int | None,
    timeout: float | None,
    **wanted: Any,
) -> list[Thing]:
    """Takes the locks for a process. Returns the grants, for people and for JSON."""
    with connect(socket) as client:
        client.register(owner, pid=pid)
        wanted["lockspace"] = lockspace
        until = None if timeout is None else time.monotonic() + timeout

        def acquire(part: list[str]) -> Sequence[Grant]:
            wanted["timeout"] = until and max(until - time.monotonic(), 0)
            if mode == SLOT:
                return [client.acquire(part[0], slots=slots, **wanted)]
            return client.acquire_all(part, mode=mode, **wanted)

        def holds(name: str, token: int) -> bool:
            return client.check(name, token, lockspace=lockspace)

        grants: list[Grant] = []
        try:
            for part in within.apart(names, within.tokens_of(client.instance), holds):
                grants += acquire(part)
        except BaseException:
            # The process would keep what was acquired until its end.
            for grant in grants:
                grant.release()
            raise
        grants.sort(key=lambda grant: names.index(grant.resource))
        return [
            {
                "lockspace": grant.lockspace,
                "resource": grant.resource,
                "mode": grant.mode,
                "slot": grant.slot,
                "slots": grant.slots,
                "fencing_token": grant.fencing_token,
                "inside": list(grant.inside),
                "waited": grant.waited,
            }
            for grant in grants
        ]
