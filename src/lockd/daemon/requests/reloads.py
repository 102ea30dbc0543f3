"""The requests that wait for the end of a reload (protocol 6.19).

A reload gives the place of this program to the one on disk, so it is the successor that
answers; if there is none, because the upgrade failed, it is this one.
"""

import signal
from typing import NamedTuple

from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import RELOAD, Peer
from lockd.daemon.replies.answers import Answers
from lockd.errors import UnavailableError
from lockd.protocol.methods import NoParams


class Asked(NamedTuple):
    """A request that waits."""

    session: int
    msgid: int


class Reloads:
    """Takes the requests for a reload, and answers them.

    Args:
        answers: knows the peers.
        limiter: knows how many requests may wait.
    """

    def __init__(self, answers: Answers, limiter: Limiter) -> None:
        self._answers = answers
        self._limiter = limiter

    def take(self, peer: Peer, msgid: int, params: NoParams) -> None:
        """Begins a reload for a peer, as the signal does."""
        self._limiter.check_late(peer)
        self._answers.expect(peer, msgid, RELOAD)
        signal.raise_signal(signal.SIGUSR1)

    def waiting(self) -> list[Asked]:
        """Returns the requests that a reload that begins now answers."""
        return [
            Asked(peer.session, msgid)
            for peer in self._answers.peers.values()
            for msgid in peer.reloads
        ]

    def answer(self, asked: list[Asked], problem: str | None) -> None:
        """Says how a reload ended.

        Args:
            problem: why nothing has changed; None if the reload succeeded.
        """
        error = None if problem is None else UnavailableError(problem)
        for session, msgid in asked:
            self._answers.conclude(session, msgid, error)
