"""What those hear who watch."""

from typing import Any

import pytest

from conftest import StartDaemon
from wire_client import WireClient, wait_for_waiters

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


def test_loss_is_told(watcher: WireClient, other: WireClient) -> None:
    token = other.acquire("a")["fencing_token"]
    watcher.call("break", fencing_token=token, reason="x")
    events = {event["event"]: event for event in heard(watcher, 3)}
    assert events["lost"]["cause"] == "broken"
    assert events["released"]["cause"] == "broken"


def test_end_of_a_session_is_told(watcher: WireClient, other: WireClient) -> None:
    other.acquire("a")
    other.close()
    _, released = heard(watcher, 2)
    assert (released["event"], released["cause"]) == ("released", "disconnected")


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
