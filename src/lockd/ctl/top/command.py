"""`lockctl top`: the command line. textual is loaded when the screen is drawn."""

import sys
from typing import TYPE_CHECKING

import click

from lockd.ctl.options import seconds_from
from lockd.errors import UnavailableError

if TYPE_CHECKING:
    from lockd.ctl.top.app import Top


@click.command(short_help="Watch locks, waits, holds and sessions on a terminal.")
@click.option(
    "--interval", metavar="SECONDS", callback=seconds_from(0.1, 3600),
    default=1.0, show_default=True, help="How often the screen changes.",
)  # fmt: skip
@click.pass_obj
def top(socket: str | None, /, interval: float) -> None:
    """Watch what is held and waited for, as it happens, and break locks.

    Four tables: the locks that most wait for, the longest waits, the holds that
    take longer than usual, the sessions. `?` shows the keys. It needs a terminal,
    but neither colours nor a mouse, and goes on when the daemon is started anew.
    """
    # textual draws on stderr.
    if not all(x.isatty() for x in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError(
            "top draws on a terminal, and this is none: "
            "into a pipe or a file, `lockctl list` says what is held"
        )
    app = _load()(socket, interval)
    app.run(mouse=False)


def _load() -> "type[Top]":
    try:
        from lockd.ctl.top.app import Top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lockd"):
            raise
        raise UnavailableError(
            f"`lockctl top` needs the Python package {error.name}, which is not "
            "installed: install it with `pip install 'lockd[top]'`, or use `lockctl "
            "list`"
        ) from None
    return Top
