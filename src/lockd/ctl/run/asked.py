"""What `lockctl run` may be asked: its options, and what a command line asks of it.

Every reader of a command line knows the options from here: `run`, which is click's, and
`understood`, which loads no click.
"""

import errno
import os
from collections.abc import Callable

from lockd.ctl import options
from lockd.ctl.options import Option
from lockd.errors import InvalidRequestError
from lockd.hints import Any, Final, NoReturn
from lockd.lean import signal
from lockd.names import plain, quoted

_NAME_LENGTH: Final = 60


def _signal(word: str) -> int:
    name = word.upper().removeprefix("SIG")
    for known, number in vars(signal).items():
        # SIG_DFL and the like are no signals.
        is_one = known.startswith("SIG") and "_" not in known
        if is_one and name in (known.removeprefix("SIG"), str(int(number))):
            return int(number)
    raise ValueError(f"{quoted(word)} is not a signal")


OPTIONS: Final = (
    options.SHARE,
    Option(
        "exclusive", "-x", "-e", "--exclusive",
        help="Exclude all others (the default).",
    ),
    *options.OF_SLOTS,
    Option(
        "nonblock", "-n", "--nb", "--nonblock",
        help="Do not wait; the same as -w 0.",
    ),
    options.TIMEOUT,
    options.MAX_WAITING,
    Option(
        "conflict_status", "-E", "--conflict-exit-code", value="N",
        read=options.whole(0, 255),
        help="Exit with N (0 to 255) instead of 75 if the lock is busy or the wait "
        "times out.",
    ),
    Option("script", "-c", value="STRING", help="Run STRING with $SHELL or /bin/sh."),
    Option(
        "no_fork", "-F", "--no-fork",
        help="Replace lockctl with the command. The lock then lasts until the command "
        "and all processes that inherit its connection have ended. Nothing stops them "
        "if the lock is lost.",
    ),
    Option(
        "close", "-o", "--close",
        help="Release the lock when COMMAND ends, even if it left processes behind.",
    ),
    Option(
        "whole", "--whole",
        help="Lock every byte of a file that is named by its path, and lock it with "
        "flock(2), too. Programs that do not use lockd are kept out then, COMMAND "
        "included: `lockctl run --whole x -- flock x` would wait for ever.",
    ),
    Option(
        "max_hold", "--max-hold", value="TIME", read=options.span,
        help="If the lock is held for longer than TIME, such as 90, 30m, 4h or 2d: "
        "stop COMMAND and all that it started (with -o only COMMAND), and exit with "
        "76. The lock is held until they have ended.",
    ),
    options.LOCKSPACE,
    *options.OF_PEOPLE,
    Option(
        "stop_signal", "--signal", value="SIGNAL", read=_signal, default="TERM",
        help="Send SIGNAL to stop the processes if the lock is lost or --max-hold is "
        "over.",
    ),
    Option(
        "kill_after", "--kill-after", value="SECONDS", read=options.seconds,
        default="10", help="Send SIGKILL if they still run after SECONDS.",
    ),
    Option(
        "status_fd", "--status-fd", value="FD", read=options.whole(0),
        help="Write the outcome to this descriptor, as one JSON object.",
    ),
    Option("verbose", "-v", "--verbose", help="Print the holder and the waiting time."),
    Option(
        "quiet", "--quiet",
        help="Do not print why the lock is busy or the wait timed out. lockctl still "
        "prints all other errors.",
    ),
)  # fmt: skip


def parted(
    args: list[str], has_names: Callable[[list[str]], bool]
) -> tuple[list[str], tuple[str, ...]]:
    """Separates the options of lockctl from the words of the command.

    `--` stands before the command. If no NAME is before it, it ends the options, so
    that a NAME can begin with a dash. The next `--` then stands before the command.
    Without `--`, the command begins after the first NAME, as with flock(1).

    Args:
        args: all words after `run`.
        has_names: returns whether a NAME is among some words of lockctl.

    Returns:
        The words of lockctl, and those of the command.
    """
    if "--" not in args:
        end = _find_command(args)
        return args[:end], tuple(args[end:])
    end = _find_dashes(args, 0)
    if end < len(args) and not has_names(args[:end]):
        end = _find_dashes(args, end + 1)
    return args[:end], tuple(args[end + 1 :])


