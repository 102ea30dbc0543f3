"""The state machine of a request: every step of the table happens, and no other."""

from itertools import product

import pytest

from engine.narrator import Narrator
from lockd.engine.request_state import (
    ABANDONED,
    ANSWERED,
    DELAYED,
    NEW,
    NEXT,
    OPENING,
    PAUSED,
    QUEUED,
    RequestState,
)
from lockd.engine.session import Request

Step = tuple[RequestState, RequestState]
STEPS = {(before, after) for before, following in NEXT.items() for after in following}

STORIES: dict[Step, str] = {
    (NEW, QUEUED): "ann acquires disk; bob acquires disk",
    (NEW, OPENING): "ann acquires files:a",
    (NEW, ANSWERED): "ann acquires disk; bob acquires disk or not at all",
    (QUEUED, DELAYED): (
        "ann acquires files:a; the file of files:a is opened; bob acquires files:a; "
        "ann releases files:a"
    ),
    (QUEUED, ANSWERED): "ann acquires disk; bob acquires disk; ann releases disk",
    (OPENING, DELAYED): "ann acquires files:a; the file of files:a is slow",
    (
        OPENING,
        PAUSED,
    ): "ann acquires files:a; the file of files:a is locked from outside",
    (OPENING, ANSWERED): "ann acquires files:a; the file of files:a is opened",
    (OPENING, ABANDONED): "ann acquires files:a; ann disconnects",
    (DELAYED, PAUSED): (
        "ann acquires files:a; the file of files:a is slow; "
        "the file of files:a is locked from outside"
    ),
    (DELAYED, ANSWERED): (
        "ann acquires files:a; the file of files:a is slow; the file of files:a is full"
    ),
    (DELAYED, ABANDONED): (
        "ann acquires files:a within 5 s; the file of files:a is slow; 5 s pass"
    ),
    (PAUSED, QUEUED): (
        "ann acquires files:a; the file of files:a is locked from outside; 0.01 s pass"
    ),
    (PAUSED, ANSWERED): (
        "ann acquires files:a; the file of files:a is locked from outside; ann cancels"
    ),
    (ABANDONED, ANSWERED): (
        "ann acquires files:a; ann disconnects; the file of files:a is opened"
    ),
}
"""How a client sees to each step: the last sentence of its story takes it."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that requests take in this test."""
    found: list[Step] = []
    become = Request.become

    def note(self: Request, state: RequestState) -> None:
        found.append((self.state, state))
        become(self, state)

    monkeypatch.setattr(Request, "become", note)
    return found


def test_every_step_of_the_table_has_its_story() -> None:
    assert STORIES.keys() == STEPS


@pytest.mark.parametrize(("step", "story"), STORIES.items())
def test_step_is_taken(step: Step, story: str, steps: list[Step]) -> None:
    narrator = Narrator()
    for sentence in story.split("; "):
        steps.clear()
        narrator.tell(sentence)
    assert step in steps


@pytest.mark.parametrize(("before", "after"), sorted({*product(NEXT, NEXT)} - STEPS))
def test_any_other_step_is_a_defect(before: RequestState, after: RequestState) -> None:
    request = Request.__new__(Request)
    request.state = before
    with pytest.raises(AssertionError, match=f"that is {before} becomes {after}"):
        request.become(after)
    assert request.state is before


def test_answered_is_the_end() -> None:
    reached, new = {NEW}, {NEW}
    while new:
        new = {after for x in new for after in NEXT[x]} - reached
        reached |= new
    assert reached == {*RequestState}
    assert [x for x, following in NEXT.items() if not following] == [ANSWERED]
