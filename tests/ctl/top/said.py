"""What a daemon could have said to `lockctl top`, and the rows that this makes."""

from collections.abc import Sequence
from typing import Any

from lockd.ctl.top.board import Board
from lockd.ctl.top.tables import TABLES, Row, sorted_rows
from lockd.terms import ResourceKey

LOCKS, WAITS, HOLDS, SESSIONS = TABLES
KEY = ResourceKey("default", "job")


def party(session: int, **more: Any) -> dict[str, Any]:
    return {
        "name": f"p{session}",
        "pid": session,
        "uid": 0,
        "command": "x",
        "unit": None,
        "session": session,
        "mode": "exclusive",
        "label": None,
        "reason": None,
        **more,
    }


def told(
    holders: list[int], waiters: Sequence[int] = (), name: str = "job"
) -> dict[str, Any]:
    return {
        "lockspace": "default",
        "resource": name,
        "holders": [party(x, fencing_token=x, held_for=10.0) for x in holders],
        "holder_count": len(holders),
        "waiters": [party(x, waited=5.0, converting=False) for x in waiters],
        "waiter_count": len(waiters),
    }


def event(
    what: str, session: int = 1, name: str = "job", **more: Any
) -> dict[str, Any]:
    return {
        "event": what,
        "lockspace": "default",
        "resource": name,
        "session": session,
        "name": f"p{session}",
        "pid": session,
        **more,
    }


def granted(session: int, name: str = "job") -> dict[str, Any]:
    more = {"mode": "exclusive", "fencing_token": session}
    return event("granted", session, name, **more)


def released(session: int) -> dict[str, Any]:
    return event("released", session, fencing_token=session, cause="released")


def rows(board: Board, table: Any, now: float = 100.0) -> list[Row]:
    return sorted_rows(table, list(table.rows(board, now)), table.sort[0], turned=False)
