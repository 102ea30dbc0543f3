"""`lockctl hold`: holds a lock while this process lives.

It serves systemd units that need a lock (`lockd-hold@.service`), and any program that
can wait for a line and send a signal.
"""

import os
import select
import signal

import click

from lockd.ctl.exits import BUSY, EXITS, LOST, NOT_EXECUTABLE, NOT_FOUND
from lockd.ctl.line.clicks import of_holder
from lockd.ctl.options import common_lockspace, meant, mode_of, note_files
from lockd.ctl.run.session import Session
from lockd.ctl.streams import say
from lockd.errors import LockdError
from lockd.names import quoted
from lockd.notify import notify

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Other meanings of some exit statuses without a command; statuses that never occur.
_MEANINGS = {BUSY: "busy or timed out", LOST: "the lock was lost"}
_OF_COMMANDS = (NOT_EXECUTABLE, NOT_FOUND)


class _HoldCommand(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            rows = [
                (str(x.status), _MEANINGS.get(x.status, x.meaning))
                for x in EXITS
                if x.status not in _OF_COMMANDS
            ]
            formatter.write_dl([("0", "a signal stopped it; the lock is free"), *rows])


@click.command(
    cls=_HoldCommand,
    short_help="Hold a lock until a signal stops lockctl.",
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@of_holder
@click.pass_obj
def hold(
    socket: str | None,
    /,
    names: tuple[str, ...],
    lockspace: str | None,
    shared: bool,
    slots: int | None,
    slot: bool,
    timeout: float | None,
    max_waiting: int | None,
    max_hold: int | None,
    owner: str | None,
    reason: str | None,
    label: str | None,
) -> None:
    """Hold the lock NAME until SIGTERM, SIGINT or SIGHUP, then release it.

    lockctl takes several NAMEs together or none of them. When the lock is granted,
    lockctl prints "held" and tells the service manager that the service is ready. For a
    slot it prints "held slot 2 of 4". If the lock is lost, lockctl prints the reason
    and exits.
    """
    keys = [meant(name, lockspace) for name in names]
    note_files(names, lockspace)
    shown = ", ".join(quoted(str(key)) for key in keys)
    notify(f"STATUS=waits for {shown}")
    session = Session(socket, "lockctl hold")
    session.acquire(
        [key.resource for key in keys],
        common_lockspace(keys),
        **mode_of(names, shared=shared, slots=slots, slot=slot),
        timeout=timeout,
        max_waiting=max_waiting,
        max_hold=max_hold,
        label=label,
        reason=reason,
        owner=owner or "lockctl hold",
        owner_pid=None,
    )
    told_to_stop = _wakeup_descriptor()
    tokens = ", ".join(str(grant.fencing_token) for grant in session.grants)
    first = session.grants[0]
    which = "" if first.slot is None else f" slot {first.slot} of {first.slots}"
    of = f"{which} of".lstrip() + " " if which else ""
    notify(f"READY=1\nSTATUS=holds {of}{shown}, fencing token {tokens}")
    click.echo(f"held{which}")
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    poll.register(told_to_stop, select.POLLIN)
    was_overdue = False
    while told_to_stop not in [fd for fd, _ in poll.poll()]:
        try:
            session.check()
        except LockdError:
            notify(f"STATUS=lost {shown}")
            raise
        if session.is_overdue and not was_overdue:
            was_overdue = True
            notify(f"STATUS=holds {shown}, overdue")
            say(f"{shown} is held for longer than {session.limit_passed(max_hold)}")
    notify(f"STOPPING=1\nSTATUS=released {shown}")
    session.release()


def _wakeup_descriptor() -> int:
    """Returns a descriptor that becomes readable when a signal asks to stop."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in _STOPPING:
        # Keep a signal ignored if our parent ignores it: nohup(1).
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    return reader
