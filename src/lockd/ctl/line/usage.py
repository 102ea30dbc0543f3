"""Explains wrong command lines, in one sentence each.

It is loaded only on an error.
"""

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

import click

from lockd.names import quoted

_RELEASE: Final = (
    "`release` gives back a lock that `acquire` took; any other ends with the command "
    "of `run` or with `hold`: end that, or take the lock away with `break`"
)
_TAKE: Final = "`run`, `hold` and `acquire` take locks"

#: Words that users of other programs type, and the advice for them.
INSTEAD: Final = {
    **dict.fromkeys(("unlock", "free", "drop", "rm"), _RELEASE),
    **dict.fromkeys(("lock", "take", "get", "exclusive"), _TAKE),
    **dict.fromkeys(("trylock", "try"), "`run -n` does not wait"),
    **dict.fromkeys(("ls", "ll", "l", "locks", "lslocks"), "`list` lists the locks"),
    **dict.fromkeys(
        ("ps", "clients", "connections", "who-all"),
        "`list` shows holders, and `sessions` shows connections",
    ),
    **dict.fromkeys(("stat", "info", "ping"), "`status` shows the state of the daemon"),
    **dict.fromkeys(
        ("query", "history", "inspect", "describe"), "`show` shows one lock"
    ),
    **dict.fromkeys(("kill", "steal", "force"), "`break` takes a lock away"),
    **dict.fromkeys(("queue", "pending", "waiting"), "`waiters` lists the waiters"),
    **dict.fromkeys(
        ("events", "monitor", "tail", "log", "logs"), "`watch` prints events"
    ),
    **dict.fromkeys(("lockspaces", "namespaces"), "`spaces` lists the lockspaces"),
    **dict.fromkeys(("exec", "do", "with", "under"), "`run` runs a command"),
    "holders": "`who` shows the holders of one lock, and `list` lists all locks",
    "version": "write `lockctl --version`",
    "help": "write `lockctl --help`, or `lockctl COMMAND --help`",
    "start": "`systemctl start lockd` starts the daemon",
    "restart": "`systemctl restart lockd` restarts the daemon, and keeps all locks",
}


def advice(typed: str, commands: Sequence[str]) -> str:
    """Returns the advice for an unknown command."""
    unknown = f"there is no command {quoted(typed)}"
    if found := INSTEAD.get(typed.lower()):
        return f"{unknown}: {found}"
    near = get_close_matches(typed.lower(), commands, n=2, cutoff=0.7)
    if near:
        return f"{unknown}: did you mean {' or '.join(f'`{x}`' for x in near)}?"
    return f"{unknown}: `lockctl --help` lists all commands"


def sentence(error: click.ClickException) -> str:
    """Returns what is wrong with a command line, and what would be right."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    more = f"see `{ctx.command_path if ctx else 'lockctl'} --help`"
    match error:
        case click.MissingParameter(param=param) if param is not None:
            return f"{_called(param, ctx)} is missing; {more}"
        case click.BadParameter(param=param) if param is not None:
            said = _tidy(error.message)
            if isinstance(param.type, click.Choice):
                said = f"it must be one of {', '.join(map(str, param.type.choices))}"
            return f"{_called(param, ctx)}: {said}"
        case click.NoSuchOption():
            word = _typed_word(error.option_name)
            if ctx and (found := _where_it_belongs(error.option_name, ctx)):
                return f"{quoted(word)} {found}"
            near = get_close_matches(error.option_name, error.possibilities or (), n=1)
            advice = f"did you mean `{near[0]}`?" if near else more
            if ctx and len(word) > 2 and word[1] != "-":
                advice = _how_to_name(ctx) or advice
            return f"there is no option {quoted(word)}: {advice}"
        case click.BadOptionUsage():
            return f"{error.option_name} needs a value; {more}"
    said = _tidy(error.format_message())
    if extra := _EXTRA.fullmatch(said):
        return f"unexpected argument {quoted(extra[1])}; {more}"
    return said


#: click's message for too many arguments.
_EXTRA: Final = re.compile(r"got unexpected extra arguments? \((.*)\)")


def _typed_word(option: str) -> str:
    """Returns the word of the command line that has an option.

    For `-x-y` click reports `--`.
    """
    if len(option) == 2:
        for word in sys.argv[1:]:
            if word[:1] == "-" != word[1:2] and option[1] in word[1:]:
                return word
    return option


def _where_it_belongs(option: str, ctx: click.Context) -> str | None:
    """Returns where an option belongs that is on the wrong side of the command."""
    group = ctx.find_root().command
    if ctx.parent is not None:
        found = _option_of(group, option)
        value = "" if found is None or found.is_flag else f" {found.metavar}"
        place = f"lockctl {option}{value} {ctx.info_name}"
        return f"goes before `{ctx.info_name}`: `{place}`" if found else None
    assert isinstance(group, click.Group)
    typed = next((x for x in sys.argv[1:] if x in group.list_commands(ctx)), None)
    command = typed and group.get_command(ctx, typed)
    if command and _option_of(command, option):
        return f"goes after `{typed}`: `lockctl {typed} {option}`"
    return None


def _option_of(command: click.Command, name: str) -> click.Option | None:
    options = (x for x in command.params if isinstance(x, click.Option))
    return next((x for x in options if name in x.opts), None)


def _how_to_name(ctx: click.Context) -> str | None:
    """Returns how to pass a name to a command that looks like an option."""
    for param in ctx.command.params:
        if isinstance(param, click.Argument):
            names = param.make_metavar(ctx).strip("[]")
            place = f"`{ctx.command_path} -- {names}`"
            return f"put `--` before a name that begins with a dash, as in {place}"
    return None


def _called(param: click.Parameter, ctx: click.Context | None) -> str:
    """Returns the name of a parameter as users write it."""
    if isinstance(param, click.Option):
        spelled = sorted(param.opts, key=len, reverse=True)
        typed = (x for word in sys.argv[1:] for x in spelled if _is_typed(word, x))
        return next(typed, spelled[0])
    assert ctx is not None
    return param.make_metavar(ctx).strip("[]").split(" ")[0]


def _is_typed(word: str, option: str) -> bool:
    """Returns whether a word of the command line is an option, or has its value too."""
    is_short = len(option) == 2
    return word == option or word.startswith(option if is_short else f"{option}=")


def _tidy(said: str) -> str:
    """Turns a message of click or of a command into a part of a sentence."""
    said = " ".join(said.split()).rstrip(".")
    return said[:1].lower() + said[1:]
