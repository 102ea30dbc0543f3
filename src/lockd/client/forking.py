"""Keeps a forked child from holding, using or ending the sessions of its parent.

A session ends when the last descriptor of its socket is closed, so a child that kept
its copy would keep its parent's locks alive. The copy is closed at the fork, without a
byte on the wire: the parent's session does not notice.
"""

import os
from typing import Protocol
from weakref import WeakSet

from lockd.errors import ForkedSessionError


class Forkable(Protocol):
    """What has a session that must not be shared with a forked child."""

    def disown(self) -> None:
        """Closes the child's copy of the socket; takes no lock, sends nothing."""


_sessions: WeakSet[Forkable] = WeakSet()


def disown_in_children(session: Forkable) -> None:
    """Makes every forked child disown a session that is open in this process."""
    _sessions.add(session)


def forked() -> ForkedSessionError:
    """Returns the exception for a child that uses what its parent opened."""
    return ForkedSessionError(
        "this session belongs to the parent process, which keeps its locks: "
        "a forked child must open a connection of its own"
    )


def _disown_all() -> None:
    # Runs in the child, where threads that held a lock at the fork are no more: nothing
    # here may wait for a lock.
    for session in list(_sessions):
        session.disown()
    _sessions.clear()


os.register_at_fork(after_in_child=_disown_all)
