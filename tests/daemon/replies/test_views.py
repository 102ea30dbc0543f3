"""The shapes of the protocol, section 7 and clause 4.3, as they are on the wire."""

import os
import re

import pytest

from daemon.replies.conftest import GRANT, HOLDER, KEY, OWNER, PARTY, SITUATION
from lockd.daemon.replies import views
from lockd.engine.effects import Refused, WaitEdge, Waiter
from lockd.terms import OutsideHolder, ResourceKey
from support.places import DOCS
from support.wire_client import WireClient, wait_for_waiters

PAGE = (DOCS / "reference/protocol.md").read_text()

WAITER = PARTY | {
    "inside",
    "strand", "mode", "converting", "since", "waited", "label", "reason",
}  # fmt: skip
LAST_HOLDER = {
    "name", "uuid", "id", "pid", "uid", "mode", "fencing_token", "label", "reason",
    "held_for", "ended", "outcome", "ended_ago",
}  # fmt: skip
GRANTED = {"lockspace", "resource", "mode", "fencing_token", "waited"}
PREVIOUS = {"ended", "outcome", "name", "pid", "fencing_token", "ago"}


@pytest.mark.parametrize(
    ("clause", "keys"),
    [
        ("7.1", PARTY),
        ("7.2", HOLDER - PARTY),
        ("7.3", WAITER - PARTY),
        ("7.4", LAST_HOLDER),
    ],
)
def test_shapes_of_this_test_are_those_of_the_page(clause: str, keys: set[str]) -> None:
    text = re.search(
        rf"^{re.escape(clause)}\. (.*?)^7\.\d+\. ", PAGE, re.DOTALL | re.MULTILINE
    )
    assert text is not None
    quoted = set(re.findall(r"`([a-z_]+)`", text[1]))
    assert quoted == keys


def test_holder_waiter_and_last_holder_have_their_shapes(
    client: WireClient, other: WireClient, own_command: str
) -> None:
    client.acquire("a")
    client.call("release", resource="a")
    client.acquire("a", mode="shared", label="/srv/disk", reason="backup")
    other.send("acquire", resource="a", label="/other", reason="restore")
    wait_for_waiters(client, "a", 1)
    found = client.call("query", resource="a")
    assert set(found) == SITUATION | {"last_holder", "history", "outside"}
    (holder,), (waiter,), last = (
        found["holders"],
        found["waiters"],
        found["last_holder"],
    )
    assert set(holder) == HOLDER | {"on_disconnect"}
    assert set(waiter) == WAITER
    assert set(last) == LAST_HOLDER
    assert holder["pid"] == waiter["pid"] == last["pid"] == os.getpid()
    assert holder["uid"] == os.getuid()
    assert holder["command"] == own_command
    assert (holder["label"], holder["reason"]) == ("/srv/disk", "backup")
    assert (waiter["label"], waiter["reason"]) == ("/other", "restore")
    assert (waiter["mode"], waiter["converting"]) == ("exclusive", False)
    assert (last["mode"], last["ended"]) == ("exclusive", "released")
    assert holder["since"] > 1_600_000_000
    assert holder["held_for"] >= 0
    assert last["ended_ago"] >= 0


def test_waiting_convert_is_shown_as_one(client: WireClient, other: WireClient) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    other.send("convert", resource="a", mode="exclusive")
    wait_for_waiters(client, "a", 1)
    (waiter,) = client.call("query", resource="a")["waiters"]
    assert waiter["converting"] is True


