"""What the tests of this folder share."""

from typing import Any

from lockd.engine.commands import Owner
from lockd.engine.effects import Grant
from lockd.terms import ResourceKey
from support.wire_client import WireClient

OWNER = Owner("vm\n", 0, 5)
KEY = ResourceKey("disks", "a")
GRANT = Grant(KEY, 1, OWNER, 1, "shared", 7, since=10.0)

PAGED = {
    "list": "resources",
    "list_waiters": "waiters",
    "list_sessions": "sessions",
    "list_lockspaces": "lockspaces",
}


def pages(client: WireClient, method: str, **params: Any) -> list[list[Any]]:
    """Goes through a whole listing; returns its pages."""
    found, after = [], None
    while True:
        page = client.call(method, after=after, **params)
        assert set(page) == {PAGED[method], "next"}
        found.append(page[PAGED[method]])
        after = page["next"]
        if after is None:
            return found


def listed(client: WireClient, method: str = "list", **params: Any) -> list[Any]:
    return [thing for page in pages(client, method, **params) for thing in page]


def names_of(found: list[dict[str, Any]]) -> list[str]:
    return [each["resource"] for each in found]


PARTY = {"name", "uuid", "id", "pid", "uid", "command", "unit", "session"}


HOLDER = PARTY | {
    "strand",
    "mode", "slot", "fencing_token", "inside", "count", "since", "held_for", "overdue",
    "label", "reason"
}  # fmt: skip


SITUATION = {
    "lockspace", "resource", "holders", "holder_count", "waiters", "waiter_count",
    "slots", "slots_taken", "slots_removed",
}  # fmt: skip
