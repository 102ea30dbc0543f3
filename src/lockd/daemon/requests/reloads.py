"""Requests that wait for the end of a reload (protocol 6.19).

A reload replaces this program by the one on disk, so the successor answers. If the
upgrade fails, this program answers.
"""

import signal
from typing import NamedTuple

from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import RELOAD, Peer
from lockd.daemon.replies.answers import Answers
from lockd.errors import UnavailableError
from lockd.protocol.methods import NoParams


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
