"""`lockctl run` in click: its help, and what is wrong with a command line.

`asked` has the options, and `under_lock` does the work.
"""

from typing import Any, NoReturn

import click

from lockd.ctl.exits import EXITS, UNWRITTEN
from lockd.ctl.line.clicks import offers
from lockd.ctl.run import asked

_EXAMPLES = [
    ("lockctl run backup -- rsync -a /home /mnt", ""),
    ("lockctl run -n nightly ./report.sh", "skip it if it still runs"),
    ("lockctl run -s -w 10 site -c 'ls | wc -l'", "share; wait at most 10 s"),
    ("lockctl run cert dns -- ./renew.sh", "lock both, or wait for both"),
    ("lockctl run /srv/a.img -- fsck /srv/a.img", "lock a file"),
    ("lockctl run --slots 4 gpu -- ./train.sh", "at most four at once"),
]


class _RunCommand(click.Command):
    """Separates the command's words from the options of lockctl (`asked.parted`)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            ours, words = asked.parted(args, lambda part: self._has_names(ctx, part))
            ctx.params["words"] = words
            return super().parse_args(ctx, ours)
        except click.NoSuchOption as error:
            if "--" in args:
                raise
            raise click.UsageError(
                f"{error.message} If it is the command's, put `--` before the command.",
                ctx,
            ) from None

    def _has_names(self, ctx: click.Context, args: list[str]) -> bool:
        found, _, _ = self.make_parser(ctx).parse_args(list(args))
        # For a missing value click has an object of its own.
        return isinstance(found.get("names"), tuple) and bool(found["names"])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_dl(_EXAMPLES, col_max=44)
        with formatter.section("Exit status"):
            # lockctl itself prints nothing here.
            exits = [exit_ for exit_ in EXITS if exit_.status != UNWRITTEN]
            rows = [(str(exit_.status), exit_.meaning) for exit_ in exits]
            formatter.write_dl([*rows, ("other", "the status of the command")])
        with formatter.section("Environment of the command"):
            formatter.write_dl(
                [
                    ("LOCKD_NAME", "the locked names, one on each line"),
                    ("LOCKD_LOCKSPACE", "the lockspace of the names"),
                    (
                        "LOCKD_TOKEN",
                        "the fencing token of each name, in that order; if a command "
                        "around COMMAND holds the name too, that of the outermost",
                    ),
                    ("LOCKD_WAITED", "the time that lockctl waited, in seconds"),
                    ("LOCKD_WITHIN", "all locks around COMMAND, for lockd's clients"),
                    (
                        "LOCKD_PREVIOUS",
                        "`died`, `broken` or `failed`, if the last hold did not end "
                        "well (`failed` also after --max-hold); else not set",
                    ),
                    ("LOCKD_SLOT", "with slots: which one it is, from 0"),
                    ("LOCKD_SLOTS", "with slots: how many there are"),
                    ("LOCKD_SOCKET", "the daemon's socket"),
                ]
            )


@click.command(
    cls=_RunCommand,
    short_help="Run a command while holding a lock.",
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME... -- COMMAND...")
@offers(asked.OPTIONS)
@click.pass_obj
def run(
    socket: str | None,
    /,
    names: tuple[str, ...],
    words: tuple[str, ...],
    **values: Any,
) -> NoReturn:
    """Run COMMAND while holding the lock NAME, and exit with its status.

    With one NAME, and without `--` in COMMAND, the `--` can be left out. lockctl takes
    several NAMEs together or none of them. Put `--` before a NAME that begins with a
    dash: `lockctl run -- -x -- COMMAND`.

    lockctl holds the lock until COMMAND and all processes that it started have ended,
    those in the background included. With -o it waits for COMMAND only. If the lock is
    lost, lockctl stops all of them. If lockctl is killed, the lock lasts until COMMAND
    ends.

    COMMAND gets each signal once, even if the sender signals both lockctl and COMMAND.
    HUP, INT, QUIT and TERM also stop the processes that COMMAND left behind: if COMMAND
    dies of one of these, or if lockctl gets one while it waits for those processes.
    """
    asked.carry_out(socket, names, words, **values)
