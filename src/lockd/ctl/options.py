"""The options and arguments that several commands share."""

import math
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import click

from lockd.names import canonical_path, check_name, check_path, quoted
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    DIRECT_LOCKSPACE,
    EXCLUSIVE,
    MOST_SLOTS,
    SHARED,
    SLOT,
    ResourceKey,
)

COMPLETING: Final = "_LOCKCTL_COMPLETE"
"""The variable that a shell sets to ask for completions."""

MOST_SECONDS: Final = 1e9
"""The longest timeout of a request (protocol 6.1)."""

MOST_WAITING: Final = 1_024
"""The greatest `max_waiting` (protocol 3.8)."""


class Whole(click.IntRange):
    """The type of a whole number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Converts a number."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            wanted = f"a whole number from {self.min} to {self.max}"
            if self.max is None:
                wanted = f"a whole number, {self.min} or more"
            self.fail(f"{quoted(str(value))} is not {wanted}", param, ctx)


PROCESS_ID = Whole(1, 2**31 - 1)
"""The type of an option for a pid. The bound exceeds every pid (proc(5))."""

Reader = Callable[[click.Context, click.Parameter, str | float | None], float | None]


def seconds_from(least: float, most: float) -> Reader:
    """Returns a callback of click that reads a number of seconds within bounds."""

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
"""Reads a timeout."""


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def span(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Reads a time span, such as `4h`. Returns whole seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,10})?)([smhd]?)", value)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= MOST_SECONDS:
        raise click.BadParameter(
            f"{quoted(value)} is not a time such as 90, 30m, 4h or 2d, "
            f"from 1 s to {MOST_SECONDS / 86_400:.0f}d"
        )
    return math.ceil(seconds)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
in_lockspace = click.option(
    "--lockspace", metavar="NAME",
    help="The lockspace of the names. Default: `direct` for paths, `default` for "
    "other names.",
)  # fmt: skip


at_most_waiting = click.option(
    "--max-waiting", metavar="N", type=Whole(0, MOST_WAITING),
    help="Do not wait if N or more others wait already (0: do not wait).",
)  # fmt: skip


_OF_SLOTS = (
    click.option(
        "--slots", metavar="N", type=Whole(1, MOST_SLOTS),
        help="Take one of N slots: at most N commands hold NAME at once.",
    ),
    click.option(
        "--slot", is_flag=True,
        help="Take one of as many slots as are configured, or as others use now.",
    ),
)  # fmt: skip


def in_slots(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options for slots."""
    for option in reversed(_OF_SLOTS):
        command = option(command)
    return command


def mode_of(
    names: tuple[str, ...], *, shared: bool, slots: int | None, slot: bool
) -> dict[str, Any]:
    """Returns the mode that the options mean, and the number of slots.

    Raises:
        UsageError: they contradict each other.
    """
    if slots is None and not slot:
        return {"mode": SHARED if shared else EXCLUSIVE, "slots": None}
    if shared or (slots is not None and slot):
        raise click.UsageError("--shared, --slots and --slot exclude each other")
    if len(names) > 1:
        number = names[0] if slot and re.fullmatch("[1-9][0-9]{0,3}", names[0]) else ""
        raise click.UsageError(
            "slots work with one NAME only: run one command within the other"
            + (f" (did you mean --slots {number}?)" if number else "")
        )
    return {"mode": SLOT, "slots": slots or True}


_OF_HOLDERS = (
    click.option(
        "-s", "--shared", is_flag=True, help="Share the lock with other readers."
    ),
    click.option(
        "-w", "--wait", "--timeout", "timeout", metavar="SECONDS",
        callback=seconds,
        help="Wait at most SECONDS (0: do not wait; fractions are allowed).",
    ),
    at_most_waiting,
    *_OF_SLOTS,
    in_lockspace,
    click.option(
        "--max-hold", metavar="TIME", callback=span,
        help="Report the lock as overdue after a TIME such as 90, 30m, 4h or 2d: in "
        "lists, in events and in the log. You keep it, unless the lockspace breaks it.",
    ),
    click.option(
        "--owner", metavar="TEXT", help="Show TEXT to others as the holder's name."
    ),
    click.option(
        "--reason", metavar="TEXT", help="Show others why you hold the lock."
    ),
    click.option(
        "--label", metavar="TEXT", help="Show others what the name stands for."
    ),
)  # fmt: skip


def of_holder(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of commands that take a lock and run nothing."""
    for option in reversed(_OF_HOLDERS):
        command = option(command)
    return command


def is_path(name: str) -> bool:
    """Returns whether a name on the command line is a file."""
    return name.startswith(("/", "./", "../"))


def meant(name: str, lockspace: str | None) -> ResourceKey:
    """Returns the resource for a name on the command line.

    A file has many paths, but lockd only locks its canonical path.

    Raises:
        InvalidRequestError: the name is not valid.
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
    """Warns if a name that is not a path is also the name of a file."""
    if lockspace is not None:
        return
    for name in names:
        if not is_path(name) and os.path.isfile(name):
            click.echo(
                f"lockctl: {quoted(name)} locks a name, not the file {quoted(name)}: "
                f"write {quoted('./' + name)} to lock the file, or add "
                f"`--lockspace {DEFAULT_LOCKSPACE}` to silence this note",
                err=True,
            )


def common_lockspace(keys: list[ResourceKey]) -> str:
    """Returns the lockspace of all names.

    Raises:
        UsageError: they are in different lockspaces.
    """
    spaces = {key.lockspace for key in keys}
    if len(spaces) > 1:
        raise click.UsageError(
            "the names are in different lockspaces: use one command for each lockspace"
        )
    return spaces.pop()
