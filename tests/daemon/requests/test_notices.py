"""What a holder hears of its locks, as the wire sees it (protocol 7.14)."""

import math
import signal
from typing import Any

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.processes import idle
from support.wire_client import (
    WireClient,
    connected_as_nobody,
    leave_unread,
    wait_for_sessions,
    wait_for_waiters,
)

HELD = {"lockspace": "default", "resource": "a"}


def said(client: WireClient) -> dict[str, Any]:
    """Waits for a notice; returns it without the time."""
    notice = client.notification("notice")
    assert notice.pop("held_for") >= 0
    return notice


def notice(what: str, token: int, waiters: int | None = 0) -> dict[str, Any]:
    return HELD | {"what": what, "fencing_token": token, "waiter_count": waiters}


def heard_nothing(client: WireClient) -> None:
    """Checks that no notice came before the answer to this question."""
    client.call("statistics")
    assert not [x for x in client.kept if x[1] == "notice"]


def test_holder_hears_that_it_is_overdue_and_others_see_it(
    client: WireClient, other: WireClient
) -> None:
    other.call("watch")
    token = client.acquire("a", max_hold=0.2)["fencing_token"]
    told = client.notification("notice")
    assert 0.2 <= told.pop("held_for") < 50
    assert told == notice("overdue", token)
    events = [other.notification("event") for _ in range(2)]
    assert [x["event"] for x in events] == ["granted", "overdue"]
    assert (events[1]["resource"], events[1]["fencing_token"]) == ("a", token)
    (holder,) = other.call("query", resource="a")["holders"]
    assert holder["overdue"] is True
    (listed,) = other.call("list")["resources"]
    assert [x["overdue"] for x in listed["holders"]] == [True]
    client.call("release", resource="a")


def test_holder_hears_of_the_first_waiter_and_of_the_end_of_the_last(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a", wanted=True)["fencing_token"]
    first = other.send("acquire", resource="a")
    assert said(client) == notice("wanted", token, 1)
    second = other.send("acquire", resource="a", strand=1)
    wait_for_waiters(client, "a", 2)
    other.call("cancel", request=first)
    heard_nothing(client)
    other.call("cancel", request=second)
    assert said(client) == notice("unwanted", token)
    client.call("release", resource="a")


def test_grant_comes_before_its_notice(client: WireClient, other: WireClient) -> None:
    client.acquire("a")
    asked = other.send("acquire", resource="a", wanted=True)
    wait_for_waiters(client, "a", 1)
    third = client.send("acquire", resource="a", strand=1)
    wait_for_waiters(client, "a", 2)
    client.call("release", resource="a")
    kinds = [(x[0], x[1]) for x in (other.receive(), other.receive()) if x]
    assert kinds == [(1, asked), (2, "notice")]
    other.call("release", resource="a")
    token = client.result(third)["grant"]["fencing_token"]
    client.call("release", fencing_token=token)


def test_who_asks_for_neither_hears_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[lockspaces.default]\nmax_hold = 0.1\n")
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        other.call("watch")
        client.acquire("a", max_hold=None, wanted=False)
        other.send("acquire", resource="a")
        while other.notification("event")["event"] != "overdue":
            pass
        heard_nothing(client)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e9 + 1, True, "2"])
def test_time_to_hold_is_a_number(value: object, client: WireClient) -> None:
    refused = client.refusal("acquire", resource="a", max_hold=value)
    assert refused.code == "invalid"
    assert refused.sentence == (
        "acquire: `max_hold` must be a number above 0, at most 1e9 (seconds) or nil"
    )


def test_wanted_is_true_or_false(client: WireClient) -> None:
    refused = client.refusal("acquire", resource="a", wanted=1)
    assert refused.code == "invalid"
    assert refused.sentence == "acquire: `wanted` must be true or false or nil"


