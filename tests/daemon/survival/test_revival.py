"""The daemon is killed; another one goes on, and nobody has lost anything."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgpack
import pytest

import libvirt_client as lc
from kept import is_locked
from libvirt_client import LibvirtClient
from lockd.daemon.stores.labels import PEER, STATE, key_of
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.ledger_file import Header, read_header
from lockd.daemon.system.fdstore import PREFIX
from service_manager import ServiceManager
from support.places import TESTS
from wire_client import WireClient, wait_for_sessions, wait_for_waiters

Connect = Callable[[], WireClient]


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    directory = tmp_path / "locks"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def manager(tmp_path: Path, locks: Path) -> Iterator[ServiceManager]:
    place = tmp_path / "service"
    place.mkdir()
    manager = ServiceManager(
        place,
        f"""
        kill_grace = 1
        [lockspaces.files]
        kind = "directory"
        path = "{locks}"
        [lockspaces.killed]
        kind = "memory"
        on_disconnect = "kill"
        """,
    )
    manager.start()
    yield manager
    manager.close()


@pytest.fixture
def connect(manager: ServiceManager) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(WireClient(manager.socket))


@pytest.fixture
def client(connect: Connect) -> WireClient:
    return connect()


@pytest.fixture
def other(connect: Connect) -> WireClient:
    return connect()


def holders(client: WireClient, resource: str, lockspace: str = "default") -> list[int]:
    found = client.call("query", resource=resource, lockspace=lockspace)
    return [holder["session"] for holder in found["holders"]]


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


def test_link_to_a_locked_file_takes_it_from_nobody(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    client.acquire("f", lockspace="files")
    os.link(locks / "f", locks / "also")
    manager.kill_and_start()
    assert holders(client, "f", "files")
    assert is_locked(locks / "f")


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
        for number in range(600):
            name = f"{round_}-{number}-{'x' * 200}"
            tokens.append(other.acquire(name)["fencing_token"])
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


def test_what_is_recorded_does_not_grow_with_what_is_unread(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    def written() -> int:
        """Returns how many bytes ten locks had recorded."""
        while True:
            before = ledger_headers(manager)
            for _ in range(10):
                other.acquire("a")
                other.call("release", resource="a")
            after = ledger_headers(manager)
            if [x and x.generation for x in before] == [
                x and x.generation for x in after
            ]:
                return sum(
                    new.end - old.end
                    for old, new in zip(before, after, strict=True)
                    if old and new
                )

    alone = written()
    client.call("watch")
    name = "x" * 250
    for _ in range(15):
        asked = []
        for _ in range(100):
            asked.append(other.send("acquire", resource=name))
            asked.append(other.send("release", resource=name))
        for msgid in asked:
            other.result(msgid)
    assert other.call("statistics")["kept"]["bytes"] > 400_000
    assert written() < alone + 20 * 2_500


def ledger_headers(manager: ServiceManager) -> list[Header | None]:
    return [
        read_header(manager.stored[f"{PREFIX}ledger-{number}"], [])
        for number in range(2)
    ]


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
    with subprocess.Popen(["sleep", "1000"]) as process:
        client.call("register", owner={"name": "guest", "pid": process.pid})
        client.acquire("a")
        waiting = other.send("acquire", resource="a")
        manager.kill()
        process.kill()
    manager.start()
    assert other.result(waiting)["grant"]["resource"] == "a"


@pytest.mark.parametrize("was_noticed", [True, False])
def test_owner_that_is_being_ended_is_dead_before_its_lock_is_given(
    manager: ServiceManager, connect: Connect, was_noticed: bool
) -> None:
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from wire_client import WireClient\n"
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
        subprocess.Popen(["sleep", "1000"]) as qemu,
        subprocess.Popen(["sleep", "1000"]) as rival,
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
        qemu.kill()
        rival.kill()


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


def test_bad_configuration_costs_nothing(
    manager: ServiceManager, client: WireClient
) -> None:
    client.acquire("a")
    manager.config.write_text("nonsense")
    manager.kill_and_start()
    assert holders(client, "a")
    manager.wait_for_log("the configuration stays as it was")


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
DEFECTIVE = """
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


