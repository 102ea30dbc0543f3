"""The daemon in virtlockd's place: what libvirt asks for, and what others see of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest

from daemon.conftest import StartChild
from support import libvirt_client as lc
from support.daemon_process import DaemonProcess
from support.libvirt_client import LibvirtClient
from support.outside import QEMU_WRITES, Outside
from support.processes import idle
from support.rights import needs_root
from support.wire_client import Connect, WireClient, wait_for_sessions

pytestmark = needs_root

HYPERVISOR = shutil.which("qemu-system-x86_64")

Guest = Callable[..., LibvirtClient]


@pytest.fixture
def libvirt(common: DaemonProcess, connect: Connect) -> Iterator[Guest]:
    """Connects as libvirt does; with a pid, registered for that process."""
    with ExitStack() as stack:

        def start(pid: int | None = None, name: str = "web1") -> LibvirtClient:
            client = stack.enter_context(LibvirtClient(common.virtlockd_socket))
            if pid is not None:
                client.register(pid, name)
            return client

        yield start


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """The pids of two processes that may own locks, and are ended."""
    with idle() as one, idle() as other:
        yield [one.pid, other.pid]


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.touch()
    return str(path)


@pytest.fixture
def directory(tmp_path: Path, libvirt: Guest) -> str:
    """A lockspace as libvirtd makes it: without saying for whom."""
    path = str(tmp_path / "made" / "files")
    assert libvirt().done(lc.CREATE_LOCKSPACE, lc.text(path) + lc.flags())
    return path


def refusal(
    client: LibvirtClient, procedure: int, payload: bytes
) -> tuple[int, int, str]:
    reply = client.call(procedure, payload)
    assert reply is not None
    assert reply.error is not None, "it was not refused"
    return reply.error.code, reply.error.domain, reply.error.message or ""


def gone(client: WireClient, resource: str, lockspace: str) -> None:
    """Waits until nobody holds a resource any more."""
    params = {"lockspace": lockspace, "resource": resource}
    while client.call("query", **params)["holders"]:
        pass


# Locks.


def test_guest_holds_its_disk_for_all_to_see(
    libvirt: Guest, client: WireClient, processes: list[int], disk: str
) -> None:
    pid, other_pid = processes
    assert libvirt(pid).done(lc.ACQUIRE, lc.resource("", disk))
    (held,) = client.call("list", lockspace="direct")["resources"]
    holder = held["holders"][0]
    assert held["resource"] == disk
    assert (holder["name"], holder["pid"], holder["id"]) == ("web1", pid, 1)
    assert holder["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    code, domain, message = refusal(
        libvirt(other_pid, "web2"), lc.ACQUIRE, lc.resource("", disk)
    )
    assert (code, domain) == (87, 51)
    assert f"'{disk}' is held exclusively by web1 (pid {pid}, uid 0)" in message


def test_native_client_and_guest_exclude_each_other(
    libvirt: Guest, client: WireClient, processes: list[int], disk: str
) -> None:
    params = {"lockspace": "direct", "resource": disk}
    client.call("acquire", **params, reason="a backup")
    guest = libvirt(processes[0])
    assert "a backup" in refusal(guest, lc.ACQUIRE, lc.resource("", disk))[2]
    client.call("release", **params)
    assert guest.done(lc.ACQUIRE, lc.resource("", disk))
    error = client.refusal("acquire", **params, timeout=0)
    assert error.code == "busy"
    assert "web1" in str(error)


def test_guest_gets_a_disk_that_its_qemu_has_locked(
    libvirt: Guest,
    client: WireClient,
    processes: list[int],
    disk: str,
    outside: Outside,
) -> None:
    """After a pause, and at the end of a migration."""
    outside.qemu(disk, QEMU_WRITES)
    params = {"lockspace": "direct", "resource": disk}
    assert client.refusal("acquire", **params, timeout=0).code == "busy"
    assert libvirt(processes[0]).done(lc.ACQUIRE, lc.resource("", disk))


@pytest.mark.slow
@pytest.mark.skipif(HYPERVISOR is None, reason="qemu-system is not installed")
def test_running_guest_gets_its_disk(
    libvirt: Guest, client: WireClient, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    command = [
        *(str(HYPERVISOR), "-S", "-nodefaults", "-display", "none", "-qmp", "stdio"),
        *("-drive", f"file={disk},format=raw,if=virtio"),
    ]
    with ExitStack() as stack:
        guest = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(guest.kill)
        assert guest.stdin is not None
        assert guest.stdout is not None
        # It locks what a guest writes to when the guest begins to run.
        guest.stdin.write(b'{"execute": "qmp_capabilities"} {"execute": "cont"}')
        guest.stdin.flush()
        while b"RESUME" not in guest.stdout.readline():
            pass
        params = {"lockspace": "direct", "resource": str(disk)}
        refused = client.refusal("acquire", **params, timeout=0)
        assert "in use by QEMU (it writes), outside lockd" in str(refused)
        assert libvirt(guest.pid).done(lc.ACQUIRE, lc.resource("", str(disk)))


def test_path_through_a_link_is_the_same_disk(
    libvirt: Guest, processes: list[int], disk: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(disk)
    pid, other_pid = processes
    assert libvirt(pid).done(lc.ACQUIRE, lc.resource("", str(tmp_path / "link")))
    assert not libvirt(other_pid).done(lc.ACQUIRE, lc.resource("", disk))


def test_disk_is_neither_made_nor_removed(
    libvirt: Guest, processes: list[int], disk: str
) -> None:
    guest = libvirt(processes[0])
    wanted = lc.resource("", disk, lc.AUTOCREATE)
    assert guest.done(lc.ACQUIRE, wanted)
    assert guest.done(lc.RELEASE, lc.resource("", disk))
    assert os.path.exists(disk)
    missing = lc.resource("", disk + "2", lc.AUTOCREATE)
    assert refusal(guest, lc.ACQUIRE, missing)[:2] == (38, 51)
    assert refusal(guest, lc.DELETE_RESOURCE, lc.resource("", disk))[:2] == (38, 51)
    assert os.path.exists(disk)


@pytest.mark.parametrize("was_there", [False, True])
def test_autocreated_file_goes_with_its_last_holder(
    libvirt: Guest, processes: list[int], directory: str, was_there: bool
) -> None:
    file = Path(directory) / "web1"
    if was_there:
        file.touch(mode=0o600)
    wanted = lc.resource(directory, "web1", lc.AUTOCREATE | lc.SHARED)
    first, second = map(libvirt, processes)
    assert first.done(lc.ACQUIRE, wanted)
    assert second.done(lc.ACQUIRE, wanted)
    assert first.done(lc.RELEASE, lc.resource(directory, "web1"))
    assert file.exists()
    assert second.done(lc.RELEASE, lc.resource(directory, "web1"))
    assert not file.exists()


@pytest.mark.parametrize("flags", [lc.AUTOCREATE, lc.AUTOCREATE | lc.SHARED])
def test_autocreated_file_goes_at_once_although_another_client_had_it_before(
    libvirt: Guest, processes: list[int], directory: str, client: WireClient, flags: int
) -> None:
    (space,) = [
        x["name"]
        for x in client.call("list_lockspaces")["lockspaces"]
        if x["path"] == directory
    ]
    client.acquire("web1", lockspace=space)
    client.call("release", lockspace=space, resource="web1")
    assert os.listdir(directory) == ["web1"]
    guest = libvirt(processes[0])
    assert guest.done(lc.ACQUIRE, lc.resource(directory, "web1", flags))
    assert guest.done(lc.RELEASE, lc.resource(directory, "web1"))
    assert os.listdir(directory) == []


def test_lease_must_be_there_and_stays(
    libvirt: Guest, processes: list[int], directory: str
) -> None:
    lease, guest = lc.resource(directory, "lease"), libvirt(processes[0])
    assert refusal(guest, lc.ACQUIRE, lease)[:2] == (38, 51)
    assert guest.done(lc.CREATE_RESOURCE, lease)
    assert guest.done(lc.ACQUIRE, lease)
    assert refusal(guest, lc.CREATE_RESOURCE, lease)[:2] == (87, 51)
    assert refusal(guest, lc.DELETE_RESOURCE, lease)[:2] == (87, 51)
    assert guest.done(lc.RELEASE, lease)
    assert (Path(directory) / "lease").exists()
    assert guest.done(lc.DELETE_RESOURCE, lease)
    assert not (Path(directory) / "lease").exists()


def test_hashed_name_shows_the_path_of_the_guests_command_line(
    libvirt: Guest,
    client: WireClient,
    processes: list[int],
    directory: str,
    disk: str,
) -> None:
    name = sha256(disk.encode()).hexdigest()
    script = "print(input(), flush=True); input()"
    blockdev = f'{{"driver":"file","filename":"{disk}"}}'
    command = [sys.executable, "-c", script, "-blockdev", blockdev]
    with idle(*command) as qemu:
        guest = libvirt(qemu.pid)
        assert guest.done(lc.ACQUIRE, lc.resource(directory, name, lc.AUTOCREATE))
        params = {"lockspace": _lockspace(client, directory), "resource": name}
        (holder,) = client.call("query", **params)["holders"]
        assert holder["label"] == disk
        other = libvirt(processes[0], "web2")
        wanted = lc.resource(directory, name, lc.AUTOCREATE)
        assert disk in refusal(other, lc.ACQUIRE, wanted)[2]
    gone(client, name, params["lockspace"])


def test_each_session_reads_the_command_line_that_its_guest_has_then(
    libvirt: Guest, client: WireClient, directory: str, disk: str
) -> None:
    # As libvirt starts a guest: its process has locks before it becomes QEMU.
    name, early = (sha256(x.encode()).hexdigest() for x in (disk, "/elsewhere"))
    becomes = 'exec sh -c "echo; read x; true" "$DISK"'
    script = f"read x; echo; read x; {becomes}"
    environment = os.environ | {"DISK": disk}
    with idle("sh", "-c", script, env=environment) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        first = libvirt(qemu.pid)
        wanted = lc.resource(directory, early, lc.AUTOCREATE)
        assert first.done(lc.ACQUIRE, wanted)
        qemu.stdin.write(b"\n")
        qemu.stdin.flush()
        assert qemu.stdout.readline() == b"\n"
        later = libvirt(qemu.pid)
        assert later.done(lc.ACQUIRE, lc.resource(directory, name, lc.AUTOCREATE))
        params = {"lockspace": _lockspace(client, directory), "resource": name}
        (holder,) = client.call("query", **params)["holders"]
        assert holder["label"] == disk
    gone(client, name, params["lockspace"])


def _lockspace(client: WireClient, path: str) -> str:
    """Finds the native lockspace that is a directory."""
    found: list[str] = []
    after = None
    while True:
        page = client.call("list_lockspaces", after=after)
        found += [x["name"] for x in page["lockspaces"] if x["path"] == path]
        if (after := page["next"]) is None:
            break
    (name,) = found
    return name


# The order of calls.


def test_lockspace_is_found_by_any_path_to_it(
    libvirt: Guest, processes: list[int], directory: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(directory)
    guest = libvirt(processes[0])
    again = lc.text(directory + "/") + lc.flags()
    assert guest.done(lc.CREATE_LOCKSPACE, again)
    assert refusal(guest, lc.NEW, again)[:2] == (1, 7)
    through = lc.resource(str(tmp_path / "link"), "web1", lc.AUTOCREATE)
    assert guest.done(lc.ACQUIRE, through)
    held = lc.resource(directory, "web1", lc.AUTOCREATE)
    assert refusal(guest, lc.ACQUIRE, held)[:2] == (87, 51)


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1])
def test_owner_must_be_a_process(libvirt: Guest, disk: str, pid: int) -> None:
    stranger = libvirt()
    assert refusal(stranger, lc.REGISTER, lc.owner(pid))[:2] == (38, 51)
    assert refusal(stranger, lc.ACQUIRE, lc.resource("", disk))[:2] == (55, 7)


@pytest.mark.parametrize("name", ["", "a\nb", b"\xff\xfe", "n" * 65_536])
def test_guest_may_be_called_anything(
    libvirt: Guest, client: WireClient, processes: list[int], disk: str, name: str
) -> None:
    guest = libvirt()
    assert guest.done(lc.REGISTER, lc.owner(processes[0], name))
    assert guest.done(lc.ACQUIRE, lc.resource("", disk))
    params = {"lockspace": "direct", "resource": disk}
    (holder,) = client.call("query", **params)["holders"]
    assert 0 < len(holder["name"].encode()) < 256
    assert holder["name"].isprintable()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "a\0b", "n" * 256])
def test_name_that_no_file_may_have_is_refused(
    libvirt: Guest, processes: list[int], directory: str, name: str
) -> None:
    guest = libvirt(processes[0])
    wanted = lc.resource(directory, name, lc.AUTOCREATE)
    assert refusal(guest, lc.ACQUIRE, wanted)[:2] == (38, 51)
    released = lc.resource(directory, name)
    assert refusal(guest, lc.RELEASE, released)[:2] == (87, 51)
    assert os.listdir(directory) == []


@pytest.mark.parametrize("path", ["relative", "/a\0b", "/proc/no", "/dev/null"])
def test_lockspace_that_cannot_be_is_refused(libvirt: Guest, path: str) -> None:
    reply = libvirt().call(lc.CREATE_LOCKSPACE, lc.text(path) + lc.flags())
    assert reply is not None
    assert reply.status == lc.ERROR
    assert not os.path.exists("relative")


def test_only_the_lockspace_may_be_made_before_registering(
    libvirt: Guest, disk: str
) -> None:
    stranger = libvirt()
    for procedure, payload in (
        (lc.RESTRICT, lc.flags()),
        (lc.NEW, lc.text("/x") + lc.flags()),
        (lc.ACQUIRE, lc.resource("", disk)),
        (lc.RELEASE, lc.resource("", disk)),
        (lc.CREATE_RESOURCE, lc.resource("", disk)),
        (lc.DELETE_RESOURCE, lc.resource("", disk)),
    ):
        assert refusal(stranger, procedure, payload)[:2] == (55, 7)


def test_owner_is_registered_once(libvirt: Guest, processes: list[int]) -> None:
    guest = libvirt(processes[0])
    assert refusal(guest, lc.REGISTER, lc.owner(processes[1]))[:2] == (55, 7)


def test_guest_that_does_not_run_is_no_owner(
    libvirt: Guest, processes: list[int]
) -> None:
    # libvirt's id of a guest is 0 for none, in this protocol.
    guest = libvirt()
    assert refusal(guest, lc.REGISTER, lc.owner(processes[0], id=0))[:2] == (55, 7)
    guest.register(processes[0])


def test_all_that_is_made_of_a_path_is_private(directory: str) -> None:
    for path in Path(directory), Path(directory).parent:
        assert path.stat().st_mode & 0o777 == 0o700


def test_restricted_connection_gets_nothing_more(
    libvirt: Guest, processes: list[int], disk: str
) -> None:
    guest, wanted = libvirt(processes[0]), lc.resource("", disk)
    assert guest.done(lc.ACQUIRE, wanted)
    assert guest.done(lc.RESTRICT, lc.flags())
    for procedure in (lc.ACQUIRE, lc.RELEASE, lc.CREATE_RESOURCE):
        assert refusal(guest, procedure, wanted)[:2] == (29, 7)
    assert libvirt(processes[0]).done(lc.RELEASE, wanted)


def test_unknown_flags_are_refused(
    libvirt: Guest, processes: list[int], disk: str
) -> None:
    guest = libvirt(processes[0])
    for procedure, flags in ((lc.ACQUIRE, 4), (lc.RELEASE, 1)):
        wanted = lc.resource("", disk, flags)
        assert refusal(guest, procedure, wanted)[:2] == (8, 7)


def test_only_root_is_served(common: DaemonProcess, start_child: StartChild) -> None:
    os.chmod(common.virtlockd_socket, 0o666)
    script = """