def test_number_of_waiters_is_hidden_where_it_may_not_be_listed(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon('[lockspaces.default.allow_users]\nlist = ["root"]\n')
    with (
        WireClient(daemon.socket) as other,
        connected_as_nobody(daemon.socket) as client,
    ):
        token = client.acquire("a", wanted=True)["fencing_token"]
        other.send("acquire", resource="a")
        assert said(client) == notice("wanted", token, None)


# What the lockspace says.


@pytest.fixture
def strict(start_daemon: StartDaemon) -> DaemonProcess:
    limit = 'max_hold = 0.2\non_overdue = "break"\n'
    return start_daemon(
        "kill_grace = 0.1\n"
        f'[lockspaces.strict]\nkind = "memory"\n{limit}'
        f'[lockspaces.killed]\nkind = "memory"\non_disconnect = "kill"\n{limit}'
    )


def test_overdue_lock_is_broken_where_the_lockspace_says_so(
    strict: DaemonProcess,
) -> None:
    with WireClient(strict.socket) as client, WireClient(strict.socket) as other:
        token = client.acquire("a", lockspace="strict")["fencing_token"]
        other.acquire("a", lockspace="strict", timeout=30)
        lost = client.notification("lost")
        assert lost == {
            "lockspace": "strict",
            "resource": "a",
            "fencing_token": token,
            "cause": "broken",
            "reason": "held for longer than the max_hold (0.2 s) of lockspace strict",
        }
    assert "lockd breaks the lock" in strict.wait_for_line("is overdue")


def test_process_is_dead_before_its_overdue_lock_moves_on(
    strict: DaemonProcess,
) -> None:
    with WireClient(strict.socket) as client, idle() as process:
        client.call("watch")
        client.call("register", owner={"name": "guest", "pid": process.pid})
        token = client.acquire("a", lockspace="killed", max_hold=100)["fencing_token"]
        found = [client.receive() for _ in range(4)]
        told = [x[2][0].get("event", x[1]) for x in found if x is not None]
        assert told == ["granted", "notice", "lost", "overdue"]
        assert client.notification("event")["cause"] == "broken"
        assert process.wait() == -signal.SIGTERM
        last = client.call("query", resource="a", lockspace="killed")["last_holder"]
        assert (last["ended"], last["fencing_token"]) == ("broken", token)


def test_limit_of_a_lockspace_is_reloaded(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with WireClient(daemon.socket) as client:
        (default, _) = client.call("list_lockspaces")["lockspaces"]
        assert (default["max_hold"], default["on_overdue"]) == (None, "notice")
        client.acquire("a", max_hold=1e9)
        daemon.config.write_text(
            '[lockspaces.default]\nmax_hold = 0.1\non_overdue = "break"\n'
        )
        daemon.reload()
        (default, _) = client.call("list_lockspaces")["lockspaces"]
        assert (default["max_hold"], default["on_overdue"]) == (0.1, "break")
        # It counts for the locks that are acquired from now on.
        client.acquire("b", max_hold=1e9)
        assert client.notification("lost")["resource"] == "b"
        assert client.call("query", resource="a")["holder_count"] == 1
        daemon.config.write_text("")
        daemon.reload()
        client.acquire("c", max_hold=0.1)
        assert [said(client)["resource"] for _ in "bc"] == ["b", "c"]


def test_overdue_is_logged_and_counted_once(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        client.call("register", owner={"name": "backup"})
        client.acquire("a", max_hold=0.2)
        other.send("acquire", resource="a")
        client.notification("notice")
        line = daemon.wait_for_line("is overdue")
        assert "backup (pid" in line
        assert "it has held 'a' exclusively for" in line
        assert line.endswith("1 waits for it")
        text = client.call("metrics")["text"]
        assert 'lockd_overdue_total{lockspace="default"} 1' in text
        assert 'lockd_overdue_total{lockspace="direct"} 0' in text


def test_holder_that_is_gone_is_overdue_for_others(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with WireClient(daemon.socket) as other, idle() as process:
        other.call("watch")
        with WireClient(daemon.socket) as client:
            client.call("register", owner={"name": "vm", "pid": process.pid})
            client.acquire("a", max_hold=0.2, wanted=True)
        wait_for_sessions(other, 1)
        other.send("acquire", resource="a")
        while other.notification("event")["event"] != "overdue":
            pass


# A holder that reads nothing.


def test_notices_do_not_pile_up_for_who_reads_nothing(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[limits]\nunread_bytes = 4096\n")
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        token = client.acquire("a", wanted=True)["fencing_token"]
        asked = leave_unread(client, other)
        for _ in range(100):
            waits = other.send("acquire", resource="a")
            other.call("cancel", request=waits)
        other.send("acquire", resource="a")
        other.call("statistics")
        client.result(asked)
        # 201 times it changed, in 40 times the bytes that it may leave unread. It
        # hears how it is, after all that it had asked for.
        assert said(client) == notice("wanted", token, 1)
        heard_nothing(client)
        client.call("release", resource="a")


def test_missed_notice_is_told_by_the_next_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        token = client.acquire("a", wanted=True)["fencing_token"]
        asked = leave_unread(client, other)
        other.send("acquire", resource="a")
        other.call("statistics")
        daemon.upgrade()
        client.result(asked)
        assert said(client) == notice("wanted", token, 1)


def test_notices_go_on_over_an_upgrade(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        told = client.acquire("a", max_hold=0.01, wanted=True)["fencing_token"]
        assert said(client) == notice("overdue", told)
        waits = other.send("acquire", resource="a")
        assert said(client) == notice("wanted", told, 1)
        client.acquire("b", max_hold=3.0)
        daemon.upgrade()
        assert said(client)["resource"] == "b"
        other.call("cancel", request=waits)
        assert said(client) == notice("unwanted", told)
        heard_nothing(client)
