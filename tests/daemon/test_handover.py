"""Live upgrades: what a client can notice, and what happens when one cannot be."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import StartDaemon
from daemon_process import DaemonProcess
from lockd.daemon import handover
from wire_client import WireClient, wait_for_sessions, wait_for_waiters

CONFIG = """
admin_socket = "{place}/admin.sock"
kill_grace = 0.2
[lockspaces.files]
kind = "directory"
path = "{place}/locks"
[lockspaces.killed]
kind = "memory"
on_disconnect = "kill"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "locks").mkdir(mode=0o755)
    return tmp_path


@pytest.fixture
def daemon(start_daemon: StartDaemon, place: Path) -> DaemonProcess:
    return start_daemon(CONFIG.format(place=place))


@pytest.fixture
def clients(daemon: DaemonProcess) -> Iterator[Any]:
    with ExitStack() as stack:

        def connect() -> WireClient:
            return stack.enter_context(WireClient(daemon.socket))

        yield connect


def descriptors(daemon: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_sessions_locks_and_queues_go_on(daemon: DaemonProcess, clients: Any) -> None:
    holder, *waiters = [clients() for _ in range(4)]
    pid, tokens = daemon.pid, []
    for name in "ab":
        tokens.append(holder.acquire(name, lockspace="files")["fencing_token"])
        tokens.append(holder.acquire(name)["fencing_token"])
    asked = []
    for count, waiter in enumerate(waiters, 1):
        asked.append(waiter.send("acquire", resource="a", reason=f"turn {count}"))
        wait_for_waiters(holder, "a", count)
    for _ in range(3):
        daemon.upgrade()
    assert daemon.pid == pid
    found = holder.call("query", resource="a")
    assert [x["reason"] for x in found["waiters"]] == ["turn 1", "turn 2", "turn 3"]
    for name, token in zip(["a", "a", "b", "b"], tokens, strict=True):
        space = "files" if tokens.index(token) % 2 == 0 else "default"
        check = {"resource": name, "lockspace": space, "fencing_token": token}
        assert holder.call("check", **check)["current"]
    holder.call("release", resource="a")
    for waiter, msgid in zip(waiters, asked, strict=True):
        grant = waiter.result(msgid)["grant"]
        assert grant["fencing_token"] > max(tokens)
        tokens.append(grant["fencing_token"])
        waiter.call("release", resource="a")
    statistics = holder.call("statistics")
    assert (statistics["upgrades"], statistics["epoch"]) == (3, 1)


def test_files_stay_locked_all_the_time(
    daemon: DaemonProcess, clients: Any, place: Path
) -> None:
    client = clients()
    client.acquire("a", lockspace="files")
    client.acquire("b", lockspace="files", mode="shared")
    path = place / "locks" / "a"
    with path.open("r+b") as outside:
        for _ in range(2):
            daemon.upgrade()
            with pytest.raises(BlockingIOError):
                fcntl.lockf(outside, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    refusal = client.refusal("acquire", lockspace="files", resource="a", timeout=0)
    assert refusal.code == "already_held"
    client.call("convert", lockspace="files", resource="b", mode="exclusive")
    for name in "ab":
        client.call("release", lockspace="files", resource=name)
    assert list((place / "locks").iterdir()) == []


def test_nothing_of_a_session_is_forgotten(daemon: DaemonProcess, clients: Any) -> None:
    client, watcher, other = clients(), clients(), clients()
    with WireClient(daemon.directory.parent / "admin.sock") as admin:
        client.call("hello", protocol=1, client="me")
        client.call("register", owner={"name": "vm", "uuid": "u", "id": 7})
        client.acquire("a", mode="shared")
        client.acquire("a", mode="shared")
        watcher.call("watch", lockspace="default")
        other.call("restrict")
        admin.call("statistics")
        daemon.upgrade()
        assert client.refusal("hello", protocol=1, client="me").code == "invalid"
        assert client.refusal("convert", resource="a", mode="exclusive").facts
        (holder,) = client.call("query", resource="a")["holders"]
        shown = [holder[x] for x in ("name", "uuid", "id", "count")]
        assert shown == ["vm", "u", 7, 2]
        client.call("release", resource="a")
        client.call("release", resource="a")
        events = [watcher.notification("event")["event"] for _ in range(2)]
        assert events == ["refused", "released"]
        assert other.refusal("list").code == "restricted"
        sessions = admin.call("list_sessions")["sessions"]
        assert [x["client"] for x in sessions] == ["me", None, None, None]
        assert clients().call("hello", protocol=1, client="x")["session"] == 5


def test_half_a_message_and_many_at_once_are_all_answered(
    daemon: DaemonProcess, clients: Any
) -> None:
    half, many = clients(), clients()
    half.send_bytes(b"\x94\x00\x63\xaastat")
    half_sent = clients()
    half_sent.call("statistics")
    for _ in range(500):
        many.send("statistics")
    os.kill(daemon.pid, signal.SIGUSR1)
    for _ in range(500):
        many.send("statistics")
    daemon.wait_for_line("gives way")
    half.send_bytes(b"istics\x90")
    assert half.result(0x63)["sessions"] == 3
    for msgid in range(1, 1001):
        many.result(msgid)
    many.call("statistics")
    assert many.kept == []


def test_patience_ends_when_it_would_have(daemon: DaemonProcess, clients: Any) -> None:
    holder, waiter, other = clients(), clients(), clients()
    holder.acquire("a")
    msgid = waiter.send("acquire", resource="a", timeout=2)
    several = other.send("acquire", resources=["b", "a"])
    wait_for_waiters(holder, "a", 2)
    daemon.upgrade()
    assert waiter.refused(msgid).code == "timeout"
    holder.call("release", resource="a")
    assert len(other.result(several)["grants"]) == 2


LIVES_ON = """
import signal, sys
sys.path[:0] = [{tests!r}]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from wire_client import WireClient
client = WireClient({socket!r})
client.acquire("a", lockspace="killed")
client.close()
print("gone", flush=True)
signal.pause()
"""


def test_process_that_is_being_ended_is_dead_before_its_lock_is_free(
    daemon: DaemonProcess, clients: Any
) -> None:
    script = LIVES_ON.format(
        tests=str(Path(__file__).parents[1]), socket=str(daemon.socket)
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == "gone\n"
        client = clients()
        msgid = client.send("acquire", resource="a", lockspace="killed")
        daemon.upgrade()
        client.result(msgid)
        assert doomed.poll() is not None or doomed.wait(0) is not None
        assert doomed.returncode == -signal.SIGKILL
        client.call("release", resource="a", lockspace="killed")


def test_death_of_a_registered_process_is_seen_afterwards(
    daemon: DaemonProcess, clients: Any
) -> None:
    client, waiter = clients(), clients()
    with subprocess.Popen(["sleep", "1000"]) as process:
        client.call("register", owner={"name": "vm", "pid": process.pid})
        client.acquire("a")
        msgid = waiter.send("acquire", resource="a")
        wait_for_waiters(client, "a", 1)
        daemon.upgrade()
        process.kill()
    waiter.result(msgid)
    assert client.notification("lost")["cause"] == "owner_died"


def test_no_descriptor_is_left_over(daemon: DaemonProcess, clients: Any) -> None:
    client = clients()
    for index in range(20):
        client.acquire(f"{index}", lockspace="files")
    daemon.upgrade()
    before = descriptors(daemon)
    for _ in range(3):
        daemon.upgrade()
    assert descriptors(daemon) == before
    for index in range(20):
        client.call("release", resource=f"{index}", lockspace="files")
    client.close()
    with WireClient(daemon.socket) as other:
        wait_for_sessions(other, 1)


def test_client_that_is_behind_reads_everything(
    daemon: DaemonProcess, clients: Any
) -> None:
    slow, quick = clients(), clients()
    quick.acquire("a", reason="x" * 4000)
    asked = [slow.send("query", resource="a") for _ in range(80)]
    while (size := quick.call("statistics")) and size["sessions"] != 2:
        pass
    daemon.upgrade()
    for msgid in asked:
        assert slow.result(msgid)["holder_count"] == 1


def test_locks_that_are_taken_from_outside_meanwhile_wait_on(
    daemon: DaemonProcess, clients: Any, place: Path
) -> None:
    client = clients()
    path = place / "locks" / "a"
    path.touch(mode=0o600)
    with path.open("r+b") as outside:
        fcntl.lockf(outside, fcntl.LOCK_EX, 1)
        msgid = client.send("acquire", resource="a", lockspace="files")
        wait_for_waiters(client, "a", 1, lockspace="files")
        daemon.upgrade()
        wait_for_waiters(client, "a", 1, lockspace="files")
        outside.close()
        client.result(msgid)


# What cannot be.


def test_program_that_cannot_go_on_changes_nothing(
    daemon: DaemonProcess, clients: Any
) -> None:
    client = clients()
    client.acquire("a", lockspace="files")
    good = daemon.config.read_text()
    daemon.config.write_text("colour = 1\n")
    os.kill(daemon.pid, signal.SIGUSR1)
    said = daemon.wait_for_line("no upgrade")
    assert 'there is no key "colour"' in said
    client.acquire("b")
    assert client.call("statistics")["upgrades"] == 0
    daemon.config.write_text(good)
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")


def memfd(data: bytes, seals: int = handover._SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def tried(daemon: DaemonProcess, fd: int) -> str:
    """Lets a program try a state; returns why it refused it."""
    with os.fdopen(fd):
        done = subprocess.run(
            daemon.command,
            env=os.environ | {handover.TRIAL: str(fd)},
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    return done.stderr


NEWER = {"version": 99, "readable_from": 99}


def test_lockspace_that_could_not_be_served_again_ends_the_upgrade(
    daemon: DaemonProcess, clients: Any, place: Path
) -> None:
    client = clients()
    client.acquire("a", lockspace="files")
    (place / "locks").chmod(0o777)
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "others may write" in daemon.wait_for_line("no upgrade")
    (place / "locks").chmod(0o755)
    daemon.upgrade()
    client.call("release", lockspace="files", resource="a")


def test_configuration_that_goes_bad_after_the_trial_costs_nothing(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'LOCKD_HANDOVER' in os.environ:\n"
        "    (path,) = [x[9:] for x in sys.orig_argv if x.startswith('--config=')]\n"
        "    with open(path, 'w') as file:\n"
        "        file.write('colour = 1')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = start_daemon("[limits]\nlocks_per_session = 1\n")
    with WireClient(daemon.socket) as client:
        client.acquire("a")
        daemon.upgrade()
        assert 'no key "colour"' in str(daemon.said)
        assert client.refusal("acquire", resource="b").code == "limit"
        client.call("release", resource="a")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"\xc1", "invalid"),
        (msgspec.msgpack.encode(5), "object"),
        (msgspec.msgpack.encode({"version": 1}), "readable_from"),
        (msgspec.msgpack.encode(NEWER), "version 99 cannot be read, only 1 to 1"),
        (msgspec.msgpack.encode({"version": 0, "readable_from": 0}), "version 0"),
        (msgspec.msgpack.encode({"version": 1, "readable_from": 1}), "program"),
    ],
)
def test_state_that_cannot_be_read_is_refused_whole(
    daemon: DaemonProcess, data: bytes, why: str
) -> None:
    assert why in tried(daemon, memfd(data))


def test_state_that_somebody_could_change_is_refused(daemon: DaemonProcess) -> None:
    assert "not sealed" in tried(daemon, memfd(b"", fcntl.F_SEAL_GROW))
