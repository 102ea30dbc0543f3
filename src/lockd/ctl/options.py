"""The options and arguments that several commands share, each declared once."""

import math

import click

from lockd.names import canonical_path, default_lockspace
from lockd.terms import DIRECT_LOCKSPACE, ResourceKey

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
in_lockspace = click.option(
    "--lockspace", metavar="NAME",
    help="Where the names are; else `direct` if they begin with a slash, or `default`.",
)  # fmt: skip


def meant(name: str, lockspace: str | None) -> ResourceKey:
    """Returns which resource a name on the command line means.

    A file has many paths, but only its canonical one is locked.
    """
    space = lockspace or default_lockspace(name)
    if space == DIRECT_LOCKSPACE:
        name = canonical_path(name)
    return ResourceKey(space, name)


def seconds(
    _ctx: click.Context, _param: click.Parameter, value: str | float | None
) -> float | None:
    """Reads a number of seconds (a callback of click)."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds")
    return number


def common_lockspace(keys: list[ResourceKey]) -> str:
    """Returns the one lockspace of several names."""
    spaces = {key.lockspace for key in keys}
    if len(spaces) > 1:
        raise click.UsageError(
            "the names are in different lockspaces: one command locks in one of them"
        )
    return spaces.pop()
