"""`lockctl acquire`: locks for other processes."""

import os
import subprocess

from ctl.processes import Lockctl, open_to_all
from lockd import Client
from support.asking import ask_until
from support.daemon_process import DaemonProcess
from support.rights import needs_root
from support.wire_client import NOBODY


def test_lock_that_was_taken_for_a_process_lasts_as_long_as_that(
    lockctl: Lockctl, client: Client, process: subprocess.Popen[bytes]
) -> None:
    done = lockctl("acquire", "a", "b", "--owner-pid", process.pid, "--reason", "why")
    assert done.returncode == 0
    tokens = [int(line) for line in done.stdout.splitlines()]
    assert f"process {process.pid} holds 'a', 'b' until it ends" in done.stderr
    for name, token in zip(("a", "b"), tokens, strict=True):
        (holder,) = client.query(name)["holders"]
        assert (holder["fencing_token"], holder["pid"]) == (token, process.pid)
        assert (holder["name"], holder["reason"]) == ("cat", "why")
        assert holder["command"] == "cat"
    process.kill()
    ask_until(client, "a", lambda state: state["holder_count"] == 0)
    assert client.query("b")["last_holder"]["ended"] == "owner_died"


def test_acquire_waits_no_longer_than_it_is_told(
    lockctl: Lockctl, client: Client, process: subprocess.Popen[bytes]
) -> None:
    client.acquire("job")
    words = ("acquire", "job", "--owner-pid", process.pid)
    assert lockctl(*words, "-w", "0").returncode == 75
    assert lockctl(*words, "-w", "0.1").returncode == 75


@needs_root
def test_acquire_for_a_process_of_somebody_else_stays_ones_own(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    open_to_all(lockd.socket)
    done = lockctl.as_nobody("acquire", "job", "--owner-pid", os.getpid())
    assert done.returncode == 0, done.stderr
    (holder,) = client.query("job")["holders"]
    assert (holder["pid"], holder["uid"]) == (os.getpid(), NOBODY)
    told = " ".join(lockctl("acquire", "--help").stdout.split())
    assert "The process may belong to any user." in told


def test_acquire_for_nobody_or_for_two_is_64(
    lockctl: Lockctl, process: subprocess.Popen[bytes]
) -> None:
    done = lockctl("acquire", "job")
    assert done.returncode == 64
    assert "--owner-pid or --owner-unit" in done.stderr
    words = ("--owner-pid", process.pid, "--owner-unit", "x.service")
    assert lockctl("acquire", "job", *words).returncode == 64
    done = lockctl("acquire", "job", "--owner-pid", 2**22 + 1)
    assert done.returncode == 64
    assert "does not exist" in done.stderr
