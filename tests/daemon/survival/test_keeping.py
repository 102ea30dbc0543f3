"""What of a daemon is kept, for how long, and without memory."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from daemon.survival.conftest import holders
from support.nursery import RUN_SOURCE
from support.service_manager import ServiceManager
from support.wire_client import (
    Connect,
    WireClient,
    wait_for_sessions,
    wait_for_waiters,
)


def test_statistics_tell_what_would_survive(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    before = client.call("statistics")["kept"]
    other.acquire("a")
    other.acquire("f", lockspace="files")
    now = client.call("statistics")["kept"]
    assert (now["by"], now["locks"], now["connections"]) == ("service manager", 2, 2)
    assert now["in_flight"] == before["in_flight"] + 1
    assert now["bytes"] > before["bytes"]
    manager.kill_and_start()
    after = client.call("statistics")
    assert (after["kept"]["locks"], after["kept"]["connections"]) == (2, 2)
    assert after["pid"] == manager.pid
    assert "nothing is kept" not in manager.log()


#: A daemon that is killed when it has kept a connection, and recorded nothing of it.
KILLED_WHEN_IT_OPENS = (
    RUN_SOURCE
    + """
import os, runpy, signal, sys
from lockd.daemon.server import Server
Server._open = lambda self, *args: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)


def test_connection_of_which_nothing_was_recorded_survives_each_start(
    manager: ServiceManager, connect: Connect
) -> None:
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", KILLED_WHEN_IT_OPENS))
    client = connect()
    asked = client.send("acquire", resource="a")
    assert manager.wait() == -signal.SIGKILL
    for _ in range(3):
        manager.start()
        manager.kill()
    manager.start()
    assert client.result(asked)["grant"]["resource"] == "a"
    for _ in range(2):
        manager.kill_and_start()
        assert holders(client, "a")


#: A daemon that is refused memory while a file is there that its environment names.
SHORT_OF_MEMORY = """
import errno, os, runpy, sys
fallocate = os.posix_fallocate
def refuse_or_allocate(fd, offset, length):
    is_there = offset + length <= os.fstat(fd).st_blocks * 512
    if os.path.exists(os.environ["NO_MEMORY"]) and not is_there:
        raise OSError(int(os.environ["NO_MEMORY_ERRNO"]), "planted")
    fallocate(fd, offset, length)
os.posix_fallocate = refuse_or_allocate
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""


@pytest.fixture(params=[errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def no_memory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A file: while it is there, the daemon gets no memory to record anything in."""
    place = tmp_path / "no-memory"
    monkeypatch.setenv("NO_MEMORY", str(place))
    monkeypatch.setenv("NO_MEMORY_ERRNO", str(request.param))
    return place


def until_refused(client: WireClient) -> list[str]:
    """Takes locks until all are refused; returns those that are held."""
    taken: list[str] = []
    refused = 0
    for number in range(20_000):
        name = f"{number}-{'n' * 200}"
        error, _ = client.answer(client.send("acquire", resource=name, label="l" * 999))
        if error is not None:
            assert error[1].startswith("unavailable: there is no memory to record it")
            # Garbage goes meanwhile, and makes room once more.
            refused += 1
            if refused == 200:
                return taken
            continue
        refused = 0
        taken.append(name)
    raise AssertionError("there is always memory")


def test_without_memory_new_work_is_refused_and_nothing_is_lost(
    manager: ServiceManager, client: WireClient, other: WireClient, no_memory: Path
) -> None:
    prefix = (sys.executable, "-c", SHORT_OF_MEMORY)
    for each in (client, other):
        each.call("statistics")  # who was just accepted would not be kept
    manager.kill()
    manager.start(prefix=prefix)
    other.call("statistics")
    pid = manager.pid
    no_memory.touch()
    taken = until_refused(client)
    assert len(taken) > 50
    # Others are served what takes nothing, and changes go on, however many.
    for _ in range(300):
        assert len(holders(other, taken[-1])) == 1
    assert manager.pid == pid
    # A start finds no more of it, and loses nothing.
    for _ in range(2):
        manager.kill()
        manager.start(prefix=prefix)
        other.call("statistics")
    assert all(holders(other, name) for name in taken)
    for name in taken:
        client.call("release", resource=name)
    assert not holders(other, taken[0])
    no_memory.unlink()
    # The next turn finds that there is some again.
    other.call("statistics")
    for name in taken:
        other.acquire(name, label="l" * 999)


