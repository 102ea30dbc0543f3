"""Owners that are other processes than the one that asks."""

import os
import subprocess
import threading
from contextlib import ExitStack
from queue import Queue

import pytest

from conftest import StartDaemon
from daemon.conftest import StartChild, register
from support.daemon_process import DaemonProcess
from support.processes import idle
from support.rights import needs_root
from support.wire_client import (
    NOBODY,
    Connect,
    WireClient,
    connected_as_nobody,
    wait_for_sessions,
    wait_for_waiters,
)

Sleeper = subprocess.Popen[bytes]


def test_registered_owner_is_shown_instead_of_the_peer(
    client: WireClient, other: WireClient
) -> None:
    owner = {"name": "vm-1", "uuid": "u-u", "id": 7}
    result = client.call("register", owner=owner)
    assert result == {"owner": owner | {"pid": os.getpid(), "uid": os.getuid()}}
    client.acquire("a")
    (holder,) = other.call("query", resource="a")["holders"]
    assert {key: holder[key] for key in owner} == owner
    assert holder["pid"] == os.getpid()


def test_owner_that_is_the_peer_ends_with_its_session(
    client: WireClient, other: WireClient
) -> None:
    register(client, os.getpid())
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    client.close()
    assert other.result(waiting)["grant"]["resource"] == "a"


