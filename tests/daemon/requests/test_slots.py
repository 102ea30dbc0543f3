"""Slots, as the wire sees them (protocol 5.15)."""

from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.rights import needs_root
from support.wire_client import (
    WireClient,
    connected_as_nobody,
    wait_for_waiters,
)

TWO = {"mode": "slot", "slots": 2}
CONFIGURED = """
[lockspaces.default.slots]
"gpu" = {}
"gpu*" = 1
"""


@pytest.fixture
def clients(lockd: DaemonProcess) -> Any:
    found = [WireClient(lockd.socket) for _ in range(4)]
    yield found
    for client in found:
        client.close()


def test_grants_holders_and_resources_tell_of_slots(clients: list[WireClient]) -> None:
    first, second, third, other = clients
    grant = first.acquire("gpu", **TWO)
    assert (grant["mode"], grant["slot"], grant["slots"]) == ("slot", 0, 2)
    assert second.acquire("gpu", mode="slot")["slot"] == 1
    waiting = third.send("acquire", resource="gpu", **TWO)
    wait_for_waiters(other, "gpu", 1)
    found = other.call("query", resource="gpu")
    assert [(x["mode"], x["slot"]) for x in found["holders"]] == [
        ("slot", 0),
        ("slot", 1),
    ]
    assert found["waiters"][0]["mode"] == "slot"
    assert found["slots"] == 2
    (listed,) = other.call("list")["resources"]
    assert (listed["slots"], listed["holder_count"]) == (2, 2)
    second.call("release", resource="gpu")
    assert third.result(waiting)["grant"]["slot"] == 1


def test_grant_in_another_mode_has_no_slot(clients: list[WireClient]) -> None:
    grant = clients[0].acquire("a")
    assert not {"slot", "slots"} & grant.keys()
    found = clients[1].call("query", resource="a")
    assert (found["slots"], found["holders"][0]["slot"]) == (None, None)


def test_events_tell_which_slot_was_granted(clients: list[WireClient]) -> None:
    watcher, client, *_ = clients
    watcher.call("watch")
    client.acquire("gpu", **TWO)
    client.call("release", resource="gpu")
    for what in ("granted", "released"):
        event = watcher.notification("event")
        assert (event["event"], event["slot"], event["slots"]) == (what, 0, 2)


def test_other_number_of_slots_is_refused(clients: list[WireClient]) -> None:
    first, second, *_ = clients
    first.call("register", owner={"name": "trainer"})
    first.acquire("gpu", mode="slot", slots=4)
    refused = second.refusal("acquire", resource="gpu", mode="slot", slots=3)
    assert refused.code == "invalid"
    assert "'gpu' has 4 slots (trainer, pid " in refused.sentence
    assert "said so); 3 were asked for" in refused.sentence


def test_nobody_has_said_how_many_slots_there_are(clients: list[WireClient]) -> None:
    refused = clients[0].refusal("acquire", resource="gpu", mode="slot")
    assert refused.code == "invalid"
    assert "nobody has said how many slots 'gpu' has" in refused.sentence


def test_slot_is_not_converted(clients: list[WireClient]) -> None:
    client = clients[0]
    client.acquire("gpu", **TWO)
    client.acquire("a")
    for names in (
        {"resource": "gpu", "mode": "shared"},
        {"resource": "a", "mode": "slot"},
    ):
        refused = client.refusal("convert", **names)
        assert refused.code == "invalid"
        assert "cannot be converted from or to a slot" in refused.sentence


@pytest.mark.parametrize("kind", ["direct", "files"])
def test_files_have_no_slots(
    start_daemon: StartDaemon, tmp_path: Path, kind: str
) -> None:
    daemon = start_daemon(
        f"[lockspaces.files]\nkind = 'directory'\npath = '{tmp_path}/locks'\n"
    )
    with WireClient(daemon.socket) as client:
        refused = client.refusal(
            "acquire", lockspace=kind, resource="/a"[kind == "files" :], **TWO
        )
        assert refused.code == "invalid"
        assert "has no slots, because it locks files" in refused.sentence


