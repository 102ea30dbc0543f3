"""Every method of docs/reference/protocol.md over the wire, and what it refuses."""

import fcntl
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support.wire_client import WireClient, wait_for_waiters

GRANT = {"lockspace", "resource", "mode", "fencing_token", "waited"}


_numbers = count()


# hello


def test_hello_says_who_answers(client: WireClient, other: WireClient) -> None:
    first = client.call("hello", protocol=1, client="test")
    second = other.call("hello", protocol=1, client="test")
    assert set(first) == {"protocol", "server", "session", "epoch", "instance"}
    assert first["protocol"] == 1
    assert first["server"].startswith("lockd ")
    assert first["epoch"] == 1
    assert first["session"] != second["session"]
    assert first["instance"] == second["instance"]


def test_other_version_of_the_protocol_is_refused_and_ours_is_named(
    client: WireClient,
) -> None:
    refusal = client.refusal("hello", protocol=2, client="test")
    assert refusal.code == "invalid"
    assert "send hello with protocol 1" in refusal.sentence
    client.call("hello", protocol=1, client="test")


def test_hello_is_said_once(client: WireClient) -> None:
    client.call("hello", protocol=1, client="test")
    assert client.refusal("hello", protocol=1, client="test").code == "invalid"


def test_facts_come_only_after_hello(client: WireClient, other: WireClient) -> None:
    other.acquire("a")
    assert client.refusal("acquire", resource="a", timeout=0).facts is None
    client.call("hello", protocol=1, client="test")
    facts = client.refusal("acquire", resource="a", timeout=0).facts
    assert facts is not None
    assert facts["holder_count"] == 1
    assert client.refusal("query", resource="").facts == {}


# acquire, convert, release, cancel


def test_grant_has_its_shape(client: WireClient) -> None:
    result = client.call("acquire", resource="unused")
    assert set(result) == {"grant"}
    assert set(result["grant"]) == GRANT
    assert result["grant"] | {"fencing_token": 0} == {
        "lockspace": "default",
        "resource": "unused",
        "mode": "exclusive",
        "fencing_token": 0,
        "waited": 0.0,
    }


def test_nil_stands_for_every_default(client: WireClient) -> None:
    grant = client.acquire(
        "a", lockspace=None, mode=None, create=None, label=None, reason=None
    )
    assert (grant["lockspace"], grant["mode"]) == ("default", "exclusive")


def test_several_resources_are_granted_in_the_order_of_the_request(
    client: WireClient,
) -> None:
    result = client.call("acquire", resources=["unused 3", "unused 2"], mode="shared")
    assert set(result) == {"grants"}
    assert [grant["resource"] for grant in result["grants"]] == ["unused 3", "unused 2"]
    assert all(set(grant) == GRANT for grant in result["grants"])


def test_one_resource_in_an_array_comes_back_in_an_array(client: WireClient) -> None:
    assert set(client.call("acquire", resources=["a"])) == {"grants"}


