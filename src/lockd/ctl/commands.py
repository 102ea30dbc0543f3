"""The commands of lockctl in click: which there are, and what is wrong with a line.

It loads the module of a command on use only.
"""

import gc
import os
import signal
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from lockd import __version__
from lockd.ctl import exits, options, streams
from lockd.ctl.line import clicks
from lockd.ctl.options import COMPLETING
from lockd.ctl.others import warn_of_others

#: The commands by purpose; module and attribute of each.
_GROUPS: Final = {
    "Take a lock": {
        "run": ("lockd.ctl.run.run", "run"),
        "flock": ("lockd.ctl.run.flock", "flock"),
        "hold": ("lockd.ctl.run.hold", "hold"),
        "acquire": ("lockd.ctl.act.acquire", "acquire"),
        "release": ("lockd.ctl.act.release", "release"),
    },
    "Ask about one lock": {
        "who": ("lockd.ctl.look.who", "who"),
        "show": ("lockd.ctl.look.show", "show"),
        "test": ("lockd.ctl.look.show", "test"),
        "wait": ("lockd.ctl.look.show", "wait"),
        "lock-name": ("lockd.ctl.look.show", "lock_name"),
    },
    "See all locks": {
        "list": ("lockd.ctl.look.listings", "list_"),
        "waiters": ("lockd.ctl.look.listings", "waiters"),
        "graph": ("lockd.ctl.look.graph", "graph"),
        "watch": ("lockd.ctl.look.watch", "watch"),
        "top": ("lockd.ctl.top.command", "top"),
        "sessions": ("lockd.ctl.look.listings", "sessions"),
        "spaces": ("lockd.ctl.look.listings", "spaces"),
    },
    "Intervene": {
        "break": ("lockd.ctl.act.admin", "break_"),
        "disconnect": ("lockd.ctl.act.admin", "disconnect"),
    },
    "Manage the daemon": {
        "status": ("lockd.ctl.look.status", "status"),
        "metrics": ("lockd.ctl.look.status", "metrics"),
        "reload": ("lockd.ctl.act.stop", "reload"),
        "stop": ("lockd.ctl.act.stop", "stop"),
        "virtlockd-check": ("lockd.ctl.look.virtlockd_check", "virtlockd_check"),
        "completion": ("lockd.ctl.line.completion", "completion"),
    },
}
_COMMANDS: Final = {
    name: place for group in _GROUPS.values() for name, place in group.items()
}

_NAMES_SOCKET_OR_NEEDS_NONE: Final = {
    "status", "lock-name", "completion", "virtlockd-check"
}  # fmt: skip

_EXAMPLES: Final = [
    ("lockctl run backup -- rsync -a /home /mnt", "run a command under a lock"),
    ("lockctl who backup", "who holds it?"),
    ("lockctl list", "what is locked?"),
]


_GREETING: Final = "\n".join([
    "lockctl takes locks from lockd, and says who holds them. Try:",
    "",
    *(f"  {line:<42}  {purpose}" for line, purpose in _EXAMPLES),
    "",
    "`lockctl --help` lists all commands.",
])  # fmt: skip


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        if COMPLETING in os.environ:
            import_module("lockd.ctl.line.completion").make_live(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not ctx.resilient_parsing:
            advice = import_module("lockd.ctl.line.usage").advice(
                args[0], list(_COMMANDS)
            )
            raise click.UsageError(advice, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        width = max(map(len, _COMMANDS))
        for purpose, commands in _GROUPS.items():
            found = [(x, self.get_command(ctx, x)) for x in commands]
            rows = [(x.ljust(width), y.get_short_help_str(80)) for x, y in found if y]
            with formatter.section(purpose):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_dl(_EXAMPLES, col_max=44)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
)
@clicks.offers([options.SOCKET])
@click.version_option(__version__, message="lockctl %(version)s")
@click.pass_context
def lockctl(ctx: click.Context, socket: str | None) -> None:
    """Take locks from lockd, and look up their holders.

    A NAME that begins with `/`, `./` or `../` is a file: lockd locks its canonical path
    in the lockspace `direct`. Any other NAME is in the lockspace `default`. The option
    --lockspace chooses another lockspace.
    """
    gc.enable()  # click has loaded the module of the command
    ctx.obj = socket
    if ctx.invoked_subcommand != "run":
        # End like any filter when the reader closes the pipe.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        streams.open_closed_output()
    if ctx.invoked_subcommand not in _NAMES_SOCKET_OR_NEEDS_NONE:
        warn_of_others(socket)


def carry_out(args: list[str]) -> int:
    """Carries out a command line. Returns the exit status.

    Raises:
        LockdError: the command failed.
    """
    if COMPLETING in os.environ:
        completion = import_module("lockd.ctl.line.completion")
        completion.prepare()
        completion.make_live(lockctl)
    try:
        status: Any = lockctl.main(args, prog_name="lockctl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        with suppress(OSError):
            if error.ctx is not None and error.ctx.parent is None:
                click.echo(_GREETING, err=True)
            else:
                error.show()
        return exits.USAGE
    except click.ClickException as error:
        streams.say(import_module("lockd.ctl.line.usage").sentence(error))
        return exits.USAGE
    except click.Abort:
        exits.die_of(signal.SIGINT)
    return status or exits.OK
