"""The daemon is killed; another one goes on, and nobody has lost anything."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from daemon.stores.kept import is_locked
from daemon.survival.conftest import holders, refuse_convert_of_removed
from support import libvirt_client as lc
from support.libvirt_client import LibvirtClient
from support.nursery import RUN_SOURCE
from support.outside import QEMU_WRITES, Outside
from support.places import TESTS
from support.processes import idle
from support.service_manager import ServiceManager
from support.wire_client import (
    Connect,
    WireClient,
    leave_unread,
    wait_for_sessions,
    wait_for_waiters,
)

# What survives.


def test_locks_queues_and_tokens_survive(
    manager: ServiceManager, client: WireClient, other: WireClient, locks: Path
) -> None:
    first = client.acquire("a")["fencing_token"]
    client.acquire("f", lockspace="files")
    waiting = other.send("acquire", resource="a")
    also = other.send("acquire", resource="f", lockspace="files")
    wait_for_waiters(client, "a", 1)
    for _ in range(3):
        manager.kill()
        assert is_locked(locks / "f")
        manager.start()
        assert is_locked(locks / "f")
    client.call("release", resource="a")
    client.call("release", resource="f", lockspace="files")
    assert other.result(waiting)["grant"]["fencing_token"] > first
    assert other.result(also)["grant"]["resource"] == "f"
    assert is_locked(locks / "f")


def test_slots_survive_a_kill(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    slots = {"mode": "slot", "slots": 3}
    for strand in (1, 2, 3):
        client.acquire("gpu", strand=strand, **slots)
    waiting = other.send("acquire", resource="gpu", **slots)
    wait_for_waiters(client, "gpu", 1)
    tokens = [
        x["fencing_token"] for x in client.call("query", resource="gpu")["holders"]
    ]
    manager.kill_and_start()
    found = client.call("query", resource="gpu")
    assert [x["slot"] for x in found["holders"]] == [0, 1, 2]
    assert (found["slots"], found["waiters"][0]["mode"]) == (3, "slot")
    assert client.refusal("acquire", resource="gpu", mode="slot", slots=4).code == (
        "invalid"
    )
    client.call("release", fencing_token=tokens[1])
    assert other.result(waiting)["grant"]["slot"] == 1


@pytest.mark.parametrize(
    ("held", "wanted"), [("exclusive", "shared"), ("shared", "exclusive")]
)
def test_convert_answers_at_once_though_the_file_was_removed_before_a_kill(
    manager: ServiceManager, connect: Connect, locks: Path, held: str, wanted: str
) -> None:
    refuse_convert_of_removed(connect, locks, manager.kill_and_start, held, wanted)


def test_link_to_a_locked_file_takes_it_from_nobody(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    client.acquire("f", lockspace="files")
    os.link(locks / "f", locks / "also")
    manager.kill_and_start()
    assert holders(client, "f", "files")
    assert is_locked(locks / "f")


def test_what_holders_hear_survives(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    client.call("hello", protocol=1, client="test")
    client.acquire("told", max_hold=0.01, wanted=True)
    assert client.notification("notice")["what"] == "overdue"
    waits = other.send("acquire", resource="told")
    assert client.notification("notice")["what"] == "wanted"
    client.acquire("untold", max_hold=2.0, wanted=True)
    manager.kill_and_start()
    client.notification("resumed")
    other.send("acquire", resource="untold")
    found = [client.notification("notice") for _ in range(2)]
    assert sorted(x["what"] for x in found) == ["overdue", "wanted"]
    assert {x["resource"] for x in found} == {"untold"}
    other.call("cancel", request=waits)
    last = client.notification("notice")
    assert (last["what"], last["resource"]) == ("unwanted", "told")
    client.call("statistics")
    assert not [x for x in client.kept if x[1] == "notice"]


def test_missed_notice_is_told_after_a_kill(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    client.acquire("a", wanted=True)
    asked = leave_unread(client, other)
    other.send("acquire", resource="a")
    other.call("statistics")
    manager.kill_and_start()
    client.result(asked)
    assert client.notification("notice")["what"] == "wanted"


def test_sessions_keep_what_was_agreed(
    manager: ServiceManager, client: WireClient
) -> None:
    hello = client.call("hello", protocol=1, client="test")
    client.call("register", owner={"name": "backup"})
    client.call("watch")
    client.acquire("a")
    client.call("restrict")
    manager.kill_and_start()
    assert client.notification("resumed") == {"epoch": hello["epoch"]}
    assert client.refusal("acquire", resource="b").code == "restricted"
    client.call("release", resource="a")
    assert client.notification("event")["name"] == "backup"


def test_who_did_not_say_hello_is_told_nothing(
    manager: ServiceManager, client: WireClient
) -> None:
    client.acquire("a")
    manager.kill_and_start()
    client.call("release", resource="a")
    assert client.kept == []


def test_request_that_came_while_nobody_was_there_is_answered(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    manager.kill()
    released = client.send("release", resource="a")
    taken = other.send("acquire", resource="a")
    manager.start()
    client.result(released)
    assert other.result(taken)["grant"]["resource"] == "a"


def test_half_a_request_goes_on(manager: ServiceManager, client: WireClient) -> None:
    data = msgpack.packb([0, 77, "acquire", [{"resource": "a" * 200}]])
    client.send_bytes(data[:100])
    client_session = WireClient(manager.socket)
    with client_session as witness:
        # Turns have gone round: what was sent before has been read.
        witness.call("statistics")
        witness.call("statistics")
        manager.kill_and_start()
        client.send_bytes(data[100:])
        assert client.result(77)["grant"]["resource"] == "a" * 200


def test_client_that_left_meanwhile_holds_nothing(
    manager: ServiceManager, client: WireClient, other: WireClient, locks: Path
) -> None:
    client.acquire("a")
    client.acquire("f", lockspace="files")
    waiting = other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    manager.kill()
    client.close()
    manager.start()
    assert other.result(waiting)["grant"]["resource"] == "a"
    wait_for_sessions(other, 1)
    assert not (locks / "f").exists()


def test_client_that_came_meanwhile_is_served(
    manager: ServiceManager, connect: Connect
) -> None:
    manager.kill()
    late = connect()
    asked = late.send("acquire", resource="a")
    manager.start()
    assert late.result(asked)["grant"]["resource"] == "a"


def test_slow_reader_gets_every_answer_once(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    """More answers than a socket takes are on their way through two kills."""
    reason = "x" * 4_000
    other.acquire("a", reason=reason)
    other.call("hello", protocol=1, client="test")
    # What was not answered stays in the socket, which takes some eighty.
    asked = [client.send("query", resource="a") for _ in range(60)]
    manager.kill_and_start()
    other.call("query", resource="a")
    manager.kill_and_start()
    answers = [client.result(msgid)["holders"][0]["reason"] for msgid in asked]
    assert answers == [reason] * 60
    assert client.kept == []


def test_watcher_that_reads_late_gets_every_event_once(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    """Events pile up in pieces, some half sent, before, between and after kills."""
    client.call("watch")
    tokens = []
    for round_ in range(3):
        for batch in range(0, 600, 10):
            names = [f"{round_}-{batch + n}-{'x' * 200}" for n in range(10)]
            grants = other.call("acquire", resources=names)["grants"]
            tokens += [grant["fencing_token"] for grant in grants]
        manager.kill_and_start()
    for token in tokens:
        assert client.notification("event")["fencing_token"] == token
    assert client.call("statistics")["sessions"] == 2
    assert client.kept == []


def test_half_of_a_long_request_goes_on(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    reason = "r" * 4_000
    names = [f"{number}-{'n' * 240}" for number in range(64)]
    wanted = [{"resources": names, "reason": reason}]
    request = msgpack.packb([0, 7, "acquire", wanted])
    for begin in range(0, len(request), 1_500):
        client.send_bytes(request[begin : begin + 1_500])
        # What was sent is read by then, and recorded.
        other.call("statistics")
        if begin in (3_000, 10_500):
            manager.kill_and_start()
    assert len(client.result(7)["grants"]) == 64
    assert client.kept == []


def test_lockspace_that_a_client_made_is_there(
    manager: ServiceManager, client: WireClient, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir(mode=0o755)
    made = {"name": "made", "kind": "directory", "path": str(tmp_path / "made")}
    client.call("create_lockspace", **made)
    client.acquire("f", lockspace="made")
    manager.kill_and_start()
    assert is_locked(tmp_path / "made" / "f")
    client.call("release", resource="f", lockspace="made")
    assert os.listdir(tmp_path / "made") == []


def test_longest_name_survives(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    name = "n" * 255
    client.acquire(name, lockspace="files")
    manager.kill_and_start()
    assert is_locked(locks / name)
    client.call("release", resource=name, lockspace="files")
    assert os.listdir(locks) == []


def test_conversion_goes_on(
    manager: ServiceManager, client: WireClient, other: WireClient, locks: Path
) -> None:
    for reader in (client, other):
        reader.acquire("f", lockspace="files", mode="shared")
    upgrade = client.send("convert", resource="f", lockspace="files", mode="exclusive")
    while not other.call("query", resource="f", lockspace="files")["waiters"]:
        pass
    manager.kill_and_start()
    other.call("release", resource="f", lockspace="files")
    assert client.result(upgrade)["grant"]["mode"] == "exclusive"
    with open(locks / "f", "r+b") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)


def test_timeout_runs_on(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resource="a", timeout=0.3)
    wait_for_waiters(client, "a", 1)
    manager.kill_and_start()
    assert other.refused(waiting).code == "timeout"


# Owners.


def test_process_that_died_meanwhile_owns_nothing(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    with idle() as process:
        client.call("register", owner={"name": "guest", "pid": process.pid})
        client.acquire("a")
        waiting = other.send("acquire", resource="a")
        manager.kill()
    manager.start()
    assert other.result(waiting)["grant"]["resource"] == "a"


@pytest.mark.parametrize("was_noticed", [True, False])
def test_owner_that_is_being_ended_is_dead_before_its_lock_is_given(
    manager: ServiceManager, connect: Connect, was_noticed: bool
) -> None:
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from support.wire_client import WireClient\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "client = WireClient(sys.argv[1]); client.acquire('g', lockspace='killed')\n"
        "print('held', flush=True); input(); client.close()\n"
        "print('closed', flush=True); signal.pause()\n"
    )
    tests = str(TESTS)
    waiter = connect()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(manager.socket), tests],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        waiting = waiter.send("acquire", resource="g", lockspace="killed")
        owner.stdin.write("close\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "closed\n"
        if was_noticed:
            wait_for_sessions(waiter, 1)
        manager.kill_and_start()
        assert waiter.result(waiting)["grant"]["resource"] == "g"
        # Whoever leaves with it is ended: that would be us.
        waiter.call("release", resource="g", lockspace="killed")
        assert owner.wait(timeout=0) == -signal.SIGKILL


def test_guests_of_libvirt_keep_their_disks(
    manager: ServiceManager, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    wanted = lc.resource("", str(disk))
    with (
        idle() as qemu,
        idle() as rival,
        LibvirtClient(manager.virtlockd_socket) as guest,
        LibvirtClient(manager.virtlockd_socket) as other,
    ):
        guest.register(qemu.pid, "web1")
        assert guest.done(lc.ACQUIRE, wanted)
        other.register(rival.pid, "web2")
        call = lc.message(lc.ACQUIRE, wanted, serial=9)
        other.send(call[:30])
        manager.kill_and_start()
        other.send(call[30:])
        answer = other.receive()
        assert answer is not None
        assert answer.error is not None
        assert "web1" in (answer.error.message or "")
        assert guest.done(lc.RELEASE, wanted)
        assert other.done(lc.ACQUIRE, wanted)


def test_holder_of_a_file_that_its_command_has_locked_keeps_it(
    manager: ServiceManager,
    client: WireClient,
    other: WireClient,
    image: Path,
    outside: Outside,
) -> None:
    """The successor looks for locks outside lockd no sooner than for the next one."""
    asked = {"lockspace": "direct", "resource": str(image)}
    token = client.acquire(str(image), lockspace="direct")["fencing_token"]
    outside.qemu(image, QEMU_WRITES)
    waiting = other.send("acquire", **asked)
    wait_for_waiters(client, str(image), 1, lockspace="direct")
    manager.kill_and_start()
    assert client.call("check", **asked, fencing_token=token)["current"]
    client.call("release", **asked)
    while (found := client.call("query", **asked)["outside"]) is None:
        pass
    assert (found["by"], found["mode"]) == ("qemu", "exclusive")
    manager.kill_and_start()
    outside.close(image)
    assert other.result(waiting)["grant"]["resource"] == str(image)


def test_file_that_is_locked_whole_stays_so(
    manager: ServiceManager, client: WireClient, image: Path, outside: Outside
) -> None:
    asked = {"lockspace": "direct", "resource": str(image)}
    token = client.call("acquire", **asked, whole=True)["grant"]["fencing_token"]
    for _ in range(2):
        manager.kill_and_start()
        assert client.call("check", **asked, fencing_token=token)["current"]
        assert not outside.lock(image, "shared", "ofd", 100, 1)
        assert not outside.flock(image, "shared")
    client.call("convert", **asked, mode="shared")
    manager.kill_and_start()
    assert not outside.lock(image, "exclusive", "ofd", 100, 1)
    assert client.refusal("convert", **asked, mode="exclusive").code == "invalid"
    client.call("release", **asked)
    assert outside.lock(image, "exclusive", "ofd", 0, 0)
    assert outside.flock(image)


def test_waiter_gets_its_file_whole_after_a_kill(
    manager: ServiceManager,
    client: WireClient,
    other: WireClient,
    image: Path,
    outside: Outside,
) -> None:
    asked = {"lockspace": "direct", "resource": str(image)}
    client.call("acquire", **asked)
    waiting = other.send("acquire", **asked, whole=True)
    wait_for_waiters(client, str(image), 1, lockspace="direct")
    manager.kill_and_start()
    client.call("release", **asked)
    assert other.result(waiting)["grant"]["resource"] == str(image)
    assert not outside.lock(image, "shared", "ofd", 100, 1)


# The end, and other starts.


def test_restart_loses_nothing(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    client.acquire("f", lockspace="files")
    assert manager.stop() == 0
    assert is_locked(locks / "f")
    manager.start()
    client.call("release", resource="f", lockspace="files")
    assert not (locks / "f").exists()


def test_upgrade_goes_the_same_way(
    manager: ServiceManager, client: WireClient, other: WireClient, locks: Path
) -> None:
    client.call("hello", protocol=1, client="test")
    client.acquire("f", lockspace="files")
    waiting = other.send("acquire", resource="f", lockspace="files")
    for upgrades in range(1, 4):
        manager.upgrade()
        assert is_locked(locks / "f")
        assert client.call("statistics")["upgrades"] == upgrades
    manager.kill_and_start()
    client.call("release", resource="f", lockspace="files")
    assert other.result(waiting)["grant"]["resource"] == "f"
    assert [kind for _, kind, _ in client.kept] == ["resumed"]


def test_upgrade_that_cannot_be_leaves_everything_kept(
    manager: ServiceManager, client: WireClient, other: WireClient, locks: Path
) -> None:
    client.acquire("f", lockspace="files")
    waiting = other.send("acquire", resource="f", lockspace="files")
    wait_for_waiters(client, "f", 1, lockspace="files")
    good = manager.config.read_text()
    manager.config.write_text("colour = 1\n")
    os.kill(manager.pid, signal.SIGUSR1)
    manager.wait_for_log("the new configuration is refused")
    client.acquire("a")
    client.call("release", resource="f", lockspace="files")
    assert other.result(waiting)["grant"]["resource"] == "f"
    manager.config.write_text(good)
    manager.kill_and_start()
    assert holders(client, "a")
    assert holders(client, "f", "files")
    assert is_locked(locks / "f")


def test_bad_configuration_costs_nothing(
    manager: ServiceManager, client: WireClient
) -> None:
    client.acquire("a")
    manager.config.write_text("nonsense")
    manager.kill_and_start()
    assert holders(client, "a")
    manager.wait_for_log("cannot reload the configuration")


def test_start_that_fails_costs_nothing(
    manager: ServiceManager, client: WireClient
) -> None:
    client.acquire("a")
    manager.kill()
    state = manager.directory / "state"
    state.rename(manager.directory / "elsewhere")
    state.touch()
    manager.start(wait=False)
    assert manager.wait() == 75
    state.unlink()
    (manager.directory / "elsewhere").rename(state)
    manager.start()
    assert holders(client, "a")


#: A daemon whose lock table has a defect, which one request brings to light.
DEFECTIVE = (
    RUN_SOURCE
    + """
