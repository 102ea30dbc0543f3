"""Clients within the locks of programs that wait for them (protocol 6.2)."""

import pytest

from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


def hello(client: WireClient, *within: str) -> str:
    params = {"within": within} if within else {}
    answer = client.call("hello", protocol=1, client="test", **params)
    instance = answer["instance"]
    assert isinstance(instance, str)
    return instance


def test_child_that_wants_its_parents_lock_is_refused(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a")["fencing_token"]
        hello(child, f"{instance}:{token}")
        refused = child.refusal("acquire", resource="a")
        assert refused.code == "deadlock"
        assert "which waits for the end of" in refused.sentence
        assert "LOCKD_WITHIN" in refused.sentence
        assert refused.facts is not None
        (link,) = refused.facts["cycle"]
        assert link["resource"] == "a"
        assert link["inside"]["resource"] == "a"
        assert link["inside"]["session"] != link["session"]


def test_lock_of_another_daemon_is_ignored(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a")["fencing_token"]
        hello(child, f"{instance[::-1]}x:{token}")
        msgid = child.send("acquire", resource="a")
        parent.call("release", resource="a")
        assert child.result(msgid)["grant"]["resource"] == "a"


def test_lock_that_is_over_is_ignored(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a")["fencing_token"]
        parent.call("release", resource="a")
        hello(child, f"{instance}:{token}", f"{instance}:{token + 1}")
        child.acquire("a")


@pytest.mark.parametrize(
    "within", ["", "a", "a:", ":1", "a:-1", "a:1.5", "a:1:2", "a:" + "9" * 20, "ü:1", 7]
)
def test_odd_word_is_refused_and_the_session_goes_on(
    within: object, lockd: DaemonProcess
) -> None:
    with WireClient(lockd.socket) as client:
        refused = client.refusal("hello", protocol=1, client="test", within=[within])
        assert refused.code == "invalid"
        assert "within" in refused.sentence
        hello(client)


def test_at_most_64_are_named(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        words = ["a:1"] * 65
        refused = client.refusal("hello", protocol=1, client="test", within=words)
        assert refused.code == "invalid"
        assert "an array of 0 to 64 texts" in refused.sentence
        hello(client, *words[:64])


def test_who_waits_already_is_within_nothing(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as holder, WireClient(lockd.socket) as client:
        holder.acquire("a")
        waits = client.send("acquire", resource="a")
        refused = client.refusal("hello", protocol=1, client="test", within=["a:1"])
        assert refused.sentence == "give `within` while no request waits"
        holder.call("release", resource="a")
        assert client.result(waits)["grant"]["resource"] == "a"


def test_daemon_keeps_its_name_and_who_is_within_over_an_upgrade(
    lockd: DaemonProcess,
) -> None:
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a")["fencing_token"]
        hello(child, f"{instance}:{token}")
        lockd.upgrade()
        assert child.refusal("acquire", resource="a").code == "deadlock"
        with WireClient(lockd.socket) as other:
            assert hello(other) == instance
