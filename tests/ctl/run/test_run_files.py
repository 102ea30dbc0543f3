"""`lockctl run` of files that other programs lock in ways of their own.

Their locks are imitated, so that each rule is tested everywhere. The programs
themselves are asked too, where they are installed.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import Lockctl
from lockd import BusyError, connect
from support.outside import (
    QEMU_READS,
    QEMU_WRITES,
    SQLITE_RESERVED,
    SQLITE_SHARED,
    Outside,
)

PYTHON = os.path.basename(sys.executable)

StartProgram = Callable[..., subprocess.Popen[str]]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed"
    )


@pytest.fixture
def start() -> Iterator[StartProgram]:
    """Starts programs that read commands; they end with the test."""
    with ExitStack() as stack:

        def start(*command: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk image without anything in it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    return disk


def told(process: subprocess.Popen[str], command: str) -> str:
    """Gives a program a command, and returns the first line of its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{command}\n")
    return process.stdout.readline()


def open_in_qemu(
    start: StartProgram, disk: Path, *options: str
) -> subprocess.Popen[str]:
    process = start("qemu-io", *options, "-f", "raw", disk)
    while "1 MiB" not in told(process, "length"):
        pass
    return process


def refused(lockctl: Lockctl, disk: Path, *options: str) -> str:
    done = lockctl("run", "-n", *options, disk, "--", "true")
    assert done.returncode == 75, done
    return done.stderr


def granted(lockctl: Lockctl, disk: Path, *options: str) -> bool:
    return lockctl("run", "-n", *options, disk, "--", "true").returncode == 0


# QEMU.


def check_writer(lockctl: Lockctl, disk: Path) -> None:
    for options in ((), ("-s",)):
        said = refused(lockctl, disk, *options)
        assert f"'{disk}' is in use by QEMU (it writes), outside lockd; " in said


