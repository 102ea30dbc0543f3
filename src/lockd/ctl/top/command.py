"""`lockctl top`: the command line. textual is loaded when the screen is drawn."""

import sys
from typing import TYPE_CHECKING

import click

from lockd.ctl.line.clicks import Read
from lockd.ctl.options import seconds_from
from lockd.parts import part

if TYPE_CHECKING:
    from lockd.ctl.top.app import Top


@click.command(short_help="Watch locks, waits, holds and sessions on a terminal.")
@click.option(
    "--interval", metavar="SECONDS", type=Read(seconds_from(0.1, 3600)),
    default=1.0, show_default=True, help="Refresh the screen every SECONDS.",
)  # fmt: skip
@click.pass_obj
def top(socket: str | None, /, interval: float) -> None:
    """Watch locks and waits on a terminal as they change, and break locks.

    lockctl shows four tables: the locks with the most waiters, the longest waits, the
    holds that take longer than usual, and the sessions. `?` shows the keys. The
    terminal needs neither colours nor a mouse. lockctl connects again after a restart
    of the daemon. A `!` marks locks that are overdue or held for longer than usual;
    `lockctl list` and `lockctl show` say which are overdue.
    """
    # textual draws on stderr.
    if not all(x.isatty() for x in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError(
            "`lockctl top` needs a terminal: for a pipe or a file, use `lockctl list`"
        )
    app = _load()(socket, interval)
    app.run(mouse=False)


def _load() -> "type[Top]":
    with part("top", "`lockctl top`", ", or use `lockctl list`"):
        from lockd.ctl.top.app import Top
    return Top