import runpy, sys
from lockd.engine.lock_engine import LockEngine
handle = LockEngine.handle
def handle_or_break(self, command, *, now):
    if getattr(command, "label", None) == "poison":
        raise AssertionError("planted")
    return handle(self, command, now=now)
LockEngine.handle = handle_or_break
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)


#: A daemon that is killed when it has recorded, and told, that a client is to go.
KILLED_WHEN_IT_CLOSES = (
    RUN_SOURCE
    + """
import os, runpy, signal, sys
from lockd.daemon.server import Server
Server._close_peer = lambda self, peer: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)

LONG = msgpack.packb([0, 1, "query", [{"resource": [b"x" * 16_000] * 7}]])
DEEP: object = []
for _ in range(40):
    DEEP = [DEEP]
NO_MESSAGES = {
    "too long": LONG,
    # More than fits into an array, in the middle of what began well.
    "half of it good": LONG[:40_000] + b"\xdd\xff\xff\xff\xff" * 20_000,
    "not MessagePack": b"\xc1",
    "too deep": msgpack.packb([b"x" * 16_000, b"x" * 16_000, b"x" * 16_000, DEEP]),
}


@pytest.mark.parametrize("what", NO_MESSAGES)
def test_no_start_meets_what_ended_a_conversation(
    manager: ServiceManager, connect: Connect, what: str
) -> None:
    client, liar = connect(), connect()
    client.acquire("a")
    liar.acquire("b")
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", KILLED_WHEN_IT_CLOSES))
    liar.send_bytes(NO_MESSAGES[what])
    assert manager.wait() == -signal.SIGKILL
    manager.start()
    assert holders(client, "a")
    assert not holders(client, "b")
    (complaint,) = liar.rest()
    assert complaint[2][1].startswith("protocol: ")


def test_length_that_is_none_ends_one_conversation_of_libvirt(
    manager: ServiceManager, client: WireClient
) -> None:
    client.acquire("a")
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", KILLED_WHEN_IT_CLOSES))
    with socket.socket(socket.AF_UNIX) as liar:
        liar.settimeout(20)
        liar.connect(str(manager.virtlockd_socket))
        liar.sendall(b"\xff" * 28)
        assert manager.wait() == -signal.SIGKILL
        manager.start()
        assert holders(client, "a")
        assert liar.recv(1) == b""


#: A daemon that finds something in each record of a peer that it did not expect.
TAKES_NO_PEERS = (
    RUN_SOURCE
    + """
import runpy, sys
from lockd.daemon.clients.peer import Peer
def load_state(self, state):
    raise RuntimeError("planted")
Peer.load_state = load_state
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)


