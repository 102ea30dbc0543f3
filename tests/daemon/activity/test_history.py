"""What happened to a resource."""

import os

from support.wire_client import (
    Connect,
    WireClient,
    wait_for_waiters,
)


def test_history_tells_what_happened_to_a_resource(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    name = "history 1"
    token = client.acquire(name)["fencing_token"]
    other.refusal("acquire", resource=name, timeout=0)
    waiting = other.send("acquire", resource=name)
    wait_for_waiters(client, name, 1)
    client.call("release", resource=name)
    other.result(waiting)
    other.call("convert", resource=name, mode="shared")
    other.close()
    while client.call("query", resource=name)["holder_count"]:
        pass
    history = client.call("query", resource=name)["history"]
    told = [(x["event"], x.get("code") or x.get("cause")) for x in history]
    assert told == [
        ("granted", None),
        ("refused", "busy"),
        ("waiting", None),
        ("released", "released"),
        ("granted", None),
        ("converted", None),
        ("released", "disconnected"),
    ]
    assert history[0]["fencing_token"] == history[3]["fencing_token"] == token
    assert history[4]["waited"] > 0
    assert history[3]["held_for"] > 0
    assert [x["ago"] for x in history] == sorted(x["ago"] for x in history)[::-1]
    assert {x["pid"] for x in history} == {os.getpid()}


def test_history_has_an_end(client: WireClient, other: WireClient) -> None:
    for _ in range(40):
        token = client.acquire("history 2")["fencing_token"]
        client.call("release", resource="history 2")
    history = client.call("query", resource="history 2")["history"]
    assert len(history) == 16
    assert history[-1]["fencing_token"] == token
    for number in range(3, 1100):
        client.acquire(f"history {number}")
        client.call("release", resource=f"history {number}")
    assert client.call("query", resource="history 2")["history"] == []
    assert len(client.call("query", resource="history 900")["history"]) == 2


def test_history_has_what_is_not_yet_in_its_place(
    client: WireClient, other: WireClient
) -> None:
    """Many grants end in one turn: more than get their place at once."""
    names = [f"fresh {number}" for number in range(60)]
    client.call("acquire", resources=names)
    client.call("release", resources=names)
    for name in names:
        history = other.call("query", resource=name)["history"]
        assert [x["event"] for x in history] == ["granted", "released"], name