#: A daemon that is killed when it has recorded, and told, that a client is to go.
KILLED_WHEN_IT_CLOSES = """
import os, runpy, signal, sys
from lockd.daemon.server import Server
Server._close_peer = lambda self, peer: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""

LONG = msgpack.packb([0, 1, "query", [{"resource": [b"x" * 16_000] * 7}]])
NO_MESSAGES = {
    "too long": LONG,
    # More than fits into an array, in the middle of what began well.
    "half of it good": LONG[:40_000] + b"\xdd\xff\xff\xff\xff" * 20_000,
    "not MessagePack": b"\xc1",
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


#: A daemon that is killed when it has kept a connection, and recorded nothing of it.
KILLED_WHEN_IT_OPENS = """
import os, runpy, signal, sys
from lockd.daemon.server import Server
Server._open = lambda self, *args: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""


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


#: A daemon that finds something in each record of a peer that it did not expect.
TAKES_NO_PEERS = """
import runpy, sys
from lockd.daemon.clients.peer import Peer
def load_state(self, state):
    raise RuntimeError("planted")
Peer.load_state = load_state
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""


def test_record_that_means_nothing_costs_its_session_alone(
    manager: ServiceManager, client: WireClient, connect: Connect
) -> None:
    client.acquire("a")
    manager.kill()
    manager.start(prefix=(sys.executable, "-c", TAKES_NO_PEERS))
    assert client.rest() == []
    assert not holders(connect(), "a")
    manager.wait_for_log("session 1 is ended: planted")


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
    assert other.rest() == []
    assert holders(client, "a")
    assert not holders(client, "b")
    manager.wait_for_log("planted")
    (manager.directory / "log").write_text("")


#: A daemon that records all anew, as if what it finds had been written by another.
RECORDING_ANEW = """
import runpy, sys
from lockd.daemon.survival.revival import Revived
Revived.is_as_written = False
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""


def recorded(manager: ServiceManager) -> dict[str, bytes]:
    """Returns what is recorded of all but the daemon, which counts its starts."""
    ledger = open_ledger(manager)
    found = {repr(msgpack.unpackb(x)): y for x, y in ledger.records().items()}
    ledger.close()
    return {key: value for key, value in found.items() if "daemon" not in key}


def open_ledger(manager: ServiceManager) -> Ledger:
    fds = [os.dup(manager.stored[f"{PREFIX}ledger-{number}"]) for number in range(2)]
    return Ledger((fds[0], fds[1]))


def test_records_are_those_that_would_be_written_anew(
    manager: ServiceManager, connect: Connect
) -> None:
    """Whoever goes on lets the records count that it finds, and adds what changed."""
    client, other, leaver, witness = (connect() for _ in range(4))
    for name in ("a", "b"):
        client.acquire(name)
        client.acquire(name, lockspace="files")
    leaver.acquire("c")
    waiting = [x.send("acquire", resource="c") for x in (other, client)]
    wait_for_waiters(witness, "c", 2)
    manager.kill()
    leaver.close()
    # The end of a connection was not recorded any more.
    ledger = open_ledger(manager)
    for kind in (PEER, STATE):
        known = next(x for x in ledger.records() if msgpack.unpackb(x)[0] == kind)
        ledger.put(key_of(kind, 999), ledger.records()[known])
    ledger.commit()
    ledger.close()
    manager.start()
    assert other.result(waiting[0])["grant"]["resource"] == "c"
    wait_for_sessions(witness, 3)
    manager.kill()
    found = recorded(manager)
    assert f"['{PEER}', 999]" not in found
    manager.start(prefix=(sys.executable, "-c", RECORDING_ANEW))
    witness.call("statistics")
    manager.kill()
    anew = recorded(manager)
    assert found.keys() == anew.keys()
    # Those who were answered: how far they are was recorded before that.
    differing = {key for key in found if found[key] != anew[key]}
    assert differing == {f"['{STATE}', {session}]" for session in (2, 4)}
    manager.start()


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
    """As operations.md says it: by the client socket, for want of another."""
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
