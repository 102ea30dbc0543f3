"""Keeps a forked child from holding, using or ending the sessions of its parent.

A session ends when the last descriptor of its socket is closed. A child with a copy
would keep its parent's locks alive. So the child closes its copy at the fork and sends
nothing: the parent's session continues.
"""

import os

from lockd.errors import ForkedSessionError
from lockd.hints import Protocol
from lockd.lean import WeakSet


class Forkable(Protocol):
    """An object with a session that a forked child must not share."""

    def disown(self) -> None:
        """Closes the child's copy of the socket. Takes no lock, sends nothing."""


_sessions: WeakSet[Forkable] = WeakSet()


def disown_in_children(session: Forkable) -> None:
    """Makes every forked child disown a session of this process."""
    _sessions.add(session)


def forked() -> ForkedSessionError:
    """Returns the error for a child that uses a session of its parent."""
    return ForkedSessionError(
        "this session belongs to the parent process, which keeps its locks: "
        "a forked child must open a connection of its own"
    )


def _disown_all() -> None:
    # Runs in the child. The threads that held locks at the fork do not exist there, so
    # this must not wait for any lock.
    for session in list(_sessions):
        session.disown()
    _sessions.clear()


os.register_at_fork(after_in_child=_disown_all)
