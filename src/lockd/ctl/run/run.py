"""`lockctl run`: the command line. `under_lock` does the work."""

import errno
import os
import signal
from typing import Any, NoReturn

import click

from lockd.ctl.exits import EXITS, UNWRITTEN
from lockd.ctl.options import (
    Whole,
    at_most_waiting,
    common_lockspace,
    in_lockspace,
    in_slots,
    meant,
    mode_of,
    note_files,
    seconds,
    span,
)
from lockd.ctl.run.under_lock import Plan, Run
from lockd.names import plain, quoted

_NAME_LENGTH = 60


def _signal(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    name = value.upper().removeprefix("SIG")
    known = {member.name.removeprefix("SIG"): member for member in signal.Signals}
    known |= {str(member.value): member for member in signal.Signals}
    if name not in known:
        raise click.BadParameter(f"{quoted(value)} is not a signal")
    return known[name]


_EXAMPLES = [
    ("lockctl run backup -- rsync -a /home /mnt", ""),
    ("lockctl run -n nightly -- ./report.sh", "skip it if it still runs"),
    ("lockctl run -s -w 10 site -c 'ls | wc -l'", "share; wait at most 10 s"),
    ("lockctl run cert dns -- ./renew.sh", "lock both, or wait for both"),
    ("lockctl run /srv/a.img -- fsck /srv/a.img", "lock a file"),
    ("lockctl run --slots 4 gpu -- ./train.sh", "at most four at once"),
]


class _RunCommand(click.Command):
    """Separates the command's words from the options of lockctl.

    `--` stands before the command. If no NAME is before it, it ends the options, so
    that a NAME can begin with a dash. The next `--` then stands before the command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = _find_dashes(args, 0)
        try:
            if end < len(args) and not self._has_names(ctx, args[:end]):
                end = _find_dashes(args, end + 1)
            ctx.params["words"] = tuple(args[end + 1 :])
            return super().parse_args(ctx, args[:end])
        except click.NoSuchOption as error:
            if end < len(args):
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


def _find_dashes(args: list[str], start: int) -> int:
    """Returns the index of the next `--`, or the end of the arguments."""
    return args.index("--", start) if "--" in args[start:] else len(args)


@click.command(
    cls=_RunCommand,
    short_help="Run a command while holding a lock.",
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME... -- COMMAND...")
@click.option("-s", "--shared", is_flag=True, help="Share the lock with other readers.")
@click.option(
    "-x", "-e", "--exclusive", is_flag=True, help="Exclude all others (the default)."
)
@in_slots
@click.option(
    "-n", "--nb", "--nonblock", "nonblock", is_flag=True,
    help="Do not wait; the same as -w 0.",
)  # fmt: skip
@click.option(
    "-w", "--wait", "--timeout", "timeout", metavar="SECONDS", callback=seconds,
    help="Wait at most SECONDS (0: do not wait; fractions are allowed).",
)  # fmt: skip
@at_most_waiting
@click.option(
    "-E", "--conflict-exit-code", "conflict_status", metavar="N",
    type=Whole(0, 255),
    help="Exit with N instead of 75 if the lock is busy or the wait times out.",
)  # fmt: skip
@click.option(
    "-c", "script", metavar="STRING", help="Run STRING with $SHELL or /bin/sh."
)
@click.option(
    "-F", "--no-fork", is_flag=True,
    help="Replace lockctl with the command. The lock then lasts until the command and "
    "all processes that inherit its connection have ended. Nothing stops them if the "
    "lock is lost.",
)  # fmt: skip
@click.option(
    "-o", "--close", is_flag=True,
    help="Release the lock when COMMAND ends, even if it left processes behind.",
)  # fmt: skip
@click.option(
    "--whole", is_flag=True,
    help="Lock every byte of a file that is named by its path, and lock it with "
    "flock(2), too. Programs that do not use lockd are kept out then, COMMAND "
    "included: `lockctl run --whole x -- flock x` would wait for ever.",
)  # fmt: skip
@click.option(
    "--max-hold", metavar="TIME", callback=span,
    help="If the lock is held for longer than TIME, such as 90, 30m, 4h or 2d: stop "
    "COMMAND and all that it started (with -o only COMMAND), and exit with 76. The "
    "lock is held until they have ended.",
)  # fmt: skip
@in_lockspace
@click.option(
    "--owner", metavar="TEXT", help="Show TEXT to others as the holder's name."
)
@click.option("--reason", metavar="TEXT", help="Show others why you hold the lock.")
@click.option("--label", metavar="TEXT", help="Show others what the name stands for.")
@click.option(
    "--signal", "stop_signal", metavar="SIGNAL", default="TERM", show_default=True,
    callback=_signal,
    help="Send SIGNAL to stop the processes if the lock is lost or --max-hold is over.",
)  # fmt: skip
@click.option(
    "--kill-after", metavar="SECONDS", default="10", show_default=True,
    callback=seconds, help="Send SIGKILL if they still run after SECONDS.",
)  # fmt: skip
@click.option(
    "--status-fd", metavar="FD", type=Whole(min=0),
    help="Write the outcome to this descriptor, as one JSON object.",
)  # fmt: skip
@click.option(
    "-v", "--verbose", is_flag=True, help="Print the holder and the waiting time."
)
@click.option(
    "--quiet", is_flag=True,
    help="Do not print why the lock is busy or the wait timed out. lockctl still "
    "prints all other errors.",
)  # fmt: skip
@click.pass_obj
def run(
    socket: str | None,
    /,
    names: tuple[str, ...],
    words: tuple[str, ...],
    lockspace: str | None,
    shared: bool,
    exclusive: bool,
    slots: int | None,
    slot: bool,
    nonblock: bool,
    timeout: float | None,
    script: str | None,
    no_fork: bool,
    close: bool,
    owner: str | None,
    **wishes: Any,
) -> NoReturn:
    """Run COMMAND while holding the lock NAME, and exit with its status.

    lockctl takes several NAMEs together or none of them. Put `--` before a NAME that
    begins with a dash: `lockctl run -- -x -- COMMAND`.

    lockctl holds the lock until COMMAND and all processes that it started have ended,
    those in the background included. With -o it waits for COMMAND only. If the lock is
    lost, lockctl stops all of them. If lockctl is killed, the lock lasts until COMMAND
    ends.

    COMMAND gets each signal once, even if the sender signals both lockctl and COMMAND.
    HUP, INT, QUIT and TERM also stop the processes that COMMAND left behind: if COMMAND
    dies of one of these, or if lockctl gets one while it waits for those processes.
    """
    if shared and exclusive:
        raise click.UsageError("a lock is either --shared or --exclusive")
    if exclusive and (slots or slot):
        raise click.UsageError("a lock in a slot is not --exclusive")
    how = mode_of(names, shared=shared, slots=slots, slot=slot)
    if no_fork and close:
        raise click.UsageError(
            "--close does not work with --no-fork: COMMAND itself holds the lock then"
        )
    if no_fork and wishes["status_fd"] is not None:
        raise click.UsageError(
            "--status-fd does not work with --no-fork: no lockctl is left to write it"
        )
    if no_fork and wishes["max_hold"] is not None:
        raise click.UsageError(
            "--max-hold does not work with --no-fork: no lockctl is left to stop "
            "COMMAND"
        )
    words, called = _command(words, script)
    keys = [meant(name, lockspace) for name in names]
    if not wishes["quiet"]:
        note_files(names, lockspace)
    plan = Plan(
        socket=socket,
        lockspace=common_lockspace(keys),
        names=tuple(key.resource for key in keys),
        **how,
        timeout=0 if nonblock else timeout,
        words=words,
        owner=owner or called,
        close=close,
        **wishes,
    )
    _check_descriptor(plan.status_fd)
    if no_fork:
        Run(plan).in_place()
    Run(plan).in_child()


def _command(words: tuple[str, ...], script: str | None) -> tuple[tuple[str, ...], str]:
    """Returns the words to execute, and a name for them."""
    if (script is None) == (not words):
        raise click.UsageError(
            "no command: put it after `--`, as in `lockctl run NAME -- COMMAND`"
            if script is None
            else "give either -c STRING or a command after `--`, not both"
        )
    if script is None and not words[0]:
        raise click.UsageError("the command is empty: is a variable not set?")
    if script is None:
        return words, plain(os.path.basename(words[0]))[:_NAME_LENGTH] or "?"
    shell = os.environ.get("SHELL") or "/bin/sh"
    return (shell, "-c", script), plain(script)[:_NAME_LENGTH] or "?"


def _check_descriptor(status_fd: int | None) -> None:
    if status_fd is None:
        return
    try:
        # The command must not keep the reader waiting, except on its standard streams.
        os.set_inheritable(status_fd, status_fd <= 2)
    except (OSError, OverflowError) as error:  # a number that no descriptor can have
        reason = os.strerror(getattr(error, "errno", errno.EBADF))
        raise click.UsageError(f"--status-fd {status_fd}: {reason}") from None
