"""`lockctl who`: every name of a file, and those who lock it past lockd."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from ctl.processes import LOCKCTL, Lockctl, Locker, Terminal, open_to_all
from lockd import Client, connect
from lockd.ctl.look.outside import Inode, all_locks, inode_of, locks_on
from support.daemon_process import DaemonProcess
from support.rights import needs_root


def who(lockctl: Lockctl, path: object, **popen: Any) -> tuple[list[Any], list[Any]]:
    done = lockctl("who", "--json", path, **popen)
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["holders"] or told["outside"] else 1)
    return told["holders"], told["outside"]


def test_lock_of_lockd_is_not_told_as_one_past_it(
    lockctl: Lockctl, client: Client, disk: Path
) -> None:
    client.acquire(str(disk))
    (holder,), outside = who(lockctl, disk)
    assert (holder["resource"], holder["pid"]) == (str(disk), os.getpid())
    assert outside == []


@pytest.mark.parametrize("kind", ["POSIX", "OFD", "FLOCK"])
@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_lock_past_lockd_is_told_with_its_process(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker, kind: str, mode: str
) -> None:
    pid = locker(disk, kind, mode)
    holders, (found,) = who(lockctl, disk)
    assert holders == []
    assert (found["kind"], found["mode"], found["pid"]) == (kind, mode, pid)
    assert (found["uid"], found["waits"]) == (os.getuid(), False)
    assert "python" in found["command"]
    done = lockctl("who", disk)
    assert done.stdout.rstrip("\n").split("\t")[:4] == [
        "-",
        str(disk),
        os.path.basename(sys.executable),
        str(pid),
    ]


def test_lockd_and_others_on_one_file_are_told_apart(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    client.acquire(str(disk), mode="shared")
    ofd = locker(disk, "OFD", "shared")
    posix = locker(disk, "POSIX", "exclusive", start=100, length=10)
    holders, outside = who(lockctl, disk)
    assert len(holders) == 1
    assert {(x["kind"], x["pid"]) for x in outside} == {("OFD", ofd), ("POSIX", posix)}
    span = next((x["from"], x["to"]) for x in outside if x["kind"] == "POSIX")
    assert span == (100, 109)
    shown = lockctl("who", disk).stdout
    assert "POSIX lock, 100 to 109, not lockd's" in shown


def test_hard_link_and_symbolic_link_lead_to_the_holder(
    lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "hard").hardlink_to(disk)
    (tmp_path / "soft").symlink_to(tmp_path / "hard")
    client.acquire(str(disk))
    for name in ("disk.img", "hard", "soft"):
        (holder,), outside = who(lockctl, f"./{name}", cwd=tmp_path)
        assert (holder["lockspace"], holder["resource"]) == ("direct", str(disk))
        assert outside == []


def test_hash_and_label_of_a_hard_link_lead_to_the_holder(
    lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "hard").hardlink_to(disk)
    (tmp_path / "locks").mkdir()
    client.create_lockspace("hashed", "directory", str(tmp_path / "locks"))
    name = lockctl("lock-name", disk).stdout.strip()
    client.acquire(name, lockspace="hashed", label=str(disk))
    client.acquire("in memory", label=str(disk))
    found, _ = who(lockctl, tmp_path / "hard")
    assert [x["lockspace"] for x in found] == ["hashed"]
    found, _ = who(lockctl, disk)
    assert {x["resource"] for x in found} == {name, "in memory"}


def test_file_below_a_directory_is_not_the_directory(
    lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    client.acquire(str(disk))
    assert who(lockctl, tmp_path) == ([], [])


@needs_root
def test_bind_mount_leads_to_the_holder(
    lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    client.acquire(str(disk))
    (tmp_path / "there").mkdir()
    mount = f'mount --bind {tmp_path} {tmp_path}/there && exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", mount, "sh", *LOCKCTL, "who", "--json")
    done = subprocess.run(
        [*words, f"{tmp_path}/there/disk.img"],
        env=lockctl.env,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr:
        pytest.skip(done.stderr)
    told = json.loads(done.stdout)
    assert [x["resource"] for x in told["holders"]] == [str(disk)]
    assert told["outside"] == []


@needs_root
def test_processes_of_others_are_not_seen_but_their_locks_are(
    start_daemon: StartDaemon, tmp_path: Path, disk: Path, locker: Locker
) -> None:
    daemon = start_daemon("[lockspaces.direct]\nallow_users.list = ['*']\n")
    open_to_all(daemon.socket)
    with connect(daemon.socket) as client:
        client.acquire(str(disk), mode="shared")
        locker(disk, "OFD", "shared")
        done = Lockctl(str(daemon.socket)).as_nobody("who", "--json", disk)
        told = json.loads(done.stdout)
    (holder,) = told["holders"]
    assert holder["pid"] == os.getpid()
    # One of the two locks is lockd's; whose the other is only root can say.
    (found,) = told["outside"]
    assert (found["kind"], found["pid"]) == ("OFD", None)


@needs_root
def test_lock_that_nobody_may_see_is_perhaps_lockds(
    start_daemon: StartDaemon, tmp_path: Path, disk: Path, locker: Locker
) -> None:
    daemon = start_daemon("")
    open_to_all(daemon.socket)
    lockctl = Lockctl(str(daemon.socket))
    with connect(daemon.socket) as client:
        client.acquire(str(disk))
        locker(disk, "OFD", start=5)
        told = json.loads(lockctl.as_nobody("who", "--json", disk).stdout)
        assert told["holders"] == []
        perhaps = {x["from"]: x["perhaps_lockd"] for x in told["outside"]}
        assert perhaps == {0: True, 5: False}
        # Who sees lockd's descriptors knows.
        _, (found,) = who(lockctl, disk)
        assert (found["from"], found["perhaps_lockd"]) == (5, False)
        shown = lockctl.as_nobody("who", disk).stdout.splitlines()
    reasons = {line.split("\t")[9] for line in shown}
    assert reasons == {
        "OFD lock, 0 to 0, perhaps lockd's",
        "OFD lock, 5 to 5, not lockd's",
    }


def test_those_who_are_not_named_are_counted(
    lockctl: Lockctl, sock: str, disk: Path
) -> None:
    """The daemon names 16 of those who share a lock."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(sock)).acquire("job", mode="shared")
        done = lockctl("who", "job")
        lines = done.stdout.splitlines()
        told = json.loads(lockctl("who", "--json", "job").stdout)
    assert len(lines) == 17
    assert lines[-1].split("\t") == ["default", "job", "4 more hold it", *"--------"]
    assert (len(told["holders"]), told["holder_count"]) == (16, 20)
    assert done.stderr == UNNAMED