def test_sessions_of_one_process_are_independent(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    register(client, os.getpid())
    register(other, os.getpid())
    client.acquire("a")
    other.acquire("b")
    assert other.refusal("release", resource="a").code == "not_held"
    third = connect()
    waiting = third.send("acquire", resource="a")
    client.close()
    third.result(waiting)
    assert third.call("query", resource="b")["holder_count"] == 1


@pytest.mark.parametrize("change", ["registered", "lock", "waiting"])
def test_owner_is_registered_once_and_before_the_first_lock(
    change: str, client: WireClient, other: WireClient, process: Sleeper
) -> None:
    if change == "registered":
        register(client, process.pid)
    elif change == "lock":
        client.acquire("a")
    else:
        other.acquire("a")
        client.send("acquire", resource="a")
        wait_for_waiters(other, "a", 1)
    for pid in (None, process.pid):
        owner = {"name": "again", "pid": pid}
        assert client.refusal("register", owner=owner).code == "invalid"


def test_grants_of_a_process_outlive_their_session_and_end_with_it(
    client: WireClient, other: WireClient, process: Sleeper
) -> None:
    assert register(client, process.pid)["pid"] == process.pid
    token = client.acquire("a")["fencing_token"]
    client.close()
    waiting = other.send("acquire", resource="a")
    wait_for_waiters(other, "a", 1)
    (holder,) = other.call("query", resource="a")["holders"]
    assert (holder["pid"], holder["fencing_token"]) == (process.pid, token)
    process.kill()
    assert other.result(waiting)["grant"]["fencing_token"] > token
    assert other.call("query", resource="a")["last_holder"]["ended"] == "owner_died"


def test_session_that_is_there_hears_that_its_owner_died(
    client: WireClient, other: WireClient, process: Sleeper
) -> None:
    register(client, process.pid)
    token = client.acquire("a")["fencing_token"]
    other.acquire("b")
    waiting = client.send("acquire", resource="b")
    wait_for_waiters(other, "b", 1)
    process.kill()
    assert client.notification("lost") == {
        "lockspace": "default",
        "resource": "a",
        "fencing_token": token,
        "cause": "owner_died",
    }
    assert client.refused(waiting).code == "not_found"
    assert client.refusal("acquire", resource="c").code == "not_found"
    assert client.refusal("convert", resource="a", mode="shared").code == "not_found"
    assert client.call("query", resource="a")["holder_count"] == 0


def test_second_session_of_a_process_may_convert_and_release(
    client: WireClient, other: WireClient, process: Sleeper
) -> None:
    register(client, process.pid)
    client.acquire("a")
    client.close()
    register(other, process.pid)
    assert other.refusal("acquire", resource="a").code == "already_held"
    other.call("convert", resource="a", mode="shared")
    other.call("release", resource="a")
    assert other.call("query", resource="a")["holder_count"] == 0


def test_lock_of_a_process_is_released_from_any_session_of_its_user(
    client: WireClient, other: WireClient, process: Sleeper
) -> None:
    register(client, process.pid)
    token = client.acquire("a")["fencing_token"]
    refused = other.refusal("release", fencing_token=token)
    assert refused.code == "denied"
    assert f"'a' is held exclusively by vm (pid {process.pid}, uid" in refused.sentence
    client.close()
    wait_for_sessions(other, 1)
    assert other.call("release", fencing_token=token) is None
    last = other.call("query", resource="a")["last_holder"]
    assert (last["fencing_token"], last["ended"]) == (token, "released")
    assert other.refusal("release", fencing_token=token).code == "not_held"


@needs_root
def test_lock_of_a_process_is_not_released_by_another_user(
    start_daemon: StartDaemon, process: Sleeper
) -> None:
    daemon = start_daemon()
    with (
        WireClient(daemon.socket) as admin,
        connected_as_nobody(daemon.socket) as stranger,
    ):
        with WireClient(daemon.socket) as helper:
            register(helper, process.pid)
            token = helper.acquire("a")["fencing_token"]
        wait_for_sessions(admin, 2)
        assert stranger.refusal("release", fencing_token=token).code == "not_held"
        with connected_as_nobody(daemon.socket) as helper:
            register(helper, process.pid)
            token = helper.acquire("b")["fencing_token"]
        wait_for_sessions(admin, 2)
        assert admin.refusal("release", fencing_token=token).code == "not_held"
        stranger.call("release", fencing_token=token)


def test_grants_of_a_process_end_with_its_own_registered_session(
    client: WireClient,
    other: WireClient,
    common: DaemonProcess,
    start_child: StartChild,
) -> None:
    child = start_child(
        common,
        "c = connect()\n"
        "c.call('register', owner={'name': 'me', 'pid': os.getpid()})\n"
        "ready(); sys.stdin.readline(); c.close(); sys.stdin.readline()",
    )
    register(client, child.pid)
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    wait_for_waiters(other, "a", 1)
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert other.result(waiting)["grant"]["resource"] == "a"
    assert child.poll() is None
    assert client.notification("lost")["cause"] == "disconnected"


@pytest.mark.parametrize("pid", [2**31 - 1, 0, -1, 2**31])
def test_pid_of_no_process_is_refused(pid: int, client: WireClient) -> None:
    refusal = client.refusal("register", owner={"name": "x", "pid": pid})
    assert refusal.code == ("not_found" if pid == 2**31 - 1 else "invalid")


def test_dead_process_is_not_found_though_nobody_has_reaped_it(
    client: WireClient, process: Sleeper
) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    refusal = client.refusal("register", owner={"name": "x", "pid": process.pid})
    assert refusal.code == "not_found"
    register(client)


def test_thread_is_no_process(client: WireClient) -> None:
    number: Queue[int] = Queue()
    done = threading.Event()

    def live() -> None:
        number.put(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        refusal = client.refusal("register", owner={"name": "x", "pid": number.get()})
    finally:
        done.set()
        thread.join()
    assert refusal.code == "not_found"


@needs_root
def test_process_that_a_stranger_registers_is_an_owner_apart(
    start_daemon: StartDaemon, process: Sleeper
) -> None:
    daemon = start_daemon()
    with ExitStack() as stack:
        enter = stack.enter_context
        stranger, friend = (enter(connected_as_nobody(daemon.socket)) for _ in range(2))
        admin, other = (enter(WireClient(daemon.socket)) for _ in range(2))
        # Whoever comes first gets no hold on those who come later.
        assert register(stranger, process.pid)["uid"] == NOBODY
        assert register(admin, process.pid)["uid"] == os.getuid()
        register(other, process.pid)
        register(friend, process.pid)
        token = admin.acquire("a")["fencing_token"]
        for client in (stranger, friend):
            assert client.refusal("release", resource="a").code == "not_held"
            assert client.refusal("release", fencing_token=token).code == "not_held"
        stranger.acquire("b")
        assert other.refusal("release", resource="b").code == "not_held"
        friend.call("release", resource="b")
        stranger.acquire("c")
        daemon.upgrade()
        friend.call("release", resource="c")
        stranger.acquire("d")
        other.call("release", resource="a")
        process.kill()
        assert stranger.notification("lost")["cause"] == "owner_died"


@needs_root
def test_what_a_stranger_acquires_for_a_process_does_not_count_as_its_users(
    start_daemon: StartDaemon, process: Sleeper
) -> None:
    daemon = start_daemon("[limits]\nlocks_per_user = 2\nrequests_per_user = 2\n")
    with (
        connected_as_nobody(daemon.socket) as stranger,
        WireClient(daemon.socket) as victim,
    ):
        register(stranger, process.pid)
        stranger.call("acquire", resources=["a", "b"])
        assert stranger.refusal("acquire", resource="c").code == "limit"
        victim.call("acquire", resources=["d", "e"])


@needs_root
def test_root_joins_the_owner_that_a_user_registered(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with (
        idle(user=NOBODY) as theirs,
        connected_as_nobody(daemon.socket) as nobody,
        WireClient(daemon.socket) as admin,
    ):
        assert register(nobody, theirs.pid)["uid"] == NOBODY
        nobody.acquire("a")
        register(admin, theirs.pid)
        admin.call("release", resource="a")
