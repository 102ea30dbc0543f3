"""Live upgrades: what a client can notice, and what happens when one cannot be."""

import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent

import msgspec
import pytest

from conftest import StartDaemon
from daemon.survival.conftest import refuse_convert_of_removed
from lockd.daemon.requests.reloads import FOR_HANDOVER, ROOM
from lockd.daemon.survival import handover
from support.daemon_process import DaemonProcess
from support.nursery import RUN_SOURCE
from support.places import TESTS
from support.processes import descriptors, idle
from support.wire_client import (
    Connect,
    WireClient,
    connected_as_nobody,
    wait_for_sessions,
    wait_for_waiters,
)

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
def address(daemon: DaemonProcess) -> Path:
    return daemon.socket


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has new programs run something first: in their trial, or when it counts."""
    directory = tmp_path / "planted"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))

    def plant(variable: str, code: str) -> None:
        code = f"import os\nif {variable!r} in os.environ:\n" + indent(code, "    ")
        (directory / "sitecustomize.py").write_text(code)

    return plant


Plant = Callable[..., None]


def test_sessions_locks_and_queues_go_on(
    daemon: DaemonProcess, connect: Connect
) -> None:
    holder, *waiters = [connect() for _ in range(4)]
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
    daemon: DaemonProcess, connect: Connect, place: Path
) -> None:
    client = connect()
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


@pytest.mark.parametrize(
    ("held", "wanted"), [("exclusive", "shared"), ("shared", "exclusive")]
)
def test_convert_answers_at_once_though_the_file_was_removed_before_an_upgrade(
    daemon: DaemonProcess, connect: Connect, place: Path, held: str, wanted: str
) -> None:
    refuse_convert_of_removed(connect, place / "locks", daemon.upgrade, held, wanted)


def test_nothing_of_a_session_is_forgotten(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client, watcher, other = connect(), connect(), connect()
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
        assert connect().call("hello", protocol=1, client="x")["session"] == 5


def test_half_a_message_and_many_at_once_are_all_answered(
    daemon: DaemonProcess, connect: Connect
) -> None:
    half, many = connect(), connect()
    half.send_bytes(b"\x94\x00\x63\xaastat")
    half_sent = connect()
    half_sent.call("statistics")
    for _ in range(500):
        many.send("check", resource="a", fencing_token=1)
    os.kill(daemon.pid, signal.SIGUSR1)
    for _ in range(500):
        many.send("check", resource="a", fencing_token=1)
    daemon.wait_for_line("hands over")
    half.send_bytes(b"istics\x90")
    assert half.result(0x63)["sessions"] == 3
    for msgid in range(1, 1001):
        many.result(msgid)
    many.call("statistics")
    assert many.kept == []


def test_patience_ends_when_it_would_have(
    daemon: DaemonProcess, connect: Connect
) -> None:
    holder, waiter, other = connect(), connect(), connect()
    holder.acquire("a")
    msgid = waiter.send("acquire", resource="a", timeout=3)
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
from support.wire_client import WireClient
client = WireClient({socket!r})
client.acquire("a", lockspace="killed")
client.close()
print("gone", flush=True)
signal.pause()
"""


def test_process_that_is_being_ended_is_dead_before_its_lock_is_free(
    daemon: DaemonProcess, connect: Connect
) -> None:
    script = LIVES_ON.format(tests=str(TESTS), socket=str(daemon.socket))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == "gone\n"
        client = connect()
        msgid = client.send("acquire", resource="a", lockspace="killed")
        daemon.upgrade()
        client.result(msgid)
        assert doomed.poll() is not None or doomed.wait(0) is not None
        assert doomed.returncode == -signal.SIGKILL
        client.call("release", resource="a", lockspace="killed")