@needs_root
def test_who_may_not_list_learns_the_number_but_not_who_said_it(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[lockspaces.default]\nallow_users.list = ['root']\n")
    with (
        WireClient(daemon.socket) as client,
        connected_as_nobody(daemon.socket) as nobody,
    ):
        client.call("register", owner={"name": "secret"})
        client.acquire("gpu", **TWO)
        refused = nobody.refusal("acquire", resource="gpu", mode="slot", slots=3)
        assert (refused.code, refused.facts) == ("invalid", None)
        assert "'gpu' has 2 slots; 3 were asked for" in refused.sentence


def test_share_is_no_right_to_a_slot(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        "[lockspaces.default]\nallow_users = {acquire = [], share = ['*']}\n"
    )
    with WireClient(daemon.socket) as admin:
        admin.acquire("gpu", **TWO)
    with connected_as_nobody(daemon.socket) as nobody:
        nobody.acquire("a", mode="shared")
        assert nobody.refusal("acquire", resource="gpu", **TWO).code == "denied"


# The configuration.


def test_configured_number_counts(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIGURED.format(3))
    with WireClient(daemon.socket) as client:
        assert client.acquire("gpu", mode="slot", slots=True)["slots"] == 3
        assert client.acquire("gpu-1", mode="slot")["slots"] == 1
        refused = client.refusal("acquire", resource="gpu", mode="slot", slots=2)
        assert "'gpu' has 3 slots (as configured); 2 were asked for" in refused.sentence


def test_reload_gives_more_slots_at_once_and_takes_none_away(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(CONFIGURED.format(1))
    with WireClient(daemon.socket) as one, WireClient(daemon.socket) as two:
        one.acquire("gpu", mode="slot")
        waiting = two.send("acquire", resource="gpu", mode="slot")
        wait_for_waiters(one, "gpu", 1)
        daemon.config.write_text(CONFIGURED.format(2))
        daemon.reload()
        # Nobody says anything more that would have the answer sent.
        assert two.result(waiting)["grant"]["slot"] == 1
        daemon.config.write_text(CONFIGURED.format(1))
        daemon.reload()
        found = one.call("query", resource="gpu")
        assert [x["slot"] for x in found["holders"]] == [0, 1]
        counts = "holder_count", "slots", "slots_taken", "slots_removed"
        (listed,) = one.call("list")["resources"]
        for told in (found, listed):
            assert tuple(told[name] for name in counts) == (2, 1, 1, 1)
        with WireClient(daemon.socket) as three:
            three.call("hello", protocol=1, client="test")
            refused = three.refusal("acquire", resource="gpu", mode="slot", timeout=0)
            assert "'gpu' has 1 of 1 slots and 1 removed slot taken by " in (
                refused.sentence
            )
            assert refused.facts is not None
            assert tuple(refused.facts[name] for name in counts) == (2, 1, 1, 1)
        one.call("release", resource="gpu")
        found = two.call("query", resource="gpu")
        assert tuple(found[name] for name in counts) == (1, 1, 0, 1)
        assert two.call("query", resource="gpu")["slots_taken"] == 0
        one.acquire("gpu", mode="slot")
        two.call("release", resource="gpu")
        two.acquire("other")
        assert two.refusal("acquire", resource="gpu", mode="slot", timeout=0).code == (
            "busy"
        )


def test_configured_number_is_told_while_nobody_has_a_slot(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(CONFIGURED.format(3))
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        spaces = {x["name"]: x for x in client.call("list_lockspaces")["lockspaces"]}
        assert spaces["default"]["slots"] == [
            {"pattern": "gpu", "slots": 3},
            {"pattern": "gpu*", "slots": 1},
        ]
        assert spaces["direct"]["slots"] == []

        def told(resource: str) -> tuple[object, ...]:
            found = client.call("query", resource=resource)
            return found["slots"], found["slots_taken"], found["slots_removed"]

        assert [told(x) for x in ("gpu", "gpu1", "cpu")] == [
            (3, 0, 0),
            (1, 0, 0),
            (None, None, None),
        ]
        # Nobody has a slot of what is held without one.
        client.acquire("gpu")
        (listed,) = other.call("list")["resources"]
        assert (listed["slots"], listed["slots_taken"]) == (3, 0)
        refused = client.refusal("acquire", resource="gpu")
        assert "use `convert` to change its mode" in refused.sentence


def test_number_that_was_configured_is_not_said_by_a_holder(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(CONFIGURED.format(3))
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        client.acquire("gpu", mode="slot")
        daemon.config.write_text("")
        daemon.reload()
        refused = other.refusal("acquire", resource="gpu", mode="slot", slots=2)
        assert "'gpu' has 3 slots (as configured before); 2 were asked for" in (
            refused.sentence
        )


def test_reload_with_fewer_slots_refuses_who_would_wait_for_ever(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(CONFIGURED.format(2))
    with (
        WireClient(daemon.socket) as one,
        WireClient(daemon.socket) as two,
        WireClient(daemon.socket) as three,
    ):
        one.acquire("gpu", mode="slot")
        two.acquire("data")
        three.acquire("gpu", mode="slot")
        one.send("acquire", resource="data")
        wait_for_waiters(three, "data", 1)
        waiting = two.send("acquire", resource="gpu", mode="slot")
        wait_for_waiters(three, "gpu", 1)
        daemon.config.write_text(CONFIGURED.format(1))
        daemon.reload()
        assert two.refused(waiting).code == "deadlock"


def test_slots_survive_an_upgrade(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIGURED.format(2), executed=True)
    with WireClient(daemon.socket) as one, WireClient(daemon.socket) as two:
        one.acquire("gpu", mode="slot")
        one.acquire("other", mode="slot", slots=5)
        two.acquire("gpu", mode="slot")
        waiting = two.send("acquire", resource="gpu", mode="slot", strand=1)
        wait_for_waiters(one, "gpu", 1)
        daemon.upgrade()
        one.call("release", resource="gpu")
        assert two.result(waiting)["grant"]["slot"] == 0
        refused = two.refusal("acquire", resource="other", mode="slot", slots=2)
        assert "'other' has 5 slots" in refused.sentence
