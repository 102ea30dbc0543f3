"""What those hear who watch."""

from collections.abc import Callable
from typing import Any

import pytest

from conftest import StartDaemon
from support.processes import idle
from support.wire_client import WireClient, wait_for_waiters

ALWAYS = {"event", "lockspace", "resource", "session", "name", "pid", "uid"}


@pytest.fixture
def watcher(client: WireClient) -> WireClient:
    assert client.call("watch") is None
    return client


def heard(watcher: WireClient, count: int) -> list[dict[str, Any]]:
    events = [watcher.notification("event") for _ in range(count)]
    assert all(set(event) >= ALWAYS for event in events)
    return events


def test_life_of_a_lock_is_told(watcher: WireClient, other: WireClient) -> None:
    token = other.acquire("a")["fencing_token"]
    other.call("convert", resource="a", mode="shared")
    other.call("release", resource="a")
    granted, converted, released = heard(watcher, 3)
    assert [granted["event"], converted["event"], released["event"]] == [
        "granted",
        "converted",
        "released",
    ]
    assert {event["fencing_token"] for event in (granted, converted, released)} == {
        token
    }
    assert (granted["mode"], converted["mode"]) == ("exclusive", "shared")
    assert released["cause"] == "released"
    assert set(granted) == ALWAYS | {"mode", "fencing_token"}


def test_waiting_and_refusal_are_told(watcher: WireClient, other: WireClient) -> None:
    watcher.acquire("a")
    other.refusal("acquire", resource="a", timeout=0)
    other.send("acquire", resource="a")
    granted, refused, waiting = heard(watcher, 3)
    assert (refused["event"], refused["code"]) == ("refused", "busy")
    assert (waiting["event"], waiting["mode"]) == ("waiting", "exclusive")
    assert granted["session"] != waiting["session"]
    watcher.call("release", resource="a")
    released, given = heard(watcher, 2)
    assert (released["event"], given["event"]) == ("released", "granted")


def ends_until_granted(watcher: WireClient) -> list[tuple[str, str]]:
    """Takes the lock after its holder, and returns the ends that were told before."""
    own = watcher.acquire("a")["fencing_token"]
    ends = []
    while (event := watcher.notification("event")).get("fencing_token") != own:
        if "cause" in event:
            ends.append((event["event"], event["cause"]))
    return ends


def end_by_release(watcher: WireClient, other: WireClient, token: int) -> None:
    other.call("release", resource="a")


def end_by_break(watcher: WireClient, other: WireClient, token: int) -> None:
    watcher.call("break", fencing_token=token, reason="x")


def end_by_closing(watcher: WireClient, other: WireClient, token: int) -> None:
    other.close()


def end_by_disconnect(watcher: WireClient, other: WireClient, token: int) -> None:
    (holder,) = watcher.call("query", resource="a")["holders"]
    watcher.call("disconnect", session=holder["session"], reason="x")


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (end_by_release, "released"),
        (end_by_break, "broken"),
        (end_by_closing, "disconnected"),
        (end_by_disconnect, "disconnected"),
    ],
)
def test_each_end_of_a_lock_is_one_event(
    watcher: WireClient,
    other: WireClient,
    end: Callable[[WireClient, WireClient, int], None],
    cause: str,
) -> None:
    end(watcher, other, other.acquire("a")["fencing_token"])
    assert ends_until_granted(watcher) == [("released", cause)]


def test_death_of_a_registered_process_is_one_event(
    watcher: WireClient, other: WireClient
) -> None:
    with idle() as process:
        other.call("register", owner={"name": "cat", "pid": process.pid})
        other.acquire("a")
    assert ends_until_granted(watcher) == [("released", "owner_died")]


def test_one_lockspace_may_be_watched_and_a_second_watch_replaces_the_first(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[lockspaces.m]\nkind = 'memory'\n")
    with WireClient(daemon.socket) as watcher, WireClient(daemon.socket) as other:
        watcher.call("watch", lockspace="m")
        other.acquire("a")
        other.acquire("b", lockspace="m")
        (event,) = heard(watcher, 1)
        assert (event["lockspace"], event["resource"]) == ("m", "b")
        watcher.call("watch", lockspace="default")
        other.acquire("c", lockspace="m")
        other.acquire("d")
        (event,) = heard(watcher, 1)
        assert event["resource"] == "d"
        watcher.call("watch")
        other.acquire("e", lockspace="m")
        (event,) = heard(watcher, 1)
        assert event["resource"] == "e"


def test_who_does_not_watch_hears_nothing(
    client: WireClient, other: WireClient
) -> None:
    other.acquire("a")
    wait_for_waiters(client, "a", 0)
    assert client.kept == []
