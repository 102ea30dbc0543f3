"""What a person is told while `lockctl run` waits."""

from typing import Any

import pytest

from lockd.ctl import waiting
from lockd.ctl.render import since

HOLDER: dict[str, Any] = {
    "name": "tar",
    "pid": 604,
    "uid": 0,
    "since": 1_000_000_000.0,
}


@pytest.mark.parametrize(
    ("held_for", "count", "said"),
    [
        (4.0, 1, "held for 4s by tar, pid 604, uid 0"),
        (
            7_800.0,
            3,
            f"held for 2h10m, since {since(1_000_000_000)}, by tar, pid 604, uid 0 "
            "and 2 more",
        ),
    ],
)
def test_holder_is_named_and_since_when(held_for: float, count: int, said: str) -> None:
    holders = [HOLDER | {"held_for": held_for}]
    assert waiting._held({"holders": holders, "holder_count": count}) == said


def test_nobody_is_named_where_nobody_holds() -> None:
    state = {"holders": [], "holder_count": 0}
    assert waiting._held(state) == "held by nobody in lockd"
