"""The states of a request, and which state may follow which.

This module is the whole state machine of a request. `Request.become` changes a state,
and accepts only what `NEXT` allows. Any other step is a defect of the engine.
(`Request.restore` sets the state that a snapshot recorded.)

The state says where the request is. A queued or paused request stands in the line of
each of its resources. An opening, delayed or abandoned one is `Resource.pending` where
its anchor is not yet open. A new or answered request is in neither.
"""

from enum import StrEnum
from typing import Final


class RequestState(StrEnum):
    """Where a request stands between its command and its last effect."""

    NEW = "new"
    """Counted, but not yet placed. No request is new between two commands."""

    QUEUED = "queued"
    """In line. Its session knows that it waits."""

    OPENING = "opening"
    """It is the next to be granted, and its anchors are being opened. Its session does
    not know that it waits: the engine expects the answer at once."""

    DELAYED = "delayed"
    """Its anchors are being opened, and its session knows that it waits."""

    PAUSED = "paused"
    """First in line. A process outside lockd has locked its file; the engine retries at
    `Request.retry_at`. Nobody in its line moves until then."""

    ABANDONED = "abandoned"
    """Answered while its anchors are being opened. The engine still waits for the
    anchors."""

    ANSWERED = "answered"
    """Answered. Nothing in the engine refers to it."""


# The names without their class: the engine compares states on every request.
NEW: Final = RequestState.NEW
QUEUED: Final = RequestState.QUEUED
OPENING: Final = RequestState.OPENING
DELAYED: Final = RequestState.DELAYED
PAUSED: Final = RequestState.PAUSED
ABANDONED: Final = RequestState.ABANDONED
ANSWERED: Final = RequestState.ANSWERED

NEXT: Final[dict[RequestState, frozenset[RequestState]]] = {
    # Somebody is before it; its anchors are being opened; it is granted or refused.
    NEW: frozenset({QUEUED, OPENING, ANSWERED}),
    # It reaches the front; it is granted without an anchor, refused or cancelled.
    QUEUED: frozenset({DELAYED, ANSWERED}),
    # An anchor is slow; the file is locked from outside; the anchors are open, or one
    # cannot be opened; it is refused or cancelled before the anchors answer.
    OPENING: frozenset({DELAYED, PAUSED, ANSWERED, ABANDONED}),
    DELAYED: frozenset({PAUSED, ANSWERED, ABANDONED}),
    # The pause is over; it is refused or cancelled.
    PAUSED: frozenset({QUEUED, ANSWERED}),
    # The last anchor answered.
    ABANDONED: frozenset({ANSWERED}),
    ANSWERED: frozenset(),
}
"""The states that may follow each state."""