@pytest.mark.parametrize("end", ["released", "disconnected", "broken"])
def test_last_holder_says_how_it_ended(
    end: str, client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    if end == "released":
        client.call("release", resource="a")
    elif end == "broken":
        other.call("break", fencing_token=token, reason="x")
    else:
        client.close()
        other.acquire("a")
        other.call("release", resource="a")
        return
    assert other.call("query", resource="a")["last_holder"]["ended"] == end


@pytest.mark.parametrize("outcome", ["failed", "died"])
def test_grant_after_trouble_tells_what_the_last_hold_was(
    outcome: str, client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    client.call("release", resource="a", outcome=outcome)
    for resources in (["a", "b"], ["b", "a"]):
        grants = other.call("acquire", resources=resources)["grants"]
        first, second = sorted(grants, key=lambda grant: str(grant["resource"]))
        assert set(second) == GRANTED
        assert set(first) == GRANTED | {"previous"}
        previous = first["previous"]
        assert set(previous) == PREVIOUS
        assert (previous["ended"], previous["outcome"]) == ("released", outcome)
        assert (previous["pid"], previous["fencing_token"]) == (os.getpid(), token)
        assert previous["ago"] >= 0
        other.call("release", resource="b")
        other.call("release", resource="a", outcome=outcome)
        token = first["fencing_token"]
    other.acquire("a")
    other.call("release", resource="a", outcome="ok")
    assert set(client.acquire("a")) == GRANTED
    client.call("release", resource="a")


WAITER_VALUE = Waiter(OWNER, 2, "exclusive", 12.0, converting=False)


def test_process_that_cannot_be_seen_has_no_command() -> None:
    party = views.party(OWNER, 3, 0.0)
    assert set(party) == PARTY
    assert (party["command"], party["unit"], party["session"]) == (None, None, 3)


def test_times_are_told_for_people_and_as_durations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    holder = views.holder(GRANT, 15.0)
    assert (holder["since"], holder["held_for"]) == (995.0, 5.0)
    waiter = views.waiter(WAITER_VALUE, 15.0)
    assert (waiter["since"], waiter["waited"]) == (997.0, 3.0)


def test_nobody_held_last() -> None:
    assert views.last_holder(None, 1.0) is None


def test_outside_holder_has_its_facts() -> None:
    outside = OutsideHolder("shared", 123, "python3", None, "sqlite", 1 << 30, None)
    facts = views.facts(Refused(1, 1, "busy", outside=outside), 0.0)
    assert facts["outside"] == {
        "mode": "shared",
        "pid": 123,
        "command": "python3",
        "by": "sqlite",
        "start": 1 << 30,
        "length": None,
    }


def test_cycle_has_its_links_in_order() -> None:
    cycle = (WaitEdge(OWNER, 1, KEY), WaitEdge(OWNER, 2, ResourceKey("default", "b")))
    facts = views.facts(Refused(1, 1, "deadlock", cycle=cycle), 0.0)
    assert [edge["resource"] for edge in facts["cycle"]] == ["a", "b"]
    assert [edge["session"] for edge in facts["cycle"]] == [1, 2]


def test_wait_is_that_of_the_request_that_waited(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("waited for")
    waiting = other.send("acquire", resource="waited for")
    wait_for_waiters(client, "waited for", 1)
    assert (
        other.refusal("acquire", resource="waited for", timeout=0).code
        == "already_held"
    )
    client.call("release", resource="waited for")
    waited = other.result(waiting)["grant"]["waited"]
    history = other.call("query", resource="waited for")["history"]
    (mine,) = (x["session"] for x in history if x["event"] == "waiting")
    spans = {x["event"]: x.get("waited") for x in history if x["session"] == mine}
    assert spans == {"waiting": None, "refused": 0, "granted": waited}
    assert waited > 0
    # Of one moment, in the order in which it happened.
    assert [x["event"] for x in history][-2:] == ["released", "granted"]


def test_query_tells_whose_process_is_ended_with_its_session(
    client: WireClient, other: WireClient
) -> None:
    for each, rule in ((client, "kill"), (other, "release")):
        each.call("register", owner={"name": rule}, on_disconnect=rule)
        each.acquire("a", mode="shared")
    holders = other.call("query", resource="a")["holders"]
    assert {x["name"]: x["on_disconnect"] for x in holders} == {
        "kill": "kill",
        "release": "release",
    }
    client.call("release", resource="a")
