"""Threads and tasks of one client, as the wire sees them (protocol 5.3)."""

import os

import pytest

from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


def test_strands_of_a_session_wait_for_each_other(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        first = client.acquire("a", strand=1)
        second = client.send("acquire", resource="a", strand=2**32 - 1)
        found = client.call("query", resource="a")
        assert [x["strand"] for x in found["holders"]] == [1]
        assert [x["strand"] for x in found["waiters"]] == [2**32 - 1]
        client.call("release", fencing_token=first["fencing_token"])
        assert client.result(second)["grant"]["resource"] == "a"


def test_name_means_strand_0(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        grant = client.acquire("a", strand=1)
        assert client.refusal("release", resource="a").code == "not_held"
        convert = {"resource": "a", "mode": "shared"}
        assert client.refusal("convert", **convert).code == "not_held"
        token = grant["fencing_token"]
        client.call("convert", fencing_token=token, mode="shared")
        client.call("release", fencing_token=token)
        client.acquire("a", strand=0)
        client.call("release", resource="a")


@pytest.mark.parametrize("strand", [-1, 2**32, 1.5, True, "1", [1]])
def test_strand_is_a_number(strand: object, lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        refused = client.refusal("acquire", resource="a", strand=strand)
        assert refused.code == "invalid"
        assert "`strand`" in refused.sentence


def test_strand_may_be_nil(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.acquire("a", strand=None)
        client.call("release", resource="a")


def test_convert_names_a_lock_in_one_way(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        token = client.acquire("a")["fencing_token"]
        for named in ({}, {"resource": "a", "fencing_token": token}):
            refused = client.refusal("convert", mode="shared", **named)
            assert refused.code == "invalid"
            assert refused.sentence == (
                "convert: `resource` or `fencing_token` is needed, not both"
            )


def test_convert_of_a_foreign_token_is_refused(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client, WireClient(lockd.socket) as other:
        token = client.acquire("a")["fencing_token"]
        refused = other.refusal("convert", mode="shared", fencing_token=token)
        assert refused.code == "not_held"
        assert str(token) in refused.sentence


def test_cycle_of_two_strands_is_told(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.call("hello", protocol=1, client="test")
        client.acquire("a", strand=1)
        client.acquire("b", strand=2)
        client.send("acquire", resource="b", strand=1)
        refused = client.refusal("acquire", resource="a", strand=2)
        assert refused.code == "deadlock"
        assert refused.facts is not None
        links = [(x["strand"], x["resource"]) for x in refused.facts["cycle"]]
        assert links == [(2, "a"), (1, "b")]


def test_first_in_line_waits_for_the_other_strands(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        one, two = (client.acquire("a", strand=x, mode="shared") for x in (1, 2))
        client.send("convert", fencing_token=one["fencing_token"], mode="exclusive")
        (waiter,) = client.call("list_waiters")["waiters"]
        assert (waiter["strand"], waiter["place"]) == (1, 1)
        assert [x["strand"] for x in waiter["behind"]] == [2]
        (before,) = waiter["behind"]
        assert before["fencing_token"] == two["fencing_token"]


def test_strands_of_a_registered_process(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client, WireClient(lockd.socket) as other:
        for each in (client, other):
            each.call("register", owner={"name": "guest", "pid": os.getppid()})
        token = client.acquire("a", strand=1)["fencing_token"]
        assert other.refusal("acquire", resource="a", strand=1, timeout=0).code == (
            "busy"
        )
        other.call("release", fencing_token=token)
        assert client.call("query", resource="a")["holders"] == []
