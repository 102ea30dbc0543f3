"""The options that several commands share, and what words on a command line mean.

An `Option` is all that is known of an option. `lockd.ctl.line.clicks` makes click's
option of it, for parsing, help, errors and completion. `understood` reads a plain
command line without click, which takes longer to load than `lockctl run` takes.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence

from lockd.ctl.streams import say
from lockd.errors import InvalidRequestError
from lockd.hints import Any, Final
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


class Option:
    """One option of a command.

    Args:
        param: the name of its value within lockctl.
        names: its names on the command line, such as `-w` and `--wait`.
        help: the line of `--help`.
        value: the name of its value for users; None: it is a flag.
        read: returns the value for a word. Raises ValueError, which says what is wrong
            with the word.
        default: the word that is read if the option is not given.
    """

    def __init__(
        self,
        param: str,
        *names: str,
        help: str,  # noqa: A002 (as click calls it)
        value: str | None = None,
        read: Callable[[str], Any] = str,
        default: str | None = None,
    ) -> None:
        self.param = param
        self.names = names
        self.help = help
        self.value = value
        self.read = read
        self.default = default

    @property
    def is_flag(self) -> bool:
        """Whether it has no value."""
        return self.value is None


def understood(
    options: Iterable[Option], words: Iterable[str]
) -> tuple[dict[str, Any], list[str]] | None:
    """Reads a plain command line: options spelled out, each before its value.

    Returns:
        The value of each option, and the arguments; None if click has to read the line,
        because it is not plain or not right.
    """
    by_name = {name: option for option in options for name in option.names}
    given: dict[str, str | bool] = {}
    arguments: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            arguments += left
        elif word == "-" or not word.startswith("-"):
            arguments.append(word)
        else:
            name, equals, value = word.partition("=")
            option = by_name.get(name)
            if option is None or (equals and (option.is_flag or name[:2] != "--")):
                return None
            said = True if option.is_flag else value if equals else next(left, None)
            if said is None:
                return None
            given[option.param] = said
    try:
        return {x.param: _value(x, given.get(x.param)) for x in options}, arguments
    except ValueError:
        return None


def _value(option: Option, given: str | bool | None) -> Any:
    if option.is_flag:
        return given is not None
    word = option.default if given is None else given
    return None if word is None else option.read(str(word))


# What words mean.


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns a reader of whole numbers within bounds."""

    def read(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number >= least and (most is None or number <= most):
            return number
        wanted = f"{least} or more" if most is None else f"from {least} to {most}"
        comma = "," if most is None else ""
        raise ValueError(f"{quoted(word)} is not a whole number{comma} {wanted}")

    return read


process_id = whole(1, 2**31 - 1)
"""Reads a pid. The bound exceeds every pid (proc(5))."""


def seconds_from(least: float, most: float) -> Callable[[str], float]:
    """Returns a reader of numbers of seconds within bounds."""

    def read(word: str) -> float:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if least <= number <= most:
            return number
        raise ValueError(
            f"{quoted(word)} is not a number of seconds from {least:.9g} to {most:.10g}"
        )

    return read


seconds = seconds_from(0, MOST_SECONDS)
"""Reads a timeout."""


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def span(word: str) -> int:
    """Reads a time span, such as `4h`. Returns whole seconds."""
    import re  # takes milliseconds to load

    found = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,10})?)([smhd]?)", word)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= MOST_SECONDS:
        raise ValueError(
            f"{quoted(word)} is not a time such as 90, 30m, 4h or 2d, "
            f"from 1 s to {MOST_SECONDS / 86_400:.0f}d"
        )
    return math.ceil(seconds)


# Options of several commands.

SOCKET: Final = Option(
    "socket", "--socket", value="PATH",
    help="Connect to the daemon at PATH. Default: $LOCKD_SOCKET, then the socket of "
    "your own daemon, then the system's. See FINDING THE DAEMON in lockctl(1).",
)  # fmt: skip

JSON: Final = Option("as_json", "--json", help="Print JSON.")

LOCKSPACE: Final = Option(
    "lockspace", "--lockspace", value="NAME",
    help="The lockspace of the names. Default: `direct` for paths, `default` for "
    "other names.",
)  # fmt: skip

SHARE: Final = Option(
    "shared", "-s", "--shared", help="Share the lock with other readers."
)

TIMEOUT: Final = Option(
    "timeout", "-w", "--wait", "--timeout", value="SECONDS", read=seconds,
    help="Wait at most SECONDS (0: do not wait; fractions are allowed).",
)  # fmt: skip

MAX_WAITING: Final = Option(
    "max_waiting", "--max-waiting", value="N", read=whole(0, MOST_WAITING),
    help="Do not wait if N or more others wait already (0: do not wait; at most "
        "1024).",
)  # fmt: skip

OF_SLOTS: Final = (
    Option(
        "slots", "--slots", value="N", read=whole(1, MOST_SLOTS),
        help="Take one of N slots (1 to 1024): at most N commands hold NAME at once.",
    ),
    Option(
        "slot", "--slot",
        help="Take one of as many slots as are configured, or as others use now.",
    ),
)  # fmt: skip

OF_PEOPLE: Final = (
    Option(
        "owner", "--owner", value="TEXT",
        help="Show TEXT to others as the holder's name.",
    ),
    Option(
        "reason", "--reason", value="TEXT", help="Show others why you hold the lock."
    ),
    Option(
        "label", "--label", value="TEXT", help="Show others what the name stands for."
    ),
)  # fmt: skip

OF_HOLDERS: Final = (
    SHARE,
    TIMEOUT,
    MAX_WAITING,
    *OF_SLOTS,
    LOCKSPACE,
    Option(
        "max_hold", "--max-hold", value="TIME", read=span,
        help="Report the lock as overdue after a TIME such as 90, 30m, 4h or 2d: in "
        "lists, in events and in the log. You keep it, unless the lockspace breaks it.",
    ),
    *OF_PEOPLE,
)  # fmt: skip
"""The options of commands that take a lock and run nothing."""


# What options and arguments mean together.


def mode_of(
    names: Sequence[str], *, shared: bool, slots: int | None, slot: bool
) -> dict[str, Any]:
    """Returns the mode that the options mean, and the number of slots.

    Raises:
        InvalidRequestError: they contradict each other.
    """
    if slots is None and not slot:
        return {"mode": SHARED if shared else EXCLUSIVE, "slots": None}
    if shared or (slots is not None and slot):
        raise InvalidRequestError("--shared, --slots and --slot exclude each other")
    if len(names) > 1:
        first = names[0]
        is_number = slot and first.isascii() and first.isdigit() and first[0] != "0"
        raise InvalidRequestError(
            "slots work with one NAME only: run one command within the other"
            + (
                f" (did you mean --slots {first}?)"
                if is_number and len(first) <= 4
                else ""
            )
        )
    return {"mode": SLOT, "slots": slots or True}


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
            say(
                f"{quoted(name)} locks a name, not the file {quoted(name)}: "
                f"write {quoted('./' + name)} to lock the file, or add "
                f"`--lockspace {DEFAULT_LOCKSPACE}` to silence this note"
            )


def common_lockspace(keys: list[ResourceKey]) -> str:
    """Returns the lockspace of all names.

    Raises:
        InvalidRequestError: they are in different lockspaces.
    """
    spaces = {key.lockspace for key in keys}
    if len(spaces) > 1:
        raise InvalidRequestError(
            "the names are in different lockspaces: use one command for each lockspace"
        )
    return spaces.pop()
