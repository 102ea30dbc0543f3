"""`lockctl test`, `wait`, `show`: a file that somebody locks past lockd is not free."""

import json
import os
import sys
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import LOCKCTL, Lockctl, Locker, Terminal, end_input, open_to_all
from lockd import BusyError, Client, connect
from lockd.ctl.top.board import Board
from lockd.ctl.top.tables import TABLES
from support.daemon_process import DaemonProcess
from support.rights import needs_root


@pytest.fixture
def guests(client: Client, tmp_path: Path) -> Path:
    """Makes a directory lockspace."""
    (tmp_path / "locks").mkdir()
    client.create_lockspace("guests", "directory", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.mark.parametrize(
    ("kind", "mode", "word"),
    [
        ("POSIX", "exclusive", "held"),
        ("POSIX", "shared", "shared"),
        ("OFD", "exclusive", "held"),
        ("OFD", "shared", "shared"),
    ],
)
def test_file_that_is_locked_past_lockd_is_held(
    lockctl: Lockctl,
    client: Client,
    disk: Path,
    locker: Locker,
    kind: str,
    mode: str,
    word: str,
) -> None:
    pid = locker(disk, kind, mode)
    done = lockctl("test", disk)
    assert (done.returncode, done.stdout) == (1, f"{word}\n")
    told = json.loads(lockctl("test", "--json", disk).stdout)
    assert told["free"] is False
    assert [(x["kind"], x["pid"]) for x in told["outside"]] == [(kind, pid)]
    (row,) = lockctl("show", disk).stdout.splitlines()
    cells = row.split("\t")
    assert cells[:3] == ["holds, outside lockd", program(), str(pid)]
    assert cells[6:] == [mode, "-", "-", "-", "-", "-", "-"]


ELSEWHERE = pytest.mark.parametrize(
    ("kind", "start", "by"),
    [("FLOCK", 0, "flock"), ("POSIX", 100, "qemu"), ("OFD", 1, None)],
)
"""Locks that do not conflict with that of lockd."""


@ELSEWHERE
def test_lock_on_any_part_of_a_file_keeps_lockd_from_it(
    lockctl: Lockctl,
    client: Client,
    disk: Path,
    locker: Locker,
    kind: str,
    start: int,
    by: str | None,
) -> None:
    locker(disk, kind, start=start)
    assert lockctl("test", disk).returncode == 1
    assert lockctl("show", disk).stdout.startswith("holds, outside lockd\t")
    (found,) = json.loads(lockctl("test", "--json", disk).stdout)["outside"]
    assert found["by"] == by
    with pytest.raises(BusyError, match="outside lockd"):
        client.acquire(str(disk), timeout=0)


@ELSEWHERE
def test_lock_that_does_not_keep_lockd_from_a_file_leaves_it_free(
    start_daemon: StartDaemon,
    disk: Path,
    locker: Locker,
    kind: str,
    start: int,
    by: str | None,
) -> None:
    daemon = start_daemon('[lockspaces.direct]\noutside = "byte"\n')
    lockctl = Lockctl(str(daemon.socket))
    locker(disk, kind, start=start)
    assert lockctl("test", disk).returncode == 0
    assert lockctl("show", disk).stdout.split()[0] == "free"
    assert lockctl("run", "-n", disk, "--", "true").returncode == 0


def test_lock_of_the_holders_own_command_does_not_stand_in_its_way(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    client.acquire(str(disk))
    locker(disk, "FLOCK")
    found = json.loads(lockctl("show", "--json", disk).stdout)
    assert found["outside"] == []


def test_qemu_that_writes_holds_a_file_although_its_locks_are_shared(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    locker(disk, "OFD", "shared", start=100, length=1)
    assert lockctl("test", disk).stdout == "shared\n"
    locker(disk, "OFD", "shared", start=100, length=2)
    assert lockctl("test", disk).stdout == "held\n"


def test_file_of_a_directory_lockspace_may_be_locked_past_lockd(
    lockctl: Lockctl, client: Client, guests: Path, locker: Locker
) -> None:
    where = ("web1", "--lockspace", "guests")
    assert lockctl("test", *where).stdout == "free\n"
    (guests / "web1").touch()
    pid = locker(guests / "web1", "POSIX")
    assert lockctl("test", *where).stdout == "held\n"
    waiting = lockctl.start("run", *where, "--", "true")
    while not client.query("web1", lockspace="guests")["waiters"]:
        pass
    rows = lockctl("show", *where).stdout.splitlines()
    cells = [row.split("\t") for row in rows]
    assert [x[0] for x in cells] == ["holds, outside lockd", "1st in queue"]
    assert cells[0][2] == str(pid)
    end_input(waiting)


def test_lock_past_lockd_is_called_the_same_everywhere(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    pid = locker(disk, "POSIX")
    waiting = lockctl.start("run", disk, "--", "true")
    while not client.query(str(disk))["waiters"]:
        pass
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        called = f"{file.read().strip()} (pid {pid}) outside lockd"
    (line,) = lockctl("waiters").stdout.splitlines()
    assert line.split("\t")[8] == called
    assert lockctl("graph").stdout.splitlines()[0] == called
    end_input(waiting)


def test_locks_of_lockd_are_not_told_as_past_it(
    lockctl: Lockctl, client: Client, sock: str, disk: Path
) -> None:
    client.acquire(str(disk), mode="shared")
    with connect(sock) as other:
        other.acquire(str(disk), mode="shared")
        told = json.loads(lockctl("test", "--json", disk).stdout)
    assert told["resource"]["holder_count"] == 2
    assert told["outside"] == []


@needs_root
def test_what_only_the_daemon_can_see_is_shown_while_somebody_waits(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client, guests: Path, locker: Locker
) -> None:
    open_to_all(lockd.socket)
    guests.chmod(0o700)
    where = ("web1", "--lockspace", "guests")
    (guests / "web1").touch()
    pid = locker(guests / "web1", "POSIX")
    assert lockctl.as_nobody("test", *where).stdout == "free\n"
    waiting = lockctl.start("run", *where, "--", "true")
    while not client.query("web1", lockspace="guests")["outside"]:
        pass
    first, _ = lockctl.as_nobody("show", *where).stdout.splitlines()
    assert first.split("\t")[0::2][:2] == ["holds, outside lockd", str(pid)]
    done = lockctl.as_nobody("wait", *where, "-w", "0")
    assert f"(pid {pid}) outside lockd" in done.stderr
    end_input(waiting)


def test_wait_lasts_until_a_lock_past_lockd_has_ended(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    pid = locker(disk, "POSIX")
    done = lockctl("wait", disk, "-w", "0.1")
    assert done.returncode == 75
    assert f"was not free within 0.1 s: held by {program()} (pid {pid})" in done.stderr
    waiting = lockctl.start("wait", disk)
    os.kill(pid, 9)
    assert waiting.wait(30) == 0


def test_run_that_waits_for_a_lock_past_lockd_says_whose(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    pid = locker(disk, "OFD")
    terminal = Terminal((*LOCKCTL, "run", str(disk), "--", "true"), lockctl.env)
    terminal.wait_for(f"1st in queue; held by {program()} (pid {pid}) outside lockd)")
    os.kill(pid, 9)
    assert terminal.wait() == 0


def program() -> str:
    return os.path.basename(sys.executable)


def test_list_and_top_name_a_lock_past_lockd(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    pid = locker(disk, "POSIX")
    waiting = lockctl.start("run", disk, "--", "true")
    while not client.query(str(disk))["outside"]:
        pass
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        called = file.read().strip()
    (line,) = lockctl("list").stdout.splitlines()
    cells = line.split("\t")
    assert cells[2:6] == ["exclusive", "0", f"{called} outside lockd", str(pid)]
    board = Board()
    (told,) = client.list_resources()
    board.take(told, 0.0)
    locks = TABLES[0]
    (row,) = locks.rows(board, 1.0)
    assert row.cells["HELD BY"] == f"{called} outside lockd"
    assert row.cells["PID"] == pid
    waits = next(table for table in TABLES if table.name == "waits")
    (row,) = waits.rows(board, 1.0)
    assert row.cells["HELD BY"] == f"{called} outside lockd"
    end_input(waiting)
