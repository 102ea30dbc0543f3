"""Requests that change nothing."""

from support.wire_client import WireClient


def test_query_of_a_free_resource_has_its_shape(client: WireClient) -> None:
    assert client.call("query", resource="never held") == {
        "lockspace": "default",
        "resource": "never held",
        "holders": [],
        "holder_count": 0,
        "waiters": [],
        "waiter_count": 0,
        "last_holder": None,
        "history": [],
        "outside": None,
        "slots": None,
        "slots_taken": None,
        "slots_removed": None,
    }
    assert client.call("statistics")["resources"] == 0


def test_check_tells_whether_a_token_is_held(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    client.acquire("b")
    ask = {"resource": "a", "fencing_token": token}
    assert other.call("check", **ask) == {"current": True}
    assert other.call("check", resource="b", fencing_token=token) == {"current": False}
    assert other.call("check", resource="a", fencing_token=token + 1) == {
        "current": False
    }
    client.call("release", resource="a")
    assert other.call("check", **ask) == {"current": False}
