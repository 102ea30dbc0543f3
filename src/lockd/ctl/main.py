"""The entry of lockctl: turns every end of a command into an exit status.

`lockctl run` with a plain command line does without click. It loads nothing that this
run does not need.
"""

import gc
import os
import sys

from lockd import utf8
from lockd.ctl import exits, options, streams
from lockd.ctl.others import warn_of_others
from lockd.errors import LockdError
from lockd.lean import signal


def main() -> None:
    """Runs lockctl and exits."""
    # Nothing of what is loaded is garbage, and `lockctl run` makes none. Other commands
    # enable it when they are loaded.
    gc.disable()
    utf8.insist()
    streams.fill_closed()
    streams.protect()
    sys.exit(_status(sys.argv[1:]))


def _status(args: list[str]) -> int:
    if sys.stderr is None:
        # It was closed. For print() and click, None would mean standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    try:
        status = _status_of_command(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except streams.UnwrittenError as error:
        _discard_output()
        streams.say(f"cannot write the answer to standard output: {error}")
        return exits.UNWRITTEN
    except Exception:
        # Python would exit with 1, which has a meaning here.
        import traceback  # takes long to load

        traceback.print_exc()
        return exits.INTERNAL
    return status


def _status_of_command(args: list[str]) -> int:
    try:
        if options.COMPLETING not in os.environ:
            _run_plainly(args)
        # click takes longer to load than `lockctl run` takes. It does all else, and
        # says what is wrong with a line.
        from lockd.parts import part

        with part("cli", "this command line"):
            from lockd.ctl import commands

            return commands.carry_out(args)
    except LockdError as error:
        streams.say(str(error))
        return exits.status_of(error)
    except KeyboardInterrupt:
        exits.die_of(signal.SIGINT)


def _run_plainly(args: list[str]) -> None:
    """Becomes `lockctl run` or `flock`, if that is what a plain command line says."""
    place = next((n for n, word in enumerate(args) if word in ("run", "flock")), 0)
    before = options.understood([options.SOCKET], args[:place])
    if before is None or before[1]:
        return
    socket, words = before[0][options.SOCKET.param], args[place + 1 :]
    if args[place : place + 1] == ["flock"]:
        from lockd.ctl.run import as_flock

        as_flock.carry_out(socket, words)
    if args[place : place + 1] == ["run"]:
        from lockd.ctl.run import asked

        if (order := asked.understood(words)) is not None:
            warn_of_others(socket)
            names, command, values = order
            asked.carry_out(socket, names, command, **values)


def _discard_output() -> None:
    """Discards the output that Python would try to write again at its end."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())


if __name__ == "__main__":
    main()
