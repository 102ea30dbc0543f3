"""The options and arguments that several commands share, each declared once."""

import math
from collections.abc import Callable

import click

from lockd.names import canonical_path
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE, ResourceKey

PROCESS_ID = click.IntRange(1, 2**31 - 1)
"""The type of an option that names a process: more than any has (proc(5))."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
in_lockspace = click.option(
    "--lockspace", metavar="NAME",
    help="Where the names are; else `direct` if they are paths, or `default`.",
)  # fmt: skip


_OF_HOLDERS = (
    click.option(
        "-s", "--shared", is_flag=True, help="Share the lock with other readers."
    ),
    click.option(
        "-w", "--wait", "--timeout", "timeout", metavar="SECONDS",
        callback=lambda *words: seconds(*words),
        help="Wait at most so long; fractions are allowed, 0 does not wait.",
    ),
    in_lockspace,
    click.option(
        "--owner", metavar="TEXT", help="What others see as the holder's name."
    ),
    click.option("--reason", metavar="TEXT", help="Tell others why it is locked."),
    click.option(
        "--label", metavar="TEXT", help="Tell others what the name stands for."
    ),
)  # fmt: skip


def of_holder(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of those that take a lock and run nothing."""
    for option in reversed(_OF_HOLDERS):
        command = option(command)
    return command


def is_path(name: str) -> bool:
    """Tells whether a name on the command line is a file, as a shell has it."""
    return name.startswith(("/", "./", "../"))


def meant(name: str, lockspace: str | None) -> ResourceKey:
    """Returns which resource a name on the command line means.

    A file has many paths, but only its canonical one is locked.

    Raises:
        InvalidRequestError: the name of a file is empty.
    """
    by_default = DIRECT_LOCKSPACE if is_path(name) else DEFAULT_LOCKSPACE
    space = lockspace or by_default
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
