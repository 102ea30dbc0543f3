"""When this program can be replaced, and the requests that wait for it (protocol 6.19).

A reload replaces this program by the one on disk, so the successor answers. If the
upgrade fails, this program answers.
"""

import os
import resource
import signal
import sys
from typing import Final, NamedTuple

from lockd.daemon.clients.limits import Limiter, open_descriptors
from lockd.daemon.clients.peer import RELOAD, Peer
from lockd.daemon.replies.answers import Answers
from lockd.errors import UnavailableError
from lockd.protocol.methods import NoParams

ROOM: Final = 32
"""Descriptors that must be free. A new program that cannot open its own files would
end, and all locks with it."""

FOR_HANDOVER: Final = 4
"""Descriptors that the handover itself needs: a memfd, and those of a ledger."""


def command() -> list[str]:
    """Returns the command line of this program, which may be a new version by now.

    A script is executed itself: its first line names the interpreter that the new
    version needs, and the process keeps the name of the script.
    """
    interpreter, *arguments = sys.orig_argv
    if sys.argv[0] in arguments and _is_executable_script(sys.argv[0]):
        return arguments[arguments.index(sys.argv[0]) :]
    return [interpreter if "/" in interpreter else sys.executable, *arguments]


def _is_executable_script(path: str) -> bool:
    if not os.access(path, os.X_OK):
        return False
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def hindrance(changes: int, *, is_stuck: bool) -> str | None:
    """Returns why this program cannot be replaced now, as far as known without a trial.

    Args:
        changes: how many files are being made or removed.
        is_stuck: whether there is no memory to record what happened last.
    """
    program = command()[0]
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if is_stuck:
        return "there is no memory to record what happened last"
    if changes:
        # A peer would never get an answer.
        return "a file is being made or removed on a slow file system"
    if not os.access(program, os.X_OK):
        return f"{program} cannot be executed"
    if most - open_descriptors() < ROOM + FOR_HANDOVER:
        return f"fewer than {ROOM + FOR_HANDOVER} descriptors are free (LimitNOFILE)"
    return None


class Asked(NamedTuple):
    """A waiting request."""

    session: int
    msgid: int


class Reloads:
    """Handles the requests for a reload.

    Args:
        answers: has the peers.
        limiter: limits the waiting requests.
    """

    def __init__(self, answers: Answers, limiter: Limiter) -> None:
        self._answers = answers
        self._limiter = limiter

    def take(self, peer: Peer, msgid: int, params: NoParams) -> None:
        """Starts a reload for a peer, as the signal does."""
        self._limiter.check_late(peer)
        self._answers.expect(peer, msgid, RELOAD)
        signal.raise_signal(signal.SIGUSR1)

    def waiting(self) -> list[Asked]:
        """Returns the requests that a reload answers if it begins now."""
        return [
            Asked(peer.session, msgid)
            for peer in self._answers.peers.values()
            for msgid in peer.reloads
        ]

    def answer(self, asked: list[Asked], problem: str | None) -> None:
        """Answers requests after a reload.

        Args:
            asked: the requests.
            problem: why nothing has changed; None after success.
        """
        error = None if problem is None else UnavailableError(problem)
        for session, msgid in asked:
            self._answers.conclude(session, msgid, error)
