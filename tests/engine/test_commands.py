"""Commands and effects are values, whether they are compiled or not."""

from typing import Any, get_args

import pytest

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine import values as v
from lockd.engine.commands import Value
from lockd.terms import EXCLUSIVE, SHARED, OutsideHolder, ResourceKey

KEY = ResourceKey("m", "a")
OWNER = v.Owner("alice", 1, 1000)
GRANT = e.Grant(KEY, 1, OWNER, 1, EXCLUSIVE, 7, 2.0)
WHOLE = e.Grant(
    *(KEY, 1, OWNER, 1, EXCLUSIVE, 7, 2.0, 2, "label", "reason", 3, True),
    *(v.HolderNotices(5.0), 0, 2, OWNER, (6,)),
)
SITUATION = e.Situation(KEY, (GRANT,), 1, (), 0, None, 3, 1)
LAST = e.LastHolder(GRANT, 3.0, "broken")

VALUES: list[Value] = [
    c.OpenSession(1, OWNER),
    c.RegisterOwner(1, 2, 3, OWNER, "kill", "both"),
    c.EnterGrants(1, (7, 8)),
    c.CloseSession(1),
    c.DisconnectOwner(1),
    c.EndOwner(1),
    c.OwnerFenced(1),
    c.Acquire(
        *(1, 2, (KEY,), SHARED, 1.5, "temporary", "label", "reason", 3, 4),
        *(True, 5.0, True, 6, OWNER, 0),
    ),
    c.Convert(1, 2, KEY, SHARED, 1.5, 7),
    c.Release(1, 2, (KEY,), 7, "failed"),
    c.ReleaseForOwner(1, 2, 7, "ok"),
    c.Cancel(1, 2, 3),
    c.BreakGrant(1, 2, 7, "reason", fence=False),
    c.AnchorOpened(KEY),
    c.AnchorDelayed(KEY),
    c.Resume(),
    c.Tick(),
    e.Granted(1, 2, (GRANT,), 0.5, True, (LAST,)),
    e.Refused(
        *(1, 2, "busy", "message", e.Situation(KEY, (GRANT,), 1, (), 0), 0.5),
        OutsideHolder(EXCLUSIVE, 9),
        (e.WaitEdge(OWNER, 1, KEY),),
        *(3, v.Mismatch(KEY, 2, 3), True),
    ),
    e.Completed(1, 2),
    e.Queued(1, 2, (KEY,), SHARED, True),
    e.Ended(WHOLE, "released"),
    e.Lost(1, GRANT, "broken", "reason"),
    e.Overdue(None, GRANT, 2),
    e.Wanted(1, GRANT, 2),
    e.Unwanted(1, GRANT, 0),
    e.BreakOverdue(GRANT),
    e.OpenAnchor(KEY, SHARED, True, True, True),
    e.CloseAnchor(KEY),
    e.Fence(1, OWNER),
    e.ForgetOwner(1),
    *(GRANT, LAST, SITUATION, e.WaitEdge(OWNER, 1, KEY, 2, GRANT)),
    e.Waiter(OWNER, 1, SHARED, 2.0, True, "label", "reason", 3, (7,)),
]

NAMES: dict[str, Any] = {
    **vars(v),
    **vars(c),
    **vars(e),
    "OutsideHolder": OutsideHolder,
}


def test_every_kind_is_here() -> None:
    kinds = (*get_args(c.Command), *get_args(e.Effect))
    assert {type(value) for value in VALUES} >= {
        kind for kind in kinds if issubclass(kind, Value)
    }


@pytest.mark.parametrize("value", VALUES, ids=lambda x: type(x).__name__)
def test_value_tells_all_of_itself(value: Value) -> None:
    like = eval(repr(value), NAMES)
    assert like is not value
    assert like == value
    assert repr(like) == repr(value)


def test_value_differs_by_kind_and_by_each_attribute() -> None:
    assert all(x != y for x in VALUES for y in VALUES if x is not y)
    assert c.CloseSession(1) != c.EndOwner(1) != 1
    assert c.Release(1, 2, (KEY,)) != c.Release(1, 2, (KEY,), outcome="ok")
    assert e.Granted(1, 2, (GRANT,), 0.5) != e.Granted(1, 2, (GRANT,), 0.25)


def test_replaced_value_keeps_the_rest() -> None:
    wish = c.Acquire(1, 2, (KEY,), SHARED, 1.5, label="label")
    assert wish.replace(mode=EXCLUSIVE, timeout=None) == c.Acquire(
        1, 2, (KEY,), EXCLUSIVE, label="label"
    )
    assert wish == c.Acquire(1, 2, (KEY,), SHARED, 1.5, label="label")
