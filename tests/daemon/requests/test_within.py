"""Clients within the locks of programs that wait for them (protocol 6.2)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_waiters


def hello(client: WireClient, *within: str) -> str:
    params = {"within": within} if within else {}
    answer = client.call("hello", protocol=1, client="test", **params)
    instance = answer["instance"]
    assert isinstance(instance, str)
    return instance


@pytest.fixture
def family(lockd: DaemonProcess) -> Iterator[tuple[WireClient, WireClient, int]]:
    """A parent that holds `a` under the token, and a child within."""
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a")["fencing_token"]
        hello(child, f"{instance}:{token}")
        yield parent, child, token


Family = tuple[WireClient, WireClient, int]


def test_child_that_waits_for_who_waits_for_its_parent_is_refused(
    family: Family, lockd: DaemonProcess
) -> None:
    _, child, _ = family
    with WireClient(lockd.socket) as stranger:
        stranger.acquire("b")
        stranger.send("acquire", resource="a")
        wait_for_waiters(child, "a", 1)
        refused = child.refusal("acquire", resource="b")
    assert refused.code == "deadlock"
    assert "which waits for the end of" in refused.sentence
    assert "LOCKD_WITHIN" in refused.sentence
    assert refused.facts is not None
    first, link = refused.facts["cycle"]
    assert (first["resource"], first["inside"]) == ("b", None)
    assert link["inside"]["resource"] == "a"
    assert link["inside"]["session"] != link["session"]


def test_child_gets_its_parents_lock_inside(family: Family) -> None:
    parent, child, token = family
    grant = child.acquire("a")
    assert grant["inside"] == [token]
    assert grant["fencing_token"] == token + 1
    found = parent.call("query", resource="a")["holders"]
    assert [holder["inside"] for holder in found] == [[], [token]]
    assert child.call("list")["resources"][0]["holders"][1]["inside"] == [token]


def test_grant_inside_nothing_says_nothing_of_it(family: Family) -> None:
    _, child, _ = family
    assert "inside" not in child.acquire("b")


def test_watchers_hear_that_a_grant_is_inside(
    family: Family, lockd: DaemonProcess
) -> None:
    _, child, token = family
    with WireClient(lockd.socket) as watcher:
        watcher.call("watch")
        child.acquire("a")
        child.call("release", resource="a")
        events = [watcher.notification("event") for _ in range(2)]
    assert [x["event"] for x in events] == ["granted", "released"]
    assert [x["inside"] for x in events] == [[token], [token]]


def test_waiter_inside_waits_for_its_sibling_only(
    family: Family, lockd: DaemonProcess
) -> None:
    parent, child, token = family
    inner = child.acquire("a")["fencing_token"]
    with WireClient(lockd.socket) as sibling:
        hello(sibling, f"{hello_again(lockd)}:{token}")
        sibling.send("acquire", resource="a")
        wait_for_waiters(parent, "a", 1)
        (waiter,) = parent.call("list_waiters")["waiters"]
        assert waiter["inside"] == [token]
        assert [x["fencing_token"] for x in waiter["behind"]] == [inner]
        (waiter,) = parent.call("query", resource="a")["waiters"]
        assert waiter["inside"] == [token]


def hello_again(lockd: DaemonProcess) -> str:
    """Returns the name of the daemon."""
    with WireClient(lockd.socket) as client:
        return hello(client)


def test_token_is_current_while_anything_inside_is_held(family: Family) -> None:
    parent, child, token = family
    child.acquire("a")
    parent.call("release", resource="a")
    about = {"resource": "a", "fencing_token": token}
    assert child.call("check", **about) == {"current": True}
    child.call("release", resource="a")
    assert child.call("check", **about) == {"current": False}


def test_exclusive_inside_shared_is_told_what_to_do(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.acquire("a", mode="shared")["fencing_token"]
        hello(child, f"{instance}:{token}")
        refused = child.refusal("acquire", resource="a")
        assert refused.code == "already_held"
        assert refused.sentence.startswith(
            "'a' is held shared by the command that this is part of; it is held shared "
        )
        assert refused.sentence.endswith("; take it exclusively there")
        assert refused.facts is not None
        (holder,) = refused.facts["holders"]
        assert holder["fencing_token"] == token
        child.acquire("a", mode="shared")
        refused = parent.refusal("convert", resource="a", mode="exclusive")
        assert refused.code == "in_use"
        assert "cannot be converted while a program inside it holds it" in (
            refused.sentence
        )
        refused = child.refusal("convert", resource="a", mode="exclusive")
        assert refused.code == "already_held"


def test_partly_inside_is_invalid(family: Family) -> None:
    _, child, _ = family
    refused = child.refusal("acquire", resources=["b", "a"])
    assert refused.code == "invalid"
    assert refused.sentence == (
        "'a' is held by the command that this is part of, and 'b' is not: ask for them "
        "one after the other"
    )


def test_whole_inside_what_is_not_whole_is_told_what_to_do(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    about: dict[str, Any] = {"lockspace": "direct", "resource": str(disk)}
    with WireClient(lockd.socket) as parent, WireClient(lockd.socket) as child:
        instance = hello(parent)
        token = parent.call("acquire", **about)["grant"]["fencing_token"]
        hello(child, f"{instance}:{token}")
        refused = child.refusal("acquire", whole=True, **about)
        assert refused.code == "already_held"
        assert "its file is not locked whole" in refused.sentence
        assert refused.sentence.endswith("; take it whole there")
        assert child.call("acquire", **about)["grant"]["inside"] == [token]


def test_metrics_count_grants_inside(family: Family) -> None:
    parent, child, _ = family
    child.acquire("a")
    text = parent.call("metrics")["text"]
    assert 'lockd_grants_inside_total{lockspace="default"} 1' in text


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
        assert child.acquire("a")["inside"] == [token]
        lockd.upgrade()
        parent.call("release", resource="a")
        assert parent.call("query", resource="a")["holders"][0]["inside"] == [token]
        with WireClient(lockd.socket) as other:
            assert hello(other) == instance
