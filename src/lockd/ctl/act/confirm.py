"""Asks before an action that cannot be undone."""

import sys
from typing import Final

import click

from lockd.ctl.streams import say

NOT_WANTED: Final = 1
"""The exit status after the answer no."""

sure = click.option("--yes", is_flag=True, help="Do not ask.")


def is_wanted(question: str, *, yes: bool) -> bool:
    """Returns whether to do it. Asks on a terminal, unless `yes` is given.

    Raises:
        UsageError: there is no terminal.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("lockctl cannot ask without a terminal: add --yes")
    if click.confirm(f"lockctl: {question}", err=True):
        return True
    say("nothing was changed")
    return False
