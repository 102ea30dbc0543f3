"""`lockctl release`: what was taken for a process, given back by its user."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from ctl.older import older_daemon
from ctl.processes import Lockctl, Locker, end_input, open_to_all, wait_for_exit
from lockd import Client
from support.asking import ask_until
from support.daemon_process import DaemonProcess
from support.rights import needs_root

Sleeper = subprocess.Popen[bytes]


def test_lock_of_a_process_is_given_back_by_name(
    lockctl: Lockctl, client: Client, process: Sleeper
) -> None:
    lockctl("acquire", "job", "--owner-pid", process.pid)
    done = lockctl("release", "job")
    assert (done.returncode, done.stderr) == (
        0,
        f"lockctl: 'job' is released; cat (pid {process.pid}) held it\n",
    )
    state = client.query("job")
    assert (state["holder_count"], state["last_holder"]["ended"]) == (0, "released")
    # Its process goes on: nobody asked it to hold a lock.
    assert process.poll() is None


def test_lock_of_a_process_is_given_back_by_token(
    lockctl: Lockctl, client: Client, process: Sleeper
) -> None:
    done = lockctl("acquire", "a", "b", "--owner-pid", process.pid)
    first, second = done.stdout.split()
    released = json.loads(lockctl("release", "--json", second).stdout)["released"]
    (holder,) = released
    assert (holder["resource"], holder["fencing_token"]) == ("b", int(second))
    assert client.check("a", int(first))
    assert client.query("b")["holder_count"] == 0


@needs_root
def test_lock_of_another_user_is_77_and_names_the_user(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client, process: Sleeper
) -> None:
    open_to_all(lockd.socket)
    token = lockctl("acquire", "job", "--owner-pid", process.pid).stdout.strip()
    for held in ("job", token):
        done = lockctl.as_nobody("release", held)
        assert done.returncode == 77
        assert f"'job' is held by cat (pid {process.pid}, user root)" in done.stderr
        assert "`lockctl break`" in done.stderr
    assert client.check("job", int(token))


def test_lock_of_a_running_command_is_77_and_names_it(
    lockctl: Lockctl, client: Client
) -> None:
    running = lockctl.start("run", "job", "--", "cat")
    state = ask_until(client, "job", lambda state: state["holder_count"] == 1)
    (holder,) = state["holders"]
    for held in ("job", holder["fencing_token"]):
        done = lockctl("release", held)
        assert done.returncode == 77
        assert f"by cat (pid {holder['pid']}, uid {os.getuid()}) for" in done.stderr
        assert "end that, or take it with `lockctl break`" in done.stderr
    assert client.check("job", holder["fencing_token"])
    end_input(running)
    assert running.wait() == 0


def test_of_a_shared_lock_only_what_is_left_to_a_process_is_given_back(
    lockctl: Lockctl, client: Client, process: Sleeper
) -> None:
    grant = client.acquire("site", mode="shared")
    for _ in range(2):
        lockctl("acquire", "-s", "site", "--owner-pid", process.pid)
    done = lockctl("release", "site")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first.startswith("lockctl: 'site' is released; ")
    assert second.startswith("lockctl: not released: its holder uses it: end that, ")
    assert "'site' is held shared by the test" in second
    (holder,) = client.query("site")["holders"]
    assert holder["fencing_token"] == grant.fencing_token


def test_what_nobody_holds_is_64(lockctl: Lockctl, disk: Path, locker: Locker) -> None:
    for held, why in (
        ("job", "'job' has no holder: there is nothing to release"),
        ("77", "no lock has the fencing token 77"),
    ):
        done = lockctl("release", held)
        assert done.returncode == 64
        assert why in done.stderr
    pid = locker(disk, "POSIX")
    done = lockctl("release", disk)
    assert done.returncode == 64
    assert f"(pid {pid}" in done.stderr
    assert "lockd cannot release it" in done.stderr


@pytest.mark.parametrize("by", ["name", "token"])
def test_daemon_that_knows_no_locks_of_others_is_69_and_named_as_older(
    by: str,
    lockctl: Lockctl,
    sock: str,
    client: Client,
    process: Sleeper,
    tmp_path: Path,
) -> None:
    token = lockctl("acquire", "job", "--owner-pid", process.pid).stdout.strip()
    with older_daemon(tmp_path / "older", sock) as older:
        done = lockctl("--socket", older, "release", "job" if by == "name" else token)
    assert done.returncode == 69
    assert "the daemon is older than this program" in done.stderr
    assert f"end process {process.pid}" in done.stderr
    assert client.check("job", int(token))


def test_lock_that_is_over_meanwhile_says_nothing_of_the_daemon(
    lockctl: Lockctl, sock: str, client: Client, process: Sleeper, tmp_path: Path
) -> None:
    """Whoever released it was faster, and an older daemon answers alike."""
    token = lockctl("acquire", "job", "--owner-pid", process.pid).stdout.strip()
    release = partial(client.break_grant, int(token), "faster")
    with older_daemon(tmp_path / "older", sock, before_refusal=release) as older:
        done = lockctl("--socket", older, "release", token)
    assert done.returncode == 64
    assert f"you hold no lock with the fencing token {token}" in done.stderr


def test_reserved_lock_ends_with_its_process_only_when_that_holds_nothing(
    lockctl: Lockctl, client: Client, sleepers: list[int]
) -> None:
    done = lockctl("acquire", "one", "two", "--for", "4h", "--json")
    pid = json.loads(done.stdout)["pid"]
    sleepers.append(pid)
    pidfd = os.pidfd_open(pid)
    assert lockctl("release", "one").returncode == 0
    assert client.query("one")["holder_count"] == 0
    assert client.query("two")["holders"][0]["pid"] == pid
    assert lockctl("release", "two").returncode == 0
    assert client.query("two")["last_holder"]["ended"] == "released"
    wait_for_exit(pidfd)


@pytest.mark.parametrize("rival", ["unlock", "free"])
def test_words_of_other_programs_lead_here(lockctl: Lockctl, rival: str) -> None:
    assert "`release` gives back a lock" in lockctl(rival).stderr