UNNAMED = (
    "lockctl: 4 holders of 'job' not shown: `lockctl list --pid PID --json` shows the "
    "one that is process PID\n"
)


def test_holder_that_is_not_named_is_found_with_its_slot(
    lockctl: Lockctl, sock: str
) -> None:
    """Also for those who show a lock or want to break it."""
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        for _ in range(19):
            stack.enter_context(connect(sock)).acquire("job", slots=20)
        taken = lockctl("acquire", "--slots", "20", "job", "--owner-pid", process.pid)
        assert taken.stderr == (
            f"lockctl: process {process.pid} holds 'job' until it ends, in slot 19 of "
            "20\n"
        )
        assert lockctl("show", "job").stderr == UNNAMED
        refused = lockctl("break", "job", "--reason", "stuck", "--yes").stderr
        assert "; 4 more are not shown: `lockctl list --pid PID --json` " in refused
        listed = lockctl("list", "--pid", process.pid, "--json").stdout
    (resource,) = json.loads(listed)["resources"]
    (found,) = resource["holders"]
    assert (found["slot"], found["pid"]) == (19, process.pid)
    assert found["fencing_token"] == int(taken.stdout)


def test_who_says_which_slot(lockctl: Lockctl, client: Client) -> None:
    client.acquire("gpu", slots=2)
    row = lockctl("who", "gpu").stdout.rstrip("\n").split("\t")
    assert row[-1] == "0"


def test_file_that_was_meant_for_a_name_is_pointed_at(
    lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    client.acquire(str(disk))
    done = lockctl("who", "disk.img", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "lockctl: nobody holds 'disk.img'; to look up the file, write ./disk.img\n"
    )
    assert lockctl("who", "./disk.img", cwd=tmp_path).returncode == 0
    assert lockctl("who", "tape.img").stderr == "lockctl: nobody holds 'tape.img'\n"


@pytest.mark.parametrize("name", ["", "\udcff", "a\nb", "n" * 256])
def test_what_cannot_be_a_name_is_not_free_but_refused(
    lockctl: Lockctl, sock: str, name: str
) -> None:
    assert lockctl("who", name).returncode == lockctl("show", name).returncode == 64


def test_kernel_names_a_file_as_we_do(disk: Path, locker: Locker) -> None:
    inode = inode_of(str(disk))
    assert inode is not None
    pid = locker(disk, "POSIX", start=5, length=0)
    (found,) = locks_on(inode)
    assert (found.pid, found.span, found.waits) == (pid, ("5", "EOF"), False)
    assert found in list(all_locks())
    assert locks_on(Inode(inode.device, 2**62)) == []
    assert inode_of("/no/such/file") is None


def test_who_is_a_table_on_a_terminal(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client, disk: Path, locker: Locker
) -> None:
    client.acquire(str(disk))
    locker(disk, "FLOCK")
    terminal = Terminal((*LOCKCTL, "who", str(disk)), lockctl.env)
    assert terminal.wait() == 0
    assert "LOCKED" in terminal.shown
    assert "FLOCK lock, not lockd's" in terminal.shown


def test_who_names_the_holder_of_a_name_in_any_lockspace(
    lockctl: Lockctl, client: Client
) -> None:
    client.create_lockspace("other", "memory")
    client.acquire("job", lockspace="other", reason="nightly")
    done = lockctl("who", "job")
    assert done.returncode == 0
    cells = done.stdout.rstrip("\n").split("\t")
    assert cells[:4] == ["other", "job", "the test", str(os.getpid())]
    assert (cells[7], cells[9]) == ("exclusive", "nightly")


def test_who_of_a_free_name_is_1(lockctl: Lockctl) -> None:
    done = lockctl("who", "job")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lockctl: nobody holds 'job'\n"


def test_who_finds_a_file_by_any_of_its_paths(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    disk.touch()
    link.symlink_to(disk)
    client.acquire(str(disk))
    (holder,) = json.loads(lockctl("who", "--json", link).stdout)["holders"]
    assert (holder["lockspace"], holder["resource"]) == ("direct", str(disk))
    done = lockctl("who", "./link", cwd=tmp_path)
    assert (done.returncode, done.stdout.split("\t")[0]) == (0, "direct")


def test_who_finds_a_file_by_its_hash(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    locks, disk = tmp_path / "locks", tmp_path / "disk.img"
    locks.mkdir()
    client.create_lockspace("hashed", "directory", str(locks))
    name = lockctl("lock-name", disk).stdout.strip()
    client.acquire(name, lockspace="hashed", label=str(disk))
    (holder,) = json.loads(lockctl("who", "--json", disk).stdout)["holders"]
    assert (holder["lockspace"], holder["resource"]) == ("hashed", name)
    assert holder["label"] == str(disk)