def test_several_resources_are_granted_all_or_none(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("b")
    refusal = other.refusal("acquire", resources=["a", "b"], timeout=0)
    assert refusal.code == "busy"
    assert other.call("query", resource="a")["holder_count"] == 0


def test_waiting_acquire_holds_up_nothing_else(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    assert other.acquire("b")["resource"] == "b"
    assert not other.kept, "the waiting request was answered"
    client.call("release", resource="a")
    grant = other.result(waiting)["grant"]
    assert grant["resource"] == "a"
    assert grant["waited"] > 0


def test_waiting_request_for_several_is_granted_in_an_array(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resources=["a", "b"])
    wait_for_waiters(other, "a", 1)
    client.call("release", resource="a")
    assert len(other.result(waiting)["grants"]) == 2


def test_timeout_ends_the_wait(client: WireClient, other: WireClient) -> None:
    client.acquire("a")
    other.call("hello", protocol=1, client="test")
    refusal = other.refusal("acquire", resource="a", timeout=0.02)
    assert refusal.code == "timeout"
    assert refusal.facts is not None
    assert round(refusal.facts["waited"], 6) == 0.02
    assert client.call("query", resource="a")["waiter_count"] == 0


def test_busy_names_holder_reason_and_first_waiter(
    client: WireClient, other: WireClient, connect: Callable[[], WireClient]
) -> None:
    client.call("register", owner={"name": "vm-1"})
    client.acquire("a", reason="nightly backup")
    waiter = connect()
    waiter.call("register", owner={"name": "vm-2"})
    waiter.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    refusal = other.refusal("acquire", resource="a", timeout=0)
    assert refusal.code == "busy"
    for word in ("'a'", "vm-1", f"pid {os.getpid()}", "nightly backup", "vm-2"):
        assert word in refusal.sentence


def test_asking_twice_is_already_held(client: WireClient) -> None:
    client.acquire("a")
    assert client.refusal("acquire", resource="a").code == "already_held"
    refusal = client.refusal("acquire", resources=["b", "a"])
    assert refusal.code == "already_held"
    assert client.call("query", resource="b")["holder_count"] == 0


def test_shared_hold_is_counted(client: WireClient) -> None:
    first = client.acquire("a", mode="shared")
    second = client.acquire("a", mode="shared")
    assert first["fencing_token"] == second["fencing_token"]
    assert client.call("query", resource="a")["holders"][0]["count"] == 2
    assert client.refusal("convert", resource="a", mode="exclusive").code == "in_use"
    client.call("release", resource="a")
    client.call("release", resource="a")
    assert client.refusal("release", resource="a").code == "not_held"


def test_convert_keeps_the_token(client: WireClient) -> None:
    grant = client.acquire("a")
    down = client.call("convert", resource="a", mode="shared")
    assert set(down) == {"grant"}
    assert down["grant"] == grant | {"mode": "shared", "waited": 0.0}
    up = client.call("convert", resource="a", mode="exclusive", timeout=0)
    assert up["grant"]["fencing_token"] == grant["fencing_token"]


def test_convert_of_what_is_not_held_is_refused(client: WireClient) -> None:
    assert client.refusal("convert", resource="a", mode="shared").code == "not_held"


def test_convert_waits_for_the_other_holders(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    busy = client.refusal("convert", resource="a", mode="exclusive", timeout=0)
    assert busy.code == "busy"
    waiting = client.send("convert", resource="a", mode="exclusive")
    wait_for_waiters(other, "a", 1)
    deadlock = other.refusal("convert", resource="a", mode="exclusive")
    assert deadlock.code == "deadlock"
    other.call("release", resource="a")
    assert client.result(waiting)["grant"]["mode"] == "exclusive"


def test_deadlock_names_the_cycle(client: WireClient, other: WireClient) -> None:
    other.call("hello", protocol=1, client="test")
    client.acquire("a")
    other.acquire("b")
    waiting = client.send("acquire", resource="b")
    wait_for_waiters(client, "b", 1)
    refusal = other.refusal("acquire", resource="a")
    assert refusal.code == "deadlock"
    assert refusal.facts is not None
    cycle = refusal.facts["cycle"]
    assert {link["resource"] for link in cycle} == {"a", "b"}
    link_keys = {"name", "pid", "session", "strand", "lockspace", "resource", "inside"}
    assert all(set(link) == link_keys for link in cycle)
    other.call("release", resource="b")
    assert client.result(waiting)["grant"]["resource"] == "b"


def test_release_by_token(client: WireClient, other: WireClient) -> None:
    token = client.acquire("a")["fencing_token"]
    assert other.refusal("release", fencing_token=token).code == "denied"
    assert other.refusal("release", fencing_token=token + 9).code == "not_held"
    assert client.call("release", fencing_token=token) is None
    assert client.refusal("release", fencing_token=token).code == "not_held"


def test_restricted_session_releases_nothing_of_others(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    other.call("restrict")
    assert other.refusal("release", fencing_token=token).code == "not_held"


def test_release_of_several_releases_those_that_are_held(client: WireClient) -> None:
    client.call("acquire", resources=["a", "b"])
    refusal = client.refusal("release", resources=["a", "x", "b"])
    assert refusal.code == "not_held"
    assert "'x'" in refusal.sentence
    assert client.call("statistics")["held"] == 0


def test_cancelled_request_is_answered_before_the_cancel(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    cancel = other.send("cancel", request=waiting)
    first, second = other.receive(), other.receive()
    assert first is not None
    assert first[1] == waiting
    assert first[2][1].startswith("cancelled: ")
    assert second == [1, cancel, None, None]


def test_cancel_that_comes_too_late_changes_nothing(client: WireClient) -> None:
    acquired = client.send("acquire", resource="a")
    assert client.call("cancel", request=acquired) is None
    assert client.result(acquired)["grant"]["resource"] == "a"
    assert client.call("query", resource="a")["holder_count"] == 1
    assert client.call("cancel", request=4_000_000_000) is None


def test_cancelled_convert_keeps_the_old_mode(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    waiting = client.send("convert", resource="a", mode="exclusive")
    client.call("cancel", request=waiting)
    assert client.refused(waiting).code == "cancelled"
    modes = [h["mode"] for h in client.call("query", resource="a")["holders"]]
    assert modes == ["shared", "shared"]


@pytest.mark.parametrize(
    "message",
    [
        ["acquire", {"resource": "b"}],
        ["convert", {"resource": "b", "mode": "shared"}],
        ["release", {"resource": "b"}],
        ["register", {"owner": {"name": "x"}}],
        ["cancel", {"request": 77}],
        ["statistics", {}],
    ],
    ids=lambda message: message[0],
)
def test_msgid_of_a_waiting_request_may_not_be_used_again(
    message: list[Any], client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    other.send_message([0, 77, "acquire", [{"resources": ["a"]}]])
    wait_for_waiters(client, "a", 1)
    other.send_message([0, 77, message[0], [message[1]]])
    refusal = other.refused(77)
    assert refusal.code == "invalid"
    assert "msgid" in refusal.sentence
    client.call("release", resource="a")
    assert set(other.result(77)) == {"grants"}


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_waiting_twice_for_one_resource_is_refused_unless_shared(
    mode: str, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    first = other.send("acquire", resource="a", mode=mode)
    second = other.send("acquire", resource="a", mode=mode)
    if mode == "exclusive":
        assert other.refused(second).code == "already_held"
        client.call("release", resource="a")
    else:
        wait_for_waiters(other, "a", 2)
        client.call("release", resource="a")
        other.result(second)
    assert other.result(first)["grant"]["mode"] == mode


# query, check


# Names.


@pytest.mark.parametrize("create", [True, False, None])
def test_direct_lockspace_locks_files_and_makes_none(
    client: WireClient, tmp_path: Path, create: bool | None
) -> None:
    path = tmp_path / "new"
    asked = {"lockspace": "direct", "resource": str(path), "create": create}
    assert client.refusal("acquire", **asked).code == "not_found"
    assert not path.exists()
    path.touch()
    assert client.call("acquire", **asked)["grant"]["resource"] == str(path)


FACTS = {"holders", "waiters", "holder_count", "waiter_count", "waited", "outside"}


@pytest.mark.parametrize("name", ["missing", "link", "pipe", "."])
def test_refusal_that_no_holder_explains_carries_no_facts(
    client: WireClient, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link").symlink_to("pipe")
    os.mkfifo(tmp_path / "pipe")
    client.call("hello", protocol=1, client="test")
    refusal = client.refusal(
        "acquire", lockspace="direct", resource=str(tmp_path / name), timeout=0
    )
    assert refusal.code in ("not_found", "invalid")
    assert not FACTS & set(refusal.facts or {})


# create_lockspace, create_resource, delete_resource


@pytest.mark.parametrize("kind", ["memory", "direct", "directory"])
def test_lockspace_is_created_and_used(
    kind: str, client: WireClient, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "a"
    file.touch()
    where = {"path": str(tmp_path)} if kind == "directory" else {}
    name = f"{kind}-{next(_numbers)}"
    assert client.call("create_lockspace", name=name, kind=kind, **where) is None
    client.acquire(str(file) if kind == "direct" else "a", lockspace=name)
    again = client.refusal("create_lockspace", name=name, kind="memory")
    assert again.code == "exists"


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"name": "a:b", "kind": "memory"}, "colon"),
        ({"name": "a/b", "kind": "memory"}, "slash"),
        ({"name": "..", "kind": "memory"}, "directory"),
        ({"name": "a\n", "kind": "memory"}, "control"),
        ({"name": "x" * 256, "kind": "memory"}, "256 bytes"),
        ({"name": "m", "kind": "memory", "path": "/tmp"}, 'has no "path"'),
        ({"name": "d", "kind": "directory"}, "absolute path"),
        ({"name": "d", "kind": "directory", "path": "relative"}, "absolute path"),
        ({"name": "d", "kind": "directory", "path": "/proc/no"}, "cannot be made"),
        ({"name": "d", "kind": "directory", "path": "/dev/null"}, "not a directory"),
        ({"name": "d", "kind": "directory", "path": "/tmp"}, "others may write"),
        ({"name": "d", "kind": "directory", "path": "/a\0b"}, "NUL"),
        ({"name": "d", "kind": "directory", "path": "/\udcff"}, "not UTF-8"),
    ],
)
def test_lockspace_that_cannot_be_made_is_invalid(
    params: dict[str, Any], why: str, client: WireClient
) -> None:
    before = client.call("list_lockspaces")
    refusal = client.refusal("create_lockspace", **params)
    assert refusal.code == "invalid"
    assert why in refusal.sentence
    assert client.call("list_lockspaces") == before


@pytest.fixture
def place(client: WireClient, tmp_path: Path) -> Path:
    """The directory of a lockspace that has the same name."""
    path = tmp_path / f"locks-{next(_numbers)}"
    path.mkdir(mode=0o755)
    client.call("create_lockspace", name=path.name, kind="directory", path=str(path))
    return path


def test_created_file_stays_until_it_is_deleted(
    client: WireClient, place: Path
) -> None:
    assert client.call("create_resource", lockspace=place.name, resource="a") is None
    again = client.refusal("create_resource", lockspace=place.name, resource="a")
    assert again.code == "exists"
    client.acquire("a", lockspace=place.name, create=False)
    client.call("release", lockspace=place.name, resource="a")
    assert (place / "a").exists()
    assert client.call("delete_resource", lockspace=place.name, resource="a") is None
    assert not (place / "a").exists()
    gone = client.refusal("delete_resource", lockspace=place.name, resource="a")
    assert gone.code == "not_found"


def test_file_that_is_held_or_waited_for_is_in_use(
    client: WireClient, other: WireClient, place: Path
) -> None:
    client.call("hello", protocol=1, client="test")
    client.call("create_resource", lockspace=place.name, resource="a")
    other.acquire("a", lockspace=place.name)
    refusal = client.refusal("delete_resource", lockspace=place.name, resource="a")
    assert refusal.code == "in_use"
    assert refusal.facts is not None
    assert refusal.facts["holder_count"] == 1
    assert (place / "a").exists()


@pytest.mark.parametrize("method", ["create_resource", "delete_resource"])
@pytest.mark.parametrize(
    ("lockspace", "resource"), [("default", "a"), ("direct", "/etc/hosts")]
)
def test_only_a_directory_has_files_to_make(
    method: str, lockspace: str, resource: str, client: WireClient
) -> None:
    refusal = client.refusal(method, lockspace=lockspace, resource=resource)
    assert refusal.code == "invalid"
    assert Path("/etc/hosts").exists()


def test_missing_file_is_not_made_when_that_is_forbidden(
    client: WireClient, place: Path
) -> None:
    refusal = client.refusal(
        "acquire", lockspace=place.name, resource="a", create=False
    )
    assert refusal.code == "not_found"
    assert not (place / "a").exists()


@pytest.mark.parametrize("name", ["a/b", ".", ".."])
@pytest.mark.parametrize("method", ["acquire", "create_resource", "delete_resource"])
def test_name_that_is_no_file_is_invalid_in_a_directory(
    method: str, name: str, client: WireClient, place: Path
) -> None:
    refusal = client.refusal(method, lockspace=place.name, resource=name)
    assert refusal.code == "invalid"


def test_directory_that_vanished_is_unavailable(
    client: WireClient, place: Path
) -> None:
    client.acquire("kept")
    place.rmdir()
    refusal = client.refusal("acquire", lockspace=place.name, resource="a")
    assert refusal.code == "unavailable"
    assert str(place) in refusal.sentence
    made = client.refusal("create_resource", lockspace=place.name, resource="a")
    assert made.code == "unavailable"
    assert client.call("query", resource="kept")["holder_count"] == 1


def test_symbolic_link_in_a_directory_is_not_followed(
    client: WireClient, place: Path
) -> None:
    (place / "a").symlink_to("/etc/hosts")
    assert (
        client.refusal("acquire", lockspace=place.name, resource="a").code == "invalid"
    )


def test_file_locked_from_outside_is_busy_and_says_so(
    client: WireClient, other: WireClient, place: Path
) -> None:
    client.call("hello", protocol=1, client="test")
    other.call("hello", protocol=1, client="test")
    with (place / "a").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1)
        refusal = client.refusal(
            "acquire", lockspace=place.name, resource="a", timeout=0
        )
        waiting = client.send("acquire", lockspace=place.name, resource="a")
        wait_for_waiters(client, "a", 1, lockspace=place.name)
        found = client.call("query", lockspace=place.name, resource="a")
        behind = other.refusal("acquire", lockspace=place.name, resource="a", timeout=0)
    assert refusal.code == "busy"
    assert refusal.facts is not None
    assert refusal.facts["outside"]["pid"] == os.getpid()
    assert refusal.facts["outside"]["mode"] == "exclusive"
    assert found["outside"] == refusal.facts["outside"]
    # Nor is who comes later left in the dark.
    assert behind.facts is not None
    assert behind.facts["outside"] == refusal.facts["outside"]
    assert "outside lockd" in behind.sentence
    assert client.result(waiting)["grant"]["resource"] == "a"
    found = client.call("query", lockspace=place.name, resource="a")
    assert found["outside"] is None


# restrict, break, disconnect


def test_restricted_session_keeps_only_what_harms_nobody(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    assert client.call("restrict") is None
    lost: dict[str, dict[str, Any]] = {
        "register": {"owner": {"name": "x"}},
        "acquire": {"resource": "b"},
        "convert": {"resource": "a", "mode": "shared"},
        "list": {},
        "list_waiters": {},
        "list_sessions": {},
        "list_lockspaces": {},
        "statistics": {},
        "metrics": {},
        "watch": {},
        "restrict": {},
        "break": {"fencing_token": token, "reason": "x"},
        "disconnect": {"session": 1, "reason": "x"},
        "create_lockspace": {"name": "x", "kind": "memory"},
        "create_resource": {"lockspace": "default", "resource": "x"},
        "delete_resource": {"lockspace": "default", "resource": "x"},
    }
    for method, params in lost.items():
        assert client.refusal(method, **params).code == "restricted", method
    client.call("hello", protocol=1, client="test")
    client.call("check", resource="a", fencing_token=token)
    assert client.call("query", resource="a")["holder_count"] == 1
    client.call("cancel", request=1)
    client.call("release", resource="a")
    other.acquire("a", timeout=0)


def test_break_takes_the_lock_away_and_says_why(
    client: WireClient, other: WireClient, connect: Callable[[], WireClient]
) -> None:
    token = client.acquire("a")["fencing_token"]
    waiting = other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    assert connect().call("break", fencing_token=token, reason="it hangs") is None
    assert client.notification("lost") == {
        "lockspace": "default",
        "resource": "a",
        "fencing_token": token,
        "cause": "broken",
        "reason": "it hangs",
    }
    assert other.result(waiting)["grant"]["fencing_token"] > token
    assert client.refusal("release", fencing_token=token).code == "not_held"
    last = client.call("query", resource="a")["last_holder"]
    assert (last["fencing_token"], last["ended"]) == (token, "broken")


def test_break_of_a_token_that_nobody_holds_is_not_found(client: WireClient) -> None:
    refusal = client.refusal("break", fencing_token=5, reason="x")
    assert refusal.code == "not_found"


def test_disconnected_session_sees_the_end_and_its_locks_go_on(
    client: WireClient, other: WireClient
) -> None:
    session = client.call("hello", protocol=1, client="test")["session"]
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    assert other.call("disconnect", session=session, reason="no\nmore") is None
    assert client.receive() is None
    assert other.result(waiting)["grant"]["resource"] == "a"
    assert other.refusal("disconnect", session=session, reason="x").code == "not_found"


def test_session_may_disconnect_itself(client: WireClient) -> None:
    session = client.call("hello", protocol=1, client="test")["session"]
    client.send("disconnect", session=session, reason="enough")
    assert client.rest() == [[1, 2, None, None]]


def test_unknown_method_and_parameter_cost_one_request(client: WireClient) -> None:
    client.acquire("a")
    assert client.refusal("acquirr", resource="a").code == "unknown_method"
    refusal = client.refusal("query", resource="a", colour="red")
    assert refusal.code == "invalid"
    assert "colour" in refusal.sentence
    assert client.call("query", resource="a")["holder_count"] == 1


def test_method_name_in_bytes_is_understood(client: WireClient) -> None:
    client.send_message([0, 1, b"acquire", [{"resource": "a"}]])
    assert client.result(1)["grant"]["resource"] == "a"


def test_notifications_are_ignored(client: WireClient) -> None:
    client.send_message([2, "acquire", [{"resource": "a"}]])
    client.send_message([2, b"nvim_set_client_info", ["x", {}, "remote", {}, {}]])
    assert client.call("query", resource="a")["holder_count"] == 0


def test_each_of_many_pipelined_requests_is_answered_in_order(
    client: WireClient,
) -> None:
    asked = [client.send("query", resource=str(n)) for n in range(500)]
    answers = [client.receive() for _ in asked]
    assert [answer and answer[1] for answer in answers] == asked
    assert [answer and answer[3]["resource"] for answer in answers] == [
        str(n) for n in range(500)
    ]


def test_locks_end_with_the_last_descriptor_of_the_connection(
    client: WireClient, other: WireClient
) -> None:
    copy = client.socket.dup()
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    client.close()
    assert other.call("query", resource="a")["holder_count"] == 1
    copy.close()
    assert other.result(waiting)["grant"]["resource"] == "a"
