"""`lockctl flock` in click, for the list of commands. `as_flock` does the work."""

from typing import NoReturn

import click

from lockd.ctl.run import as_flock


@click.command(
    short_help="Lock a file as flock(1) does, in the queue of lockd.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def flock(socket: str | None, /, words: tuple[str, ...]) -> NoReturn:
    """Lock a file as util-linux's flock does, in the queue of lockd."""
    as_flock.carry_out(socket, list(words))
