"""The command `lockd keep`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lockd.keep.keeper import Keeper

DESCRIPTION = """\
Run a lock daemon so that it survives crashes where no service manager keeps its state:
in a container, or in a terminal. If the daemon is killed, lockd keep starts it again.
No lock, connection or place in a queue is lost, and clients only see a pause.
"""

EPILOG = """\
Without COMMAND, it runs lockd with these options: `lockd keep --socket PATH`. It can be
PID 1. It passes on SIGHUP, SIGUSR1, SIGUSR2, SIGTERM, SIGINT and SIGQUIT. It ends with
the status of the daemon if the daemon ends by itself or was stopped, if the daemon
rejects its configuration (78), or if it never served. If lockd keep itself is killed,
the daemon runs on, and nobody keeps its state.
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs `lockd keep`, and exits.

    Args:
        arguments: those after `keep`.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        parser = argparse.ArgumentParser(
            "lockd keep",
            usage="lockd keep [OPTION...]\n       lockd keep -- COMMAND [ARGUMENT...]",
            description=DESCRIPTION,
            epilog=EPILOG,
        )
        parser.print_help()
        sys.exit()
    if arguments and arguments[0] == "--":
        command = list(arguments[1:])
        if not command:
            sys.exit("lockd keep: the command after -- is missing")
        name = os.path.basename(command[0])
    else:
        # As we were executed ourselves, without our arguments.
        ours = len(sys.orig_argv) - len(sys.argv) + 1
        name, command = "lockd", [*sys.orig_argv[:ours], *arguments]
    sys.exit(Keeper(name, command).run())
