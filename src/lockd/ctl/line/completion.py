"""`lockctl completion`: lets the shells complete commands, options and existing names.

The shells run lockctl with `_LOCKCTL_COMPLETE` set, as click does it. If the daemon
does not run or answer in time, the shell offers nothing, and shows no error.

Other users choose the names of locks. lockctl does not offer a name that a shell would
split or interpret.
"""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NoReturn

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from lockd.client.blocking import Client, connect
from lockd.ctl.options import COMPLETING
from lockd.errors import InvalidRequestError, LockdError
from lockd.names import default_lockspace

PATIENCE: Final = 1.0
"""Seconds that the daemon has to answer."""

MOST: Final = 256
"""The most names to offer. With more, the user types another letter first."""

_SAFE: Final = re.compile(r"[\w@%+:,./-]+", re.ASCII)

Items = Iterable[CompletionItem[str]]
Source = Callable[[Client, click.Context, str], Items]

_BASH: Final = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            command) mapfile -t COMPREPLY < <(compgen -c -- "$value") ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command(short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, options and live names.

    Live names are the locks, lockspaces, sessions and fencing tokens that exist now.
    `make install` installs the scripts for all shells. For the current shell only:
    `source <(lockctl completion bash)`.
    """
    prepare()
    found = click.shell_completion.get_completion_class(shell)
    assert found is not None
    print(found(click.Group(), {}, "lockctl", COMPLETING).source())


def prepare() -> None:
    """Makes click use the completion of this module."""
    for cls in (_Bash, _Zsh, _Fish):
        add_completion_class(cls)


def make_live(command: click.Command) -> None:
    """Makes the parameters of a command offer existing names."""
    for param in command.params:
        if param.name in FILES:
            param.type = click.Path()
        elif param.name in SOURCES:
            param.type = _Live(param.type, SOURCES[param.name], command.name or "")


class _Live(click.ParamType[Any]):
    """A type that offers the names that the daemon or the system knows.

    Args:
        usual: the real type of the parameter.
        source: yields the names.
        command: the name of the command.
    """

    name = "live"

    def __init__(
        self, usual: click.ParamType[Any], source: Source, command: str
    ) -> None:
        self._usual, self._source, self._command = usual, source, command

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Converts with the real type."""
        return self._usual.convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Returns the names to offer."""
        if self._source is _names and self._is_for_the_shell(incomplete):
            return [CompletionItem(incomplete, type="file")]
        with suppress(LockdError, OSError), _patient(), connect(_socket(ctx)) as client:
            offers = self._source(client, ctx, incomplete)
            fitting = (x for x in offers if _fits(x.value, incomplete))
            return list(islice(fitting, MOST))
        return []

    def _is_for_the_shell(self, incomplete: str) -> bool:
        # Files are locked under their canonical path, which begins with a slash.
        if incomplete.startswith(("./", "../", "~")):
            return True
        return incomplete.startswith("/") and self._command in _TAKES_FILES


#: Commands that accept files which nobody has locked.
_TAKES_FILES: Final = {"run", "hold", "acquire", "wait", "test", "who"}


def _fits(value: str, incomplete: str) -> bool:
    # A word that begins with a dash would be an option.
    is_word = _SAFE.fullmatch(value) is not None and not value.startswith("-")
    return is_word and value.startswith(incomplete)


def _socket(ctx: click.Context) -> str | None:
    return ctx.find_root().params.get("socket")


class _patient:  # noqa: N801 (used like a statement, as `suppress`)
    """Raises TimeoutError in the body if the daemon does not answer in time."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._interrupt)
        # Repeated, because code may catch the first one as another error.
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE / 4)

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    @staticmethod
    def _interrupt(signum: int, frame: object) -> NoReturn:
        raise TimeoutError


# Existing names.


def _names(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    space = ctx.params.get("lockspace") or default_lockspace(incomplete)
    # The daemon rejects an incomplete name, such as a path that ends with a slash.
    with suppress(InvalidRequestError):
        found = client.query(incomplete, lockspace=space)
        if found["holders"] or found["waiters"]:
            yield _offer(found)
    # Names are sorted, so those with this beginning are next to each other.
    after: Any = [space, incomplete]
    while after is not None:
        page = client.call("list", lockspace=space, after=after)
        for resource in page["resources"]:
            if not resource["resource"].startswith(incomplete):
                return
            yield _offer(resource)
        after = page.get("next")


def _offer(resource: dict[str, Any]) -> CompletionItem[str]:
    holders = resource["holders"]
    who = f"held by {_plain(holders[0]['name'])}" if holders else "waited for"
    return CompletionItem(resource["resource"], help=who)


def _lockspaces(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    for space in client.list_lockspaces():
        yield CompletionItem(space["name"], help=space["kind"])


def _sessions(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    for session in client.list_sessions():
        who = f"{_plain(session['name'])}, pid {session['pid']}"
        yield CompletionItem(str(session["session"]), help=who)


def _tokens(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    for resource in client.list_resources():
        for holder in resource["holders"]:
            what = f"{_plain(holder['name'])} holds {_plain(resource['resource'])}"
            yield CompletionItem(str(holder["fencing_token"]), help=what)


def _victims(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    source = _tokens if incomplete[:1].isdecimal() else _names
    yield from source(client, ctx, incomplete)


def _signals(client: Client, ctx: click.Context, incomplete: str) -> Iterator[Any]:
    for member in signal.Signals:
        yield CompletionItem(member.name.removeprefix("SIG"))


def _plain(text: str) -> str:
    """Returns text that no shell interprets when it shows it."""
    return re.sub(r"[^\w@%+,./ -]", "_", text, flags=re.ASCII)[:40]


SOURCES: Final[dict[str, Source]] = {
    "name": _names,
    "names": _names,
    "lockspace": _lockspaces,
    "session": _sessions,
    "held": _victims,
    "victim": _victims,
    "stop_signal": _signals,
}
"""The source of names for each parameter."""

FILES: Final = {"path", "socket", "words"}
"""Parameters that are files; the shells complete them."""

UNKNOWABLE: Final = {
    *("conflict_status", "interval", "kill_after", "label", "max_hold", "max_waiting"),
    "owner",
    *("owner_pid", "owner_unit", "pid", "reason", "reserve_for", "script", "status_fd"),
    *("slots", "timeout", "uid", "unit"),
}
"""Parameters that nothing can complete."""


# The shells.


class _AfterDashes(ShellComplete):
    """Offers a command, then files, after `--`."""

    command_type = "file"

    def get_completions(
        self, args: list[str], incomplete: str
    ) -> list[CompletionItem[str]]:
        """Returns the words to offer."""
        if "--" in args:
            kind = self.command_type if args[-1] == "--" else "file"
            return [CompletionItem(incomplete, type=kind)]
        return super().get_completions(args, incomplete)


class _Bash(_AfterDashes, BashComplete):
    """bash. In contrast to click's class, it knows that bash splits words at colons."""

    source_template = _BASH
    command_type = "command"
    _cut = 0

    @staticmethod
    def _check_version() -> None:
        """Does nothing: the script may be for another machine."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the complete words, and the incomplete one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1].isspace() else ""
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        ends = (n for n, letter in enumerate(incomplete, 1) if letter in breaks)
        self._cut = max(ends, default=0)
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Returns the part of a word that bash has not split off."""
        return f"{item.type},{item.value[self._cut :]}"


class _Zsh(_AfterDashes, ZshComplete):
    """zsh."""


class _Fish(_AfterDashes, FishComplete):
    """fish."""