def test_guest_that_writes_keeps_everybody_out(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    outside.qemu(disk, QEMU_WRITES)
    check_writer(lockctl, disk)
    assert f"; that is {PYTHON} (pid {outside.pid})\n" in refused(lockctl, disk)


@needs("qemu-io")
def test_real_qemu_that_writes_keeps_everybody_out(
    lockctl: Lockctl, disk: Path, start: StartProgram
) -> None:
    process = open_in_qemu(start, disk)
    check_writer(lockctl, disk)
    assert f"; that is qemu-io (pid {process.pid})\n" in refused(lockctl, disk)


def check_reader(lockctl: Lockctl, disk: Path) -> None:
    assert "is in use by QEMU (it reads), outside lockd; " in refused(lockctl, disk)
    assert granted(lockctl, disk, "-s")


def test_guest_that_reads_leaves_the_disk_to_readers(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    outside.qemu(disk, QEMU_READS)
    check_reader(lockctl, disk)


@needs("qemu-io")
@pytest.mark.parametrize("options", [("-r",), ("-r", "-U")])
def test_real_qemu_that_reads_leaves_the_disk_to_readers(
    lockctl: Lockctl, disk: Path, start: StartProgram, options: tuple[str, ...]
) -> None:
    open_in_qemu(start, disk, *options)
    check_reader(lockctl, disk)


@needs("qemu-io")
def test_qemu_runs_under_the_lock_of_its_disk(lockctl: Lockctl, disk: Path) -> None:
    write = ("qemu-io", "-f", "raw", "-c", "write 0 512", disk)
    done = lockctl("run", disk, "--", *write)
    assert done.returncode == 0, done
    assert "wrote 512/512 bytes" in done.stdout


def test_waiter_gets_the_disk_when_qemu_has_ended(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    outside.qemu(disk, QEMU_WRITES)
    waiting = lockctl.start("run", "-v", disk, "--", "echo", "mine")
    assert waiting.stderr is not None
    said = waiting.stderr.readline()
    assert f"waiting for '{disk}' (1st in queue; held by " in said
    outside.close(disk)
    out, _ = waiting.communicate(timeout=30)
    assert (out, waiting.returncode) == ("mine\n", 0)


# SQLite.


def test_sqlite_is_named_with_its_process_and_what_it_does(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    assert outside.lock(disk, "shared", "posix", *SQLITE_SHARED)
    said = refused(lockctl, disk)
    assert "is in use by SQLite (it reads; " in said
    assert f", pid {outside.pid}), outside lockd" in said
    assert granted(lockctl, disk, "-s")
    assert outside.lock(disk, "exclusive", "posix", *SQLITE_RESERVED)
    assert "is in use by SQLite (it writes; " in refused(lockctl, disk, "-s")


@needs("sqlite3")
def test_real_sqlite_is_named_and_runs_under_its_lock(
    lockctl: Lockctl, tmp_path: Path, start: StartProgram
) -> None:
    database = tmp_path / "a.db"
    subprocess.run(["sqlite3", database, "create table t (x)"], check=True)
    insert = ("sqlite3", database, "insert into t values (1)")
    assert lockctl("run", database, "--", *insert).returncode == 0
    process = start("sqlite3", database)
    assert told(process, "begin immediate; select 'ready';") == "ready\n"
    said = refused(lockctl, database, "-s")
    assert f"SQLite (it writes; sqlite3, pid {process.pid}), outside lockd" in said


# flock(1), leases.


def test_flock_is_named(lockctl: Lockctl, disk: Path, outside: Outside) -> None:
    assert outside.flock(disk, "shared")
    said = refused(lockctl, disk)
    assert f"'{disk}' is locked shared with flock(2), outside lockd; " in said
    assert f"that is {PYTHON} (pid {outside.pid})" in said
    assert granted(lockctl, disk, "-s")


@needs("flock")
def test_real_flock_keeps_everybody_out_and_runs_under_the_lock(
    lockctl: Lockctl, disk: Path, start: StartProgram
) -> None:
    process = start("flock", disk, "sh", "-c", "echo ready; cat")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for options in ((), ("-s",)):
        said = refused(lockctl, disk, *options)
        assert "is locked exclusively with flock(2), outside lockd" in said
    process.communicate()
    assert lockctl("run", disk, "--", "flock", "-n", disk, "true").returncode == 0


def test_file_under_a_lease_is_in_use(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    outside.lease(disk)
    said = refused(lockctl, disk)
    assert f"'{disk}' is under a lease of a program outside lockd; " in said
    outside.close(disk)
    assert granted(lockctl, disk)


# Files that are locked whole.


@contextmanager
def held_whole(lockctl: Lockctl, path: Path) -> Iterator[None]:
    command = ("sh", "-c", "echo ready; cat")
    process = lockctl.start("run", "--whole", path, "--", *command)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.communicate()
    assert process.returncode == 0


def status_of(*command: object) -> int:
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    return done.returncode


def test_whole_file_keeps_out_programs_that_come_later(
    lockctl: Lockctl, disk: Path, outside: Outside
) -> None:
    with held_whole(lockctl, disk):
        assert not outside.lock(disk, "shared", "ofd", 100, 1)
        assert not outside.lock(disk, "shared", "posix", *SQLITE_SHARED)
        assert not outside.flock(disk, "shared")
    outside.qemu(disk, QEMU_WRITES)
    assert "is in use by QEMU (it writes)" in refused(lockctl, disk, "--whole")


def test_lock_of_a_whole_file_is_lockds(
    lockctl: Lockctl, disk: Path, start_daemon: StartDaemon
) -> None:
    with held_whole(lockctl, disk):
        assert lockctl("test", disk).stdout == "held\n"
        told = json.loads(lockctl("who", "--json", disk).stdout)
        assert (told["holder_count"], told["outside"]) == (1, [])
        second = Lockctl(str(start_daemon().socket))
        assert "held exclusively by a process" in refused(second, disk)


@needs("qemu-io")
def test_whole_file_keeps_out_a_real_qemu(lockctl: Lockctl, disk: Path) -> None:
    write = ("qemu-io", "-f", "raw", "-c", "write 0 512", disk)
    with held_whole(lockctl, disk):
        assert status_of(*write) != 0
    assert status_of(*write) == 0


@needs("flock")
def test_whole_file_keeps_out_a_real_flock(lockctl: Lockctl, disk: Path) -> None:
    with held_whole(lockctl, disk):
        assert status_of("flock", "-n", disk, "true") == 1
        assert status_of("flock", "-n", "-s", disk, "true") == 1
    assert status_of("flock", "-n", disk, "true") == 0


@needs("sqlite3")
def test_whole_file_keeps_out_a_real_sqlite(lockctl: Lockctl, tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    insert = ("sqlite3", database, "insert into t values (1)")
    assert status_of("sqlite3", database, "create table t (x)") == 0
    with held_whole(lockctl, database):
        assert status_of(*insert) != 0
    assert status_of(*insert) == 0


@pytest.mark.parametrize("name", ["job", "./s.sh"])
def test_name_and_script_cannot_be_locked_whole(
    lockctl: Lockctl, tmp_path: Path, name: str
) -> None:
    (tmp_path / "s.sh").touch(mode=0o755)
    done = lockctl("run", "--whole", name, "--", "true", cwd=tmp_path)
    assert done.returncode == 64
    assert "whole" in done.stderr


# Programs and scripts.


@pytest.mark.parametrize("options", [("-n",), ("-n", "-s")])
def test_script_runs_under_its_own_lock(
    lockctl: Lockctl, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The idiom of flock(1): a script locks itself, and runs itself again."""
    script = tmp_path / "s.sh"
    script.write_text("#!/bin/sh\necho mine\n")
    script.chmod(0o755)
    done = lockctl("run", *options, "./s.sh", "--", "./s.sh", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("mine\n", 0), done


def test_second_daemon_is_named_as_a_program_that_has_the_script(
    lockctl: Lockctl, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    script = tmp_path / "s.sh"
    script.touch(mode=0o755)
    second = Lockctl(str(start_daemon().socket))
    with connect(lockctl.env["LOCKD_SOCKET"]) as client:
        with client.acquire(str(script)):
            for options in ((), ("-s",)):
                said = refused(second, script, *options)
                assert "is held exclusively by a process that the kernel does" in said
            assert second("test", script).stdout == "held\n"
        with client.acquire(str(script), mode="shared"):
            assert granted(second, script, "-s")
            assert "is held shared by a process" in refused(second, script)
            assert second("test", script).stdout == "shared\n"


# The program itself.


def test_program_that_has_locked_the_file_itself_is_told_so(
    sock: str, disk: Path
) -> None:
    with connect(sock) as client, disk.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 5)
        with pytest.raises(BusyError) as refusal:
            client.acquire(str(disk), timeout=0)
        assert refusal.value.facts["outside"]["pid"] == os.getpid()
        assert "; this program itself has locked it: " in str(refusal.value)
        fcntl.lockf(file, fcntl.LOCK_UN)
        with client.acquire(str(disk), timeout=0):
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 5)
