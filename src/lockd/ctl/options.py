"""The options and arguments that several commands share, each declared once."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import click

from lockd.names import canonical_path, check_name, check_path, quoted
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE, ResourceKey

COMPLETING: Final = "_LOCKCTL_COMPLETE"
"""The variable that a shell sets to ask how a word can go on."""

MOST_SECONDS: Final = 1e9
"""The longest time that a request can name (protocol 6.1)."""


class Whole(click.IntRange):
    """The type of a whole number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Reads a number."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            wanted = f"a whole number from {self.min} to {self.max}"
            if self.max is None:
                wanted = f"a whole number, {self.min} or more"
            self.fail(f"{quoted(str(value))} is not {wanted}", param, ctx)


PROCESS_ID = Whole(1, 2**31 - 1)
"""The type of an option that names a process: more than any has (proc(5))."""

Reader = Callable[[click.Context, click.Parameter, str | float | None], float | None]


def seconds_from(least: float, most: float) -> Reader:
    """Returns what reads a number of seconds within bounds (a callback of click)."""

    def read(
        _ctx: click.Context, _param: click.Parameter, value: str | float | None
    ) -> float | None:
        if value is None:
            return None
        with suppress(ValueError):
            number = float(value)
            if least <= number <= most:
                return number
        raise click.BadParameter(
            f"{quoted(str(value))} is not a number of seconds "
            f"from {least:.9g} to {most:.10g}"
        )

    return read


seconds = seconds_from(0, MOST_SECONDS)
"""Reads how long to wait."""


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
        callback=seconds,
        help="Wait at most SECONDS (0: do not wait; fractions are allowed).",
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
        InvalidRequestError: nothing can be called so.
    """
    by_default = DIRECT_LOCKSPACE if is_path(name) else DEFAULT_LOCKSPACE
    space = by_default if lockspace is None else lockspace
    if space == DIRECT_LOCKSPACE:
        name = canonical_path(name)
        check_path(name)
    elif space == DEFAULT_LOCKSPACE:
        check_name(name)
    return ResourceKey(space, name)


def note_files(names: Iterable[str], lockspace: str | None) -> None:
    """Says of names that are locked as such where a file of that path is."""
    if lockspace is not None:
        return
    for name in names:
        if not is_path(name) and os.path.isfile(name):
            click.echo(
                f"lockctl: {quoted(name)} is locked as a name, not as the file that is "
                f"there: say {quoted('./' + name)} for the file, or "
                f"`--lockspace {DEFAULT_LOCKSPACE}` for the name",
                err=True,
            )


def common_lockspace(keys: list[ResourceKey]) -> str:
    """Returns the one lockspace of several names."""
    spaces = {key.lockspace for key in keys}
    if len(spaces) > 1:
        raise click.UsageError(
            "the names are in different lockspaces: one command locks in one of them"
        )
    return spaces.pop()
