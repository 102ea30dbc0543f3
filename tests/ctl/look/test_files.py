"""A lock on a file is known under each name of the file."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import Lockctl
from lockd import Client, connect
from support.daemon_process import DaemonProcess


@pytest.fixture
def lockd(start_daemon: StartDaemon, tmp_path: Path) -> DaemonProcess:
    (tmp_path / "guests").mkdir(mode=0o700)
    where = f'kind = "directory"\npath = "{tmp_path / "guests"}"'
    return start_daemon(f"[lockspaces.guests]\n{where}\n")


def hashed(path: Path) -> str:
    return hashlib.sha256(bytes(path)).hexdigest()


def links_of(disk: Path) -> list[Path]:
    """Makes other paths of a file."""
    hard, soft = disk.with_name("hard link"), disk.with_name("soft link")
    hard.hardlink_to(disk)
    soft.symlink_to(hard)
    return [hard, soft]


@pytest.mark.parametrize("held_as", ["path", "hash", "hash of another path"])
def test_file_is_held_under_all_its_names(
    lockctl: Lockctl, client: Client, disk: Path, held_as: str
) -> None:
    hard, soft = links_of(disk)
    if held_as == "path":
        client.acquire(str(disk))
        name = str(disk)
    else:
        of = hard if held_as == "hash" else disk
        client.acquire(hashed(of), lockspace="guests", label=str(of))
        name = f"guests:{hashed(of)}"
    for path in (hard, soft):
        assert lockctl("test", path).stdout == "held\n"
        told = json.loads(lockctl("test", path, "--json").stdout)
        assert not told["free"]
        assert told["outside"] == told["resource"]["holders"] == []
        (where,) = told["elsewhere"]
        assert where["holders"][0]["pid"] == os.getpid()
        (row,) = lockctl("show", path).stdout.splitlines()
        cells = row.split("\t")
        assert cells[:3] == ["holds", "the test", str(os.getpid())]
        assert cells[-3] == name
        late = lockctl("wait", path, "-w", "0")
        assert late.returncode == 75
        assert f"by the test, pid {os.getpid()}, " in late.stderr
        assert f", under the name '{name[:40]}" in late.stderr


def test_wait_lasts_until_a_lock_under_another_name_has_ended(
    lockctl: Lockctl, client: Client, disk: Path
) -> None:
    hard, _ = links_of(disk)
    with client.lock(str(disk)):
        waiting = lockctl.start("wait", hard)
        while len(client.list_sessions()) < 2:
            pass
        assert waiting.poll() is None
    assert waiting.wait(30) == 0


def test_lock_file_of_a_lockspace_that_is_locked_by_its_path_is_held(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "guests" / "web1"
    file.touch()
    client.acquire(str(file))
    assert lockctl("test", "web1", "--lockspace", "guests").stdout == "held\n"


def test_path_that_leads_elsewhere_is_free(
    lockctl: Lockctl, client: Client, disk: Path
) -> None:
    client.acquire(str(disk))
    client.acquire(hashed(disk), lockspace="guests", label=str(disk))
    other = disk.with_name("other")
    other.touch()
    assert lockctl("test", disk.with_name("missing")).returncode == 64
    for path in (other, disk.parent):
        assert lockctl("test", path).stdout == "free\n"


@pytest.mark.parametrize("timeout", ["0", "0.2"])
def test_refusal_names_holder_and_name_under_which_a_file_is_held(
    lockctl: Lockctl, sock: str, disk: Path, timeout: str
) -> None:
    hard, _ = links_of(disk)
    with connect(sock, name="nightly") as holder:
        holder.acquire(str(disk))
        done = lockctl("run", "-w", timeout, hard, "--", "true")
    assert done.returncode == 75
    by = f"by nightly (pid {os.getpid()}) under the name '{disk}'"
    assert f"held exclusively {by}" in done.stderr


@pytest.mark.parametrize("command", ["test", "who"])
def test_file_that_does_not_exist_is_64_and_not_free(
    command: str, lockctl: Lockctl, client: Client, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for missing in ("none", "none/below", f"{disk.name}/below", "dangling"):
        done = lockctl(command, tmp_path / missing)
        assert (done.returncode, done.stdout) == (64, ""), missing
        assert "there is no file '" in done.stderr
        assert done.stderr.endswith("and nobody holds it: check the path\n")
    # What is locked is locked, whatever has become of the file.
    client.acquire(str(disk))
    disk.unlink()
    assert lockctl(command, disk).returncode == (1 if command == "test" else 0)


def test_file_that_a_lockspace_would_make_is_free(lockctl: Lockctl) -> None:
    done = lockctl("test", "job", "--lockspace", "guests")
    assert (done.returncode, done.stdout) == (0, "free\n")
    assert lockctl("test", "job").returncode == 0