def _find_command(args: list[str]) -> int:
    """Returns the index of the word after the first NAME, or the end of the arguments.

    With a command in `-c` all words are NAMEs.
    """
    valued = {x.param: x.names for x in OPTIONS if not x.is_flag}
    scripts = valued.pop("script")
    takers = [name for names in valued.values() for name in names]
    has_name = False
    left = iter(enumerate(args))
    for index, word in left:
        if word == "-" or not word.startswith("-"):
            if has_name:
                return index
            has_name = True
            continue
        # `-sw 10` and `-sw10` are `-s -w 10`.
        last = word if word.startswith("--") else _last_option(word, takers, scripts)
        if last.startswith(scripts):
            return len(args)
        if last in takers:
            next(left, None)
    return len(args)


def _last_option(word: str, takers: list[str], scripts: tuple[str, ...]) -> str:
    """Returns the first of some joined options that has a value, with that, or `""`."""
    for place, letter in enumerate(word[1:], 1):
        if f"-{letter}" in (*takers, *scripts):
            return f"-{word[place:]}"
    return ""


def _find_dashes(args: list[str], start: int) -> int:
    """Returns the index of the next `--`, or the end of the arguments."""
    return args.index("--", start) if "--" in args[start:] else len(args)


def understood(
    args: list[str],
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]] | None:
    """Reads a plain command line: the names, the command and the options.

    Returns None if click has to read it.
    """

    def has_names(part: list[str]) -> bool:
        found = options.understood(OPTIONS, part)
        return found is None or bool(found[1])

    ours, words = parted(args, has_names)
    found = options.understood(OPTIONS, ours)
    if found is None or not found[1]:
        return None
    values, names = found
    return tuple(names), words, values


def carry_out(
    socket: str | None,
    names: tuple[str, ...],
    words: tuple[str, ...],
    *,
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
    """Runs the command under the locks, and exits with its status.

    Args:
        socket: the path of the daemon's socket; None for the default.
        names: the NAMEs.
        words: the command; empty for one in `script`.
        lockspace, shared, ...: the values of the options.
        wishes: those that the plan has under the same names.

    Raises:
        LockdError: the options contradict each other, or no daemon can be used.
    """
    if shared and exclusive:
        raise InvalidRequestError("a lock is either --shared or --exclusive")
    if exclusive and (slots or slot):
        raise InvalidRequestError("a lock in a slot is not --exclusive")
    how = options.mode_of(names, shared=shared, slots=slots, slot=slot)
    if no_fork and close:
        raise InvalidRequestError(
            "--close does not work with --no-fork: COMMAND itself holds the lock then"
        )
    if no_fork and wishes["status_fd"] is not None:
        raise InvalidRequestError(
            "--status-fd does not work with --no-fork: no lockctl is left to write it"
        )
    if no_fork and wishes["max_hold"] is not None:
        raise InvalidRequestError(
            "--max-hold does not work with --no-fork: no lockctl is left to stop "
            "COMMAND"
        )
    words, called = _command(words, script)
    keys = [options.meant(name, lockspace) for name in names]
    if not wishes["quiet"]:
        options.note_files(names, lockspace)
    # Help, completion and mistakes do without the client.
    from lockd.ctl.run.under_lock import Plan, Run

    plan = Plan(
        socket=socket,
        lockspace=options.common_lockspace(keys),
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
        raise InvalidRequestError(
            "no command: write it after the name, as in `lockctl run NAME -- COMMAND`"
            if script is None
            else "give either -c STRING or a command after `--`, not both"
        )
    if script is None and not words[0]:
        raise InvalidRequestError("the command is empty: is a variable not set?")
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
        raise InvalidRequestError(f"--status-fd {status_fd}: {reason}") from None
