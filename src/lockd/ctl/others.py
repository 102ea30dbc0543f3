"""Warns a user at a terminal if the daemon that lockctl uses is not the only one."""

import os
import sys
from contextlib import suppress

from lockd.ctl.options import COMPLETING
from lockd.ctl.streams import say
from lockd.errors import LockdError
from lockd.hints import Final

CHOOSE: Final = "choose with --socket or LOCKD_SOCKET"
"""What the user can do."""


def warn_of_others(socket: str | None) -> None:
    """Warns if another daemon also listens at a default socket.

    Args:
        socket: the path of the daemon's socket; None for the default.
    """
    if sys.stderr is None or not sys.stderr.isatty() or COMPLETING in os.environ:
        return
    from lockd.client import paths  # only for users: a script pays for no search

    with suppress(LockdError):  # the command will raise it
        address = paths.find_socket(socket)
        for other in address.others:
            say(
                f"this command uses the daemon at {address.path}; another daemon "
                f"listens at {other}: {CHOOSE}"
            )
