"""Asks before something is done that cannot be taken back."""

import sys
from typing import Final

import click

from lockd.ctl.render import say

NOT_WANTED: Final = 1
"""The exit status where the answer was no."""

sure = click.option("--yes", is_flag=True, help="Do not ask.")


def is_wanted(question: str, *, yes: bool) -> bool:
    """Returns whether it shall be done: asks on a terminal, unless the answer is known.

    Raises:
        UsageError: there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: say --yes")
    if click.confirm(f"lockctl: {question}", err=True):
        return True
    say("nothing was changed")
    return False