import socket
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1].replace("lockd.sock", "virtlockd.sock"))
print("ready", flush=True)
print(sock.recv(1), flush=True)
"""
    for directory in (common.directory, *common.directory.parents[:-2]):
        os.chmod(directory, 0o755)
    child = start_child(common, script)
    assert child.stdout is not None
    assert child.stdout.readline() == "b''\n"


# Owners.


def test_connection_that_acts_for_another_process_may_end(
    libvirt: Guest, client: WireClient, processes: list[int], disk: str
) -> None:
    wanted = lc.resource("", disk)
    with libvirt(processes[0]) as libvirtd:
        assert libvirtd.done(lc.ACQUIRE, wanted)
    wait_for_sessions(client, 1)
    assert not libvirt(processes[1]).done(lc.ACQUIRE, wanted)
    assert libvirt(processes[0]).done(lc.RELEASE, wanted)
    assert libvirt(processes[1]).done(lc.ACQUIRE, wanted)


def test_owner_that_dies_without_a_connection_leaves_nothing(
    libvirt: Guest, client: WireClient, disk: str
) -> None:
    with idle() as qemu:
        with libvirt(qemu.pid) as libvirtd:
            assert libvirtd.done(lc.ACQUIRE, lc.resource("", disk))
        wait_for_sessions(client, 1)
    gone(client, disk, "direct")


def test_shared_lock_that_was_taken_twice_leaves_nothing(
    libvirt: Guest, client: WireClient, directory: str
) -> None:
    wanted = lc.resource(directory, "web1", lc.AUTOCREATE | lc.SHARED)
    lockspace = _lockspace(client, directory)
    with idle() as qemu:
        guest = libvirt(qemu.pid)
        assert guest.done(lc.ACQUIRE, wanted)
        assert guest.done(lc.ACQUIRE, wanted)
    gone(client, "web1", lockspace)
    assert not os.listdir(directory)


QEMU = """
import signal
from support import libvirt_client as lc
{before}
guest = lc.LibvirtClient(sys.argv[1].replace("lockd.sock", "virtlockd.sock"))
guest.register(os.getpid(), "web1")
assert guest.done(lc.RESTRICT, lc.flags())
ready()
input()
guest.close()
ready("closed")
signal.pause()
"""


def test_guest_that_closes_with_locks_is_dead_before_they_are_free(
    common: DaemonProcess,
    libvirt: Guest,
    start_child: StartChild,
    processes: list[int],
    disk: str,
) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = start_child(common, QEMU.format(before=ignore))
    wanted = lc.resource("", disk)
    libvirtd = libvirt(child.pid)
    assert libvirtd.done(lc.ACQUIRE, wanted)
    assert child.stdin is not None
    pidfd = os.pidfd_open(child.pid)
    child.stdin.write("close\n")
    child.stdin.flush()
    other = libvirt(processes[0], "web2")
    while not other.done(lc.ACQUIRE, wanted):
        pass
    # Not even a zombie could have it still: signal 0 finds those, too.
    assert child.wait() == -signal.SIGKILL
    os.close(pidfd)


def test_guest_that_closes_without_locks_lives_on(
    common: DaemonProcess, client: WireClient, start_child: StartChild
) -> None:
    child = start_child(common, QEMU.format(before=""))
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("close\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"
    wait_for_sessions(client, 1)
    assert child.poll() is None


def test_others_act_on_for_a_guest_that_closed_its_connection(
    common: DaemonProcess,
    libvirt: Guest,
    client: WireClient,
    start_child: StartChild,
    disk: str,
) -> None:
    child = start_child(common, QEMU.format(before=""))
    libvirtd, wanted = libvirt(child.pid), lc.resource("", disk)
    assert child.stdin is not None
    child.stdin.write("close\n")
    child.stdin.flush()
    wait_for_sessions(client, 2)
    assert libvirtd.done(lc.ACQUIRE, wanted)
    assert libvirt(child.pid).done(lc.RELEASE, wanted)
    assert libvirtd.done(lc.ACQUIRE, wanted)
    child.kill()
    gone(client, disk, "direct")


# Messages.


def test_calls_in_pieces_and_at_once_are_answered_in_order(
    libvirt: Guest, processes: list[int], disk: str
) -> None:
    guest = libvirt(processes[0])
    wanted = lc.resource("", disk)
    data = b"".join(
        lc.message(procedure, wanted, serial=9)
        for procedure in (lc.ACQUIRE, lc.ACQUIRE, lc.RELEASE)
    )
    guest.send(data[:50])
    guest.send(data[50:])
    answers = [guest.receive() for _ in range(3)]
    assert [x and (x.serial, x.status) for x in answers] == [(9, 0), (9, 1), (9, 0)]


def test_message_that_is_none_ends_the_connection(
    libvirt: Guest, processes: list[int]
) -> None:
    guest = libvirt(processes[0])
    guest.send(lc.message(lc.RESTRICT, lc.flags(), length=8))
    assert guest.receive() is None


# The daemon changes.


def test_upgrade_keeps_guests_their_locks_and_half_their_calls(tmp_path: Path) -> None:
    disk, daemon = tmp_path / "disk.img", DaemonProcess(tmp_path)
    disk.touch()
    daemon.start()
    try:
        with (
            idle() as qemu,
            LibvirtClient(daemon.virtlockd_socket) as guest,
        ):
            guest.register(qemu.pid)
            assert guest.done(lc.ACQUIRE, lc.resource("", str(disk)))
            again = lc.message(lc.ACQUIRE, lc.resource("", str(disk)), serial=5)
            guest.send(again[:20])
            daemon.upgrade()
            guest.send(again[20:])
            answer = guest.receive()
            assert answer is not None
            assert (answer.serial, answer.error and answer.error.code) == (5, 87)
            assert guest.done(lc.RELEASE, lc.resource("", str(disk)))
    finally:
        daemon.close()


def test_socket_is_for_its_owner_only(common: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(common.virtlockd_socket))
    assert os.stat(common.virtlockd_socket).st_mode & 0o777 in (0o600, 0o666)