def test_death_of_a_registered_process_is_seen_afterwards(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client, waiter = connect(), connect()
    with idle() as process:
        client.call("register", owner={"name": "vm", "pid": process.pid})
        client.acquire("a")
        msgid = waiter.send("acquire", resource="a")
        wait_for_waiters(client, "a", 1)
        daemon.upgrade()
    waiter.result(msgid)
    assert client.notification("lost")["cause"] == "owner_died"


def test_no_descriptor_is_left_over(daemon: DaemonProcess, connect: Connect) -> None:
    client = connect()
    for index in range(20):
        client.acquire(f"{index}", lockspace="files")
    daemon.upgrade()
    before = descriptors(daemon.pid)
    for _ in range(3):
        daemon.upgrade()
    assert descriptors(daemon.pid) == before
    # What was kept for the upgrade alone is gone, and nothing more is kept.
    fds = [os.readlink(x) for x in Path(f"/proc/{daemon.pid}/fd").iterdir()]
    assert not [x for x in fds if "memfd" in x]
    assert client.call("statistics")["kept"]["by"] is None
    for index in range(20):
        client.call("release", resource=f"{index}", lockspace="files")
    client.close()
    with WireClient(daemon.socket) as other:
        wait_for_sessions(other, 1)


def test_client_that_is_behind_reads_everything(
    daemon: DaemonProcess, connect: Connect
) -> None:
    slow, quick = connect(), connect()
    quick.acquire("a", reason="x" * 4000)
    asked = [slow.send("query", resource="a") for _ in range(80)]
    while (size := quick.call("statistics")) and size["sessions"] != 2:
        pass
    daemon.upgrade()
    for msgid in asked:
        assert slow.result(msgid)["holder_count"] == 1


def test_locks_that_are_taken_from_outside_meanwhile_wait_on(
    daemon: DaemonProcess, connect: Connect, place: Path
) -> None:
    client = connect()
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


def test_signal_that_comes_meanwhile_is_heard(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    client.acquire("a")
    for _ in range(10):
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_line("hands over")
        # Before, during or after the moment at which the program changes.
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_line("reloaded the configuration")
    client.call("release", resource="a")
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.wait_for_line("hands over")
    assert daemon.stop() == 0


def test_program_that_is_put_there_meanwhile_is_tried_too(
    plant: Plant, daemon: DaemonProcess, tmp_path: Path, connect: Connect
) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    plant(handover.TRIAL, f"open({str(told)!r}).read()")
    os.kill(daemon.pid, signal.SIGUSR1)
    with told.open("w"):
        # The first one waits in its trial.
        plant(handover.TRIAL, "os._exit(3)")
        os.kill(daemon.pid, signal.SIGUSR1)
        connect().call("statistics")
    assert "the trial ended with status 3" in daemon.wait_for_line("the upgrade failed")


# What cannot be.


def test_program_that_cannot_go_on_changes_nothing(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    good = daemon.config.read_text()
    daemon.config.write_text("colour = 1\n")
    os.kill(daemon.pid, signal.SIGUSR1)
    said = daemon.wait_for_line("the new configuration is refused")
    assert "the old one stays in effect: " in said
    assert 'there is no key "colour"' in said
    assert "upgrade failed" not in said
    client.acquire("b")
    assert client.call("statistics")["upgrades"] == 0
    daemon.config.write_text(good)
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")


def test_problem_stays_until_an_upgrade_succeeds(
    plant: Plant, daemon: DaemonProcess, tmp_path: Path, connect: Connect
) -> None:
    client = connect()
    said = []
    for status in (3, 3, 4):
        plant(handover.TRIAL, f"os._exit({status})")
        os.kill(daemon.pid, signal.SIGUSR1)
        # Each failure is logged, also one like the last.
        said.append(daemon.wait_for_line("the upgrade failed"))
    (problem,) = client.call("statistics")["problems"]
    assert problem in said[-1]
    told = tmp_path / "told"
    os.mkfifo(told)
    plant(handover.TRIAL, f"open({str(told)!r}).read()")
    os.kill(daemon.pid, signal.SIGUSR1)
    with told.open("w"):
        # The next one is in its trial, and nobody knows how that ends.
        assert client.call("statistics")["problems"] == [problem]
    daemon.wait_for_line("hands over")
    # If the reload comes after that, another trial is made: nobody writes to it.
    plant(handover.TRIAL, "pass")
    assert client.call("reload") is None
    assert client.call("statistics")["problems"] == []


FLOOD = "for _ in range(500): os.write(1, b'x' * 10**6)\nos._exit(7)"


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        ("os._exit(0)", "the trial ended without reading the state"),
        ("os.write(1, b'lockd 99 serves\\n'); os._exit(0)", "without reading"),
        ("raise SystemExit('no such library')", "no such library"),
        ("os.write(2, b'\\xff\\x1b[2J'); os._exit(1)", r"\x1b[2J"),
        ("os.kill(os.getpid(), 9)", "the trial ended with status -9"),
        (FLOOD, "xxx"),
    ],
)
def test_program_that_does_not_read_the_state_gets_nothing(
    plant: Plant, daemon: DaemonProcess, connect: Connect, trial: str, why: str
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    daemon.upgrade()
    before, peak = descriptors(daemon.pid), memory(daemon)
    plant(handover.TRIAL, trial)
    os.kill(daemon.pid, signal.SIGUSR1)
    assert why in daemon.wait_for_line("the upgrade failed")
    assert memory(daemon) - peak < 100 * 1024 * 1024
    plant(handover.TRIAL, "pass")
    daemon.upgrade()
    assert descriptors(daemon.pid) == before
    client.call("release", resource="a", lockspace="files")


def memory(daemon: DaemonProcess) -> int:
    """Returns the most that the daemon ever had, in bytes."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_end_is_not_held_up_by_a_program_that_hangs(
    plant: Plant, daemon: DaemonProcess, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    hang = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    hang += f"open({str(told)!r}, 'w').write(str(os.getpid()))\nsignal.pause()"
    plant(handover.TRIAL, hang)
    os.kill(daemon.pid, signal.SIGUSR1)
    pid = int(told.read_text())
    with WireClient(daemon.socket) as client:
        client.acquire("a")
        pidfd = os.pidfd_open(pid)
        assert daemon.stop() == 0
        assert client.rest() == []
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)


def test_program_that_vanishes_after_its_trial_changes_nothing(
    plant: Plant, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [os.environ["PYTHONPATH"], *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    daemon = DaemonProcess(place, CONFIG.format(place=place))
    interpreter = place / "python"
    interpreter.symlink_to(sys.executable)
    daemon.program[0] = str(interpreter)
    daemon.start()
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as waiter:
        client.acquire("a", lockspace="files")
        msgid = waiter.send("acquire", resource="a", lockspace="files")
        wait_for_waiters(client, "a", 1, lockspace="files")
        before = descriptors(daemon.pid)
        # It is there when it is tried, and not any more when it counts.
        plant(handover.TRIAL, f"os.unlink({daemon.program[0]!r})")
        os.kill(daemon.pid, signal.SIGUSR1)
        assert "cannot be executed" in daemon.wait_for_line("the upgrade failed")
        why = f"{interpreter} cannot be executed"
        assert client.call("statistics")["upgrade"] == {"ready": False, "why": why}
        assert descriptors(daemon.pid) == before
        assert inheritable(daemon) == []
        interpreter.symlink_to(sys.executable)
        plant(handover.TRIAL, "pass")
        daemon.upgrade()
        client.call("release", resource="a", lockspace="files")
        waiter.result(msgid)
    assert daemon.stop() == 0


def inheritable(daemon: DaemonProcess) -> list[str]:
    """Returns what a child of the daemon would get beside the standard streams."""
    place = Path(f"/proc/{daemon.pid}/fdinfo")
    found = {x.name: x.read_text().split("flags:")[1].split() for x in place.iterdir()}
    return [
        fd
        for fd, (flags, *_) in found.items()
        if not int(flags, 8) & os.O_CLOEXEC and int(fd) > 2
    ]


def test_no_descriptor_can_leave_the_daemon_afterwards(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    with idle() as process:
        client.call("list")
        connect().call("register", owner={"name": "vm", "pid": process.pid})
        daemon.upgrade()
        assert inheritable(daemon) == []


READY = {"ready": True, "why": None}


@pytest.mark.parametrize("free", [0, 3, 20, ROOM, ROOM + FOR_HANDOVER - 1])
def test_upgrade_without_room_changes_nothing(
    daemon: DaemonProcess, connect: Connect, free: int
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    used = max(map(int, os.listdir(f"/proc/{daemon.pid}/fd"))) + 1
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + free, limits[1]))
    upgrade = client.call("statistics")["upgrade"]
    why = "fewer than 36 descriptors are free (LimitNOFILE)"
    assert upgrade == {"ready": False, "why": why}
    os.kill(daemon.pid, signal.SIGUSR1)
    said = daemon.wait_for_line("the upgrade failed")
    # The trial needs some, too.
    assert why in said or "Too many open files" in said
    client.acquire("b")
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    assert client.call("statistics")["upgrade"] == READY
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")


SMALL = 1 << 20


def test_upgrade_without_memory_changes_nothing(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    before = descriptors(daemon.pid)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (SMALL, limits[1]))
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "File too large" in daemon.wait_for_line("the upgrade failed")
    assert descriptors(daemon.pid) == before
    client.acquire("b")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")
    client.call("release", resource="b")


def test_memory_that_is_gone_after_the_trial_changes_nothing(
    plant: Plant, daemon: DaemonProcess, connect: Connect
) -> None:
    client, waiter = connect(), connect()
    client.acquire("a", lockspace="files")
    msgid = waiter.send("acquire", resource="a", lockspace="files")
    wait_for_waiters(client, "a", 1, lockspace="files")
    before = descriptors(daemon.pid)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    take = f"resource.prlimit({daemon.pid}, resource.RLIMIT_FSIZE, ({SMALL}, -1))"
    plant(handover.TRIAL, f"import resource\n{take}")
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "File too large" in daemon.wait_for_line("the upgrade failed")
    assert descriptors(daemon.pid) == before
    assert inheritable(daemon) == []
    assert client.call("statistics")["kept"]["by"] is None
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)
    plant(handover.TRIAL, "pass")
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")
    waiter.result(msgid)


def test_daemon_that_is_nearly_full_goes_on(
    daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    for index in range(300):
        client.acquire(f"{index}", lockspace="files")
    # So that what is open would not fit into what the kernel takes in flight.
    used = max(map(int, os.listdir(f"/proc/{daemon.pid}/fd"))) + 1
    most = used + ROOM + 5
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (most, most))
    assert client.call("statistics")["upgrade"] == READY
    daemon.upgrade()
    statistics = client.call("statistics")
    assert (statistics["held"], statistics["upgrades"]) == (300, 1)
    for index in range(300):
        client.call("release", resource=f"{index}", lockspace="files")


# What goes wrong when it is too late.


def test_configuration_that_is_spoilt_meanwhile_costs_nothing(
    plant: Plant, place: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(CONFIG.format(place=place) + ONLY_ADMINS)
    with ExitStack() as stack:
        client = stack.enter_context(WireClient(daemon.socket))
        client.acquire("a", lockspace="hidden")
        spoil = f"open({str(daemon.config)!r}, 'w').write('colour = 1')"
        plant(handover.HANDOVER, spoil)
        daemon.upgrade()
        assert "cannot reload the configuration" in "".join(daemon.said)
        client.call("release", resource="a", lockspace="hidden")
        if os.geteuid() == 0:
            other = stack.enter_context(connected_as_nobody(daemon.socket))
            refusal = other.refusal("acquire", resource="a", lockspace="hidden")
            assert refusal.code == "not_found"


ONLY_ADMINS = """
[lockspaces.hidden]
kind = "memory"
allow_users = {acquire = [], share = [], list = []}
"""


@pytest.mark.parametrize(
    "spoil", ["os.rename({0!r}, {0!r} + 'x')", "os.chmod({0!r}, 0o777)"]
)
def test_directory_that_is_spoilt_after_the_trial_costs_nothing(
    plant: Plant, daemon: DaemonProcess, connect: Connect, place: Path, spoil: str
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    client.acquire("b")
    plant(handover.HANDOVER, spoil.format(str(place / "locks")))
    daemon.upgrade()
    client.call("release", resource="a", lockspace="files")
    client.call("release", resource="b")


def test_lock_that_is_not_there_any_more_costs_only_its_holder(
    plant: Plant, daemon: DaemonProcess, connect: Connect, place: Path
) -> None:
    client, waiter = connect(), connect()
    for name in "ab":
        client.acquire(name, lockspace="files")
    msgid = waiter.send("acquire", resource="a", lockspace="files")
    wait_for_waiters(client, "a", 1, lockspace="files")
    path = str(place / "locks" / "a")
    close = f"""
for fd in range(3, 100):
    try:
        found = os.readlink(f"/proc/self/fd/{{fd}}")
    except OSError:
        continue
    if found == {path!r}:
        os.close(fd)
"""
    plant(handover.HANDOVER, close)
    daemon.upgrade()
    lost = client.notification("lost")
    assert (lost["resource"], lost["cause"]) == ("a", "broken")
    assert waiter.result(msgid)["grant"]["resource"] == "a"
    client.call("release", resource="b", lockspace="files")
    assert "not taken over" in "".join(daemon.said)


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
OLDER = {"version": 2, "readable_from": 2, "program": "0.1.0", "engine": {}}


def test_lockspace_that_could_not_be_served_again_ends_the_upgrade(
    daemon: DaemonProcess, connect: Connect, place: Path
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    (place / "locks").chmod(0o777)
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "others may write" in daemon.wait_for_line("the upgrade failed")
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
        (msgspec.msgpack.encode(NEWER), "version 99 cannot be read, only 3 to 3"),
        (msgspec.msgpack.encode(OLDER), "version 2 cannot be read, only 3 to 3"),
        (msgspec.msgpack.encode({"version": 0, "readable_from": 0}), "version 0"),
        (msgspec.msgpack.encode({"version": 3, "readable_from": 3}), "epoch"),
    ],
)
def test_state_that_cannot_be_read_is_refused_whole(
    daemon: DaemonProcess, data: bytes, why: str
) -> None:
    assert why in tried(daemon, memfd(data))


def test_state_of_a_newer_program_is_read_if_that_says_so(
    plant: Plant, daemon: DaemonProcess, connect: Connect
) -> None:
    client = connect()
    client.acquire("a", lockspace="files")
    # As a program would leave it that knows more than we do.
    add = """
import fcntl, msgpack
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.stores import ledger_of, names_of
name = "LOCKD_HANDOVER"
with open(int(os.environ[name]), "rb") as file:
    file.seek(0)
    state = msgpack.unpackb(file.read(), strict_map_key=False)
newer = Ledger()
for key, value in ledger_of(state["stores"]).records().items():
    kind, found = msgpack.unpackb(key)[0], msgpack.unpackb(value)
    if kind == "counts":
        found[0] += 1
    elif isinstance(found, dict):
        found["colour"] = "red"
    newer.put(key, msgpack.packb(found))
newer.commit()
state |= {"version": state["version"] + 1, "colours": ["red"]}
state["stores"] = names_of(newer)
fd = os.memfd_create("newer", os.MFD_ALLOW_SEALING)
os.write(fd, msgpack.packb(state))
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 15)
os.environ[name] = str(fd)
"""
    plant(handover.HANDOVER, add)
    daemon.upgrade()
    assert not [x for x in daemon.said if "not taken over" in x or "Error in" in x]
    client.call("release", resource="a", lockspace="files")


def test_program_that_knows_no_slots_takes_none_over(
    plant: Plant, daemon: DaemonProcess, connect: Connect
) -> None:
    client, other = connect(), connect()
    client.acquire("gpu", mode="slot", slots=2)
    # As in the version before slots.
    plant(
        handover.TRIAL,
        f"{RUN_SOURCE}from lockd.engine.recovery import snapshot\n"
        "snapshot.VERSION = 4\n",
    )
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "a snapshot of version 5 cannot be read" in daemon.wait_for_line("failed")
    assert other.acquire("gpu", mode="slot")["slot"] == 1
    assert len(other.call("query", resource="gpu")["holders"]) == 2


def test_state_that_somebody_could_change_is_refused(daemon: DaemonProcess) -> None:
    assert "not sealed" in tried(daemon, memfd(b"", fcntl.F_SEAL_GROW))