def test_record_that_means_nothing_costs_its_session_alone(
    manager: ServiceManager, client: WireClient, connect: Connect
) -> None:
    client.acquire("a")
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", TAKES_NO_PEERS))
    assert client.rest() == []
    assert not holders(connect(), "a")
    manager.wait_for_log("session 1 is ended: planted")
    # Nothing is left of it that the next start would take for damage.
    manager.kill_and_start()
    with WireClient(manager.admin_socket) as admin:
        assert admin.call("statistics")["problems"] == []


def test_request_that_ends_the_daemon_ends_it_once(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", DEFECTIVE))
    other.acquire("b")
    asked = client.send("acquire", resource="c")
    other.send("acquire", resource="d", label="poison")
    assert manager.wait() == 70
    assert manager.log().count("planted") == 1
    # Each next one would meet it again, and nobody would ever be served.
    manager.start(prefix=(sys.executable, "-c", DEFECTIVE))
    assert client.result(asked)["grant"]["resource"] == "c"
    # The first daemon hung up. The second hears of that and of `client` in any order.
    assert other.rest() == []
    assert holders(client, "a")
    while holders(client, "b"):
        pass
    manager.wait_for_log("planted")
    (manager.directory / "log").write_text("")


def count_mappings(pid: int) -> int:
    """Counts what a process has mapped, 0 once it has ended."""
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def test_killed_again_and_again_while_it_starts(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    client.acquire("f", lockspace="files")
    ready = count_mappings(manager.pid)
    manager.kill()
    for number in range(8):
        manager.start(wait=False)
        # A little further each time: a start loads one module after the other.
        while 0 < count_mappings(manager.pid) < ready * number // 8:
            pass
        manager.kill()
        assert is_locked(locks / "f")
    manager.start()
    client.call("release", resource="f", lockspace="files")