@pytest.mark.parametrize("way", ["release something", "raise the key"])
def test_remedy_for_a_lack_of_memory_works(way: str, tmp_path: Path) -> None:
    """As the page of trouble says it: by the client socket, for want of another."""
    least = "limits.record_bytes = 16777216\n"
    with closing(ServiceManager(tmp_path, least, checks=False)) as manager:
        manager.start()
        with WireClient(manager.socket) as client:
            taken = until_refused(client)
            assert "bytes of records" in lockctl(manager, "status")
            if way == "release something":
                for name in taken[: len(taken) // 2]:
                    client.call("release", resource=name)
            else:
                manager.config.write_text("")
                lockctl(manager, "reload")
            client.acquire("one more", label="l" * 999)


def lockctl(manager: ServiceManager, *words: str) -> str:
    """Runs a command at the client socket; returns what it prints."""
    command = [sys.executable, "-m", "lockd.ctl.main", f"--socket={manager.socket}"]
    ended = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_without_memory_those_who_do_not_read_make_room(
    manager: ServiceManager, connect: Connect, no_memory: Path
) -> None:
    client, other = connect(), connect()
    for each in (client, other):
        each.call("statistics")  # who was just accepted would not be kept
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", SHORT_OF_MEMORY))
    watchers = [connect() for _ in range(3)]
    for watcher in watchers:
        watcher.call("watch")
    client.acquire("kept")
    no_memory.touch()
    name = "x" * 250
    for _ in range(4_000):
        error, _ = other.answer(other.send("acquire", resource=name))
        if error is None:
            other.call("release", resource=name)
        if other.call("statistics")["sessions"] == 2:
            break
    else:
        raise AssertionError("nobody was cut off")
    # They had what there was, and it is there for others again.
    assert holders(other, "kept")
    other.acquire("free")
    while "memory is short, and it left" not in manager.log():
        pass  # a thread writes it
    manager.kill_and_start()
    assert holders(other, "kept")


def test_what_is_not_needed_any_more_goes(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{manager.pid}/fd"))

    client.call("statistics")  # a client that was just accepted would not be kept
    manager.kill_and_start()
    client.call("statistics")
    before = descriptors()
    stored = set(manager.stored)
    for number in range(300):
        client.acquire(f"f{number}", lockspace="files")
    manager.kill_and_start()
    for number in range(300):
        client.call("release", resource=f"f{number}", lockspace="files")
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(WireClient(manager.socket)).call("statistics")
    wait_for_sessions(client, 1)
    manager.kill_and_start()
    client.call("statistics")
    assert descriptors() == before
    assert set(manager.stored) == stored
    assert os.listdir(locks) == []


#: A daemon that is killed when it has taken all over, and has not tidied up.
KILLED_WHEN_IT_WOULD_SERVE = (
    RUN_SOURCE
    + """
import os, runpy, signal, sys
from lockd.daemon.service import Service
async def run(self):
    if {records}:
        self.parts.server.end_turn()
    os.kill(os.getpid(), signal.SIGKILL)
Service.run = run
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)


@pytest.mark.parametrize("records", [True, False])
def test_connection_that_was_kept_twice_is_one_session(
    manager: ServiceManager, connect: Connect, *, records: bool
) -> None:
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", KILLED_WHEN_IT_OPENS))
    client = connect()
    asked = client.send("acquire", resource="a")
    assert manager.wait() == -signal.SIGKILL
    program = KILLED_WHEN_IT_WOULD_SERVE.format(records=records)
    for _ in range(2):
        manager.start(prefix=(sys.executable, "-c", program), wait=False)
        assert manager.wait() == -signal.SIGKILL
    manager.start()
    assert client.result(asked)["grant"]["resource"] == "a"
    assert client.call("statistics")["sessions"] == 1
    manager.kill_and_start()
    assert holders(client, "a")


def test_strands_survive_a_kill_and_an_upgrade(
    manager: ServiceManager, client: WireClient
) -> None:
    token = client.acquire("f", lockspace="files", strand=1)["fencing_token"]
    waits = client.send("acquire", resource="f", lockspace="files", strand=2)
    for begin_anew in (manager.kill_and_start, manager.upgrade):
        begin_anew()
        found = client.call("query", lockspace="files", resource="f")
        assert [x["strand"] for x in found["holders"]] == [1]
        assert [x["strand"] for x in found["waiters"]] == [2]
    client.call("release", fencing_token=token)
    assert client.result(waits)["grant"]["resource"] == "f"
    assert holders(client, "f", lockspace="files")


def test_grants_inside_survive_a_kill_and_an_upgrade(
    manager: ServiceManager, client: WireClient, other: WireClient, connect: Connect
) -> None:
    """A chain of two on a file, a sibling that waits, and a stranger."""
    where = {"resource": "f", "lockspace": "files"}
    instance = client.call("hello", protocol=1, client="parent")["instance"]
    outer = client.call("acquire", **where)["grant"]["fencing_token"]
    within = [f"{instance}:{outer}"]
    stranger, sibling = connect(), connect()
    late = stranger.send("acquire", **where)
    other.call("hello", protocol=1, client="child", within=within)
    inner = other.call("acquire", **where)["grant"]["fencing_token"]
    sibling.call("hello", protocol=1, client="child", within=within)
    waits = sibling.send("acquire", **where)
    wait_for_waiters(client, "f", 2, lockspace="files")
    for begin_anew in (manager.kill_and_start, manager.upgrade):
        begin_anew()
        found = client.call("query", **where)
        assert [x["inside"] for x in found["holders"]] == [[], [outer]]
        assert [x["inside"] for x in found["waiters"]] == [[outer], []]
    client.call("release", fencing_token=outer)
    manager.kill_and_start()
    found = client.call("query", **where)
    assert [x["fencing_token"] for x in found["holders"]] == [inner]
    other.call("release", fencing_token=inner)
    token = sibling.result(waits)["grant"]["fencing_token"]
    assert client.call("query", **where)["waiter_count"] == 1
    sibling.call("release", fencing_token=token)
    assert stranger.result(late)["grant"]["resource"] == "f"
