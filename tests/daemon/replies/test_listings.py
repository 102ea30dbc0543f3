import itertools
import os
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from conftest import StartDaemon
from daemon.replies.conftest import listed
from lockd.daemon.clients.access import Access
from lockd.daemon.clients.faces import Memory
from lockd.daemon.clients.redaction import Redaction
from lockd.daemon.replies import filters, listings
from lockd.daemon.replies.pages import Pages
from lockd.engine import commands as c
from lockd.engine.lock_engine import LockEngine
from lockd.protocol.methods import ListParams, ListWaitersParams
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey
from support.places import DOCS
from support.wire_client import (
    Connect,
    WireClient,
    wait_for_waiters,
)


def test_listing_of_one_lockspace_has_nothing_of_others(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[lockspaces.m]\nkind = 'memory'\n")
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        client.acquire("b", lockspace="m")
        client.acquire("a")
        other.send("acquire", resource="b", lockspace="m")
        wait_for_waiters(client, "b", 1, lockspace="m")
        (found,) = client.call("list", lockspace="m")["resources"]
        assert (found["lockspace"], found["resource"]) == ("m", "b")
        assert (found["holder_count"], found["waiter_count"]) == (1, 1)
        everything = client.call("list")["resources"]
        assert [found["lockspace"] for found in everything] == ["default", "m"]
        assert listed(client, "list_waiters", lockspace="default") == []
        (waiter,) = listed(client, "list_waiters", lockspace="m")
        assert waiter["resource"] == "b"
        spaces = {s["name"]: s for s in client.call("list_lockspaces")["lockspaces"]}
        assert spaces["m"] == {
            "name": "m",
            "kind": "memory",
            "path": None,
            "file_system": None,
            "on_disconnect": "release",
            "outside": None,
            "max_hold": None,
            "on_overdue": "notice",
            "slots": [],
            "held": 1,
        }
        assert spaces["direct"]["outside"] == "file"
        assert (spaces["default"]["held"], spaces["direct"]["held"]) == (1, 0)


# Who waits.


def test_waiters_have_their_places_and_who_is_before_them(
    connect: Connect, client: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    line = [connect() for _ in range(3)]
    for count, peer in enumerate(line, 1):
        peer.send("acquire", resource="a", reason=f"r{count}")
        wait_for_waiters(client, "a", count)
    found = listed(client, "list_waiters", limit=1)
    assert [x["place"] for x in found] == [1, 2, 3]
    assert [x["reason"] for x in found] == ["r1", "r2", "r3"]
    (holder,) = found[0]["behind"]
    assert holder["fencing_token"] == token
    assert holder["pid"] == os.getpid()
    for before, after in itertools.pairwise(found):
        (behind,) = after["behind"]
        assert behind["owner"] == before["owner"]
        assert behind["fencing_token"] is None
    page = (DOCS / "reference/protocol.md").read_text()
    for key in found[0]:
        assert f"`{key}`" in page


def test_reader_who_converts_waits_for_the_other_readers(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    other.send("convert", resource="a", mode="exclusive")
    wait_for_waiters(client, "a", 1)
    (waiter,) = listed(client, "list_waiters")
    assert waiter["converting"]
    assert len(waiter["behind"]) == 1
    assert waiter["behind"][0]["owner"] != waiter["owner"]


# Sessions, history.


def test_sessions_are_listed_with_what_they_hold_and_wait_for(
    client: WireClient, other: WireClient
) -> None:
    session = client.call("hello", protocol=1, client="backup 1.0")["session"]
    client.call("register", owner={"name": "vm", "uuid": "u"})
    client.call("acquire", resources=["a", "b"])
    other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    mine, theirs = sorted(
        listed(client, "list_sessions"),
        key=lambda each: int(each["session"] != session),
    )
    assert set(mine) == {
        *("name", "uuid", "id", "pid", "uid", "command", "unit", "session"),
        *("client", "since", "connected_for", "held", "waiting"),
    }
    assert (mine["name"], mine["client"]) == ("vm", "backup 1.0")
    assert (mine["held"], mine["waiting"]) == (2, 0)
    assert (theirs["client"], theirs["held"], theirs["waiting"]) == (None, 0, 1)


# What a page costs.

RESOURCES, CROWD = 8, 200


def crowded(*, waiting: bool) -> LockEngine:
    """Returns an engine where a crowd holds, or waits for, each of some resources."""
    engine = LockEngine()
    engine.handle(c.AddLockspace("m", anchored=False), now=0.0)
    mode: Mode = EXCLUSIVE if waiting else SHARED
    for session in range(RESOURCES * CROWD):
        place, number = divmod(session, RESOURCES)
        # Nobody has pid 0, so no process is looked up.
        owner = c.Owner("last" if place == CROWD - 1 else "some", 0, 1000)
        engine.handle(c.OpenSession(session, owner), now=0.0)
        keys = (ResourceKey("m", f"r{number}"),)
        command = c.Acquire(session, 1, keys, mode, None, label="/else")
        engine.handle(command, now=0.0)
    return engine


def scene_of(engine: LockEngine) -> listings.Scene:
    user = SimpleNamespace(uid=0)
    peer: Any = SimpleNamespace(is_admin=True, is_foreign=False, credentials=user)
    nothing: Any = None
    redaction = Redaction(Access())
    return listings.Scene(
        engine, {}, {}, nothing, peer, lambda space: True, redaction, Memory()
    )


class Looks:
    """Counts how often something looks at a party."""

    def __init__(self) -> None:
        self.count = 0

    def on(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        function = getattr(listings, name)

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return function(*arguments)

        monkeypatch.setattr(listings, name, counted)

    def at_labels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        leads_to = filters.leads_to

        def counted(path: str) -> Any:
            leads = leads_to(path)

            def look(name: str) -> bool:
                self.count += 1
                return leads(name)

            return look

        monkeypatch.setattr(listings, "leads_to", counted)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    looks.on(monkeypatch, "means")
    looks.on(monkeypatch, "_holder_before")
    looks.at_labels(monkeypatch)
    return looks


def pages_of(
    engine: LockEngine, method: str, params: Any, looks: Looks
) -> Iterator[tuple[int, int]]:
    """Goes through a listing; yields the entries of each page and the looks for it."""
    what, unfinished = listings.LISTED[method], Pages()
    while True:
        looks.count = 0
        begin = partial(what.begin, scene_of(engine), params)
        found, place = unfinished.page((0, 0), params, begin, what.start, 0.0)
        yield len(found), looks.count
        if place is None:
            return
        params = type(params)(**params_of(params) | {"after": place})


def params_of(params: Any) -> dict[str, Any]:
    return {name: getattr(params, name) for name in params.__struct_fields__}


def all_pages(
    engine: LockEngine, method: str, params: Any, looks: Looks
) -> list[tuple[int, int]]:
    async def go() -> list[tuple[int, int]]:
        return list(pages_of(engine, method, params, looks))

    return trio.run(go)


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    ("params", "matching", "looks_in_all"),
    [
        (ListParams(owner="nobody"), 0, RESOURCES * CROWD),
        (ListParams(uid=77, path="/srv"), 0, RESOURCES * CROWD),
        (ListParams(path="/srv"), 0, RESOURCES * (CROWD + 1)),
        (ListParams(uid=1000, path="/srv"), 0, RESOURCES * (CROWD + 2)),
        (ListParams(owner="last"), RESOURCES, RESOURCES * CROWD),
    ],
)
def test_page_compares_few_parties_however_many_there_are(
    looks: Looks,
    params: ListParams,
    matching: int,
    looks_in_all: int,
    waiting: bool,
) -> None:
    found = all_pages(crowded(waiting=waiting), "list", params, looks)
    assert sum(entries for entries, _ in found) == matching
    assert sum(count for _, count in found) >= looks_in_all
    # One resource is looked at whole: to pick it, by owner and by label, and to show
    # its holders.
    assert max(count for _, count in found) < filters.PARTIES + 2 * (CROWD + 1)


def test_first_waiter_names_few_holders_however_many_there_are(looks: Looks) -> None:
    engine = crowded(waiting=False)
    engine.handle(c.OpenSession(-1, c.Owner("writer", 0, 1000)), now=0.0)
    for number in range(RESOURCES):
        key = ResourceKey("m", f"r{number}")
        engine.handle(c.Acquire(-1, number, (key,), EXCLUSIVE, None), now=0.0)
    found = all_pages(engine, "list_waiters", ListWaitersParams(), looks)
    assert sum(entries for entries, _ in found) == RESOURCES
    assert 0 < max(count for _, count in found) < CROWD
