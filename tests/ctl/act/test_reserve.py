"""`lockctl acquire --for`: a lock that a person holds for hours."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.processes import Lockctl, wait_for_exit
from lockd import Client
from lockd.ctl.act import reserve
from support.asking import ask_until


def test_reserved_lock_is_held_when_lockctl_has_ended(
    lockctl: Lockctl, client: Client, sleepers: list[int]
) -> None:
    done = lockctl("acquire", "bench", "--for", "4h", "--reason", "measuring")
    (holder,) = client.query("bench")["holders"]
    pid = holder["pid"]
    sleepers.append(pid)
    assert (done.returncode, done.stdout) == (0, f"{holder['fencing_token']}\n")
    assert done.stderr == (
        f"lockctl: process {pid} holds 'bench' for 4h00m, or until `lockctl release`\n"
    )
    assert (holder["name"], holder["reason"]) == ("reserved", "measuring")
    assert (holder["command"], holder["uid"]) == ("sleep 14400", os.getuid())
    # It depends on no terminal, and keeps no file of the caller open.
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    opened = {os.readlink(x) for x in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened == {os.devnull}


def test_reserved_lock_ends_with_its_time(lockctl: Lockctl, client: Client) -> None:
    done = lockctl("acquire", "bench", "--for", "1", "--json")
    pid = json.loads(done.stdout)["pid"]
    ask_until(client, "bench", lambda state: state["holder_count"] == 0)
    last = client.query("bench")["last_holder"]
    assert (last["pid"], last["ended"]) == (pid, "owner_died")


def test_nothing_is_left_of_a_reservation_that_is_refused(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("bench")
    done = lockctl("acquire", "bench", "--for", "4h", "-w", "0")
    assert done.returncode == 75
    assert [x["name"] for x in client.list_sessions()] == ["the test"]


def test_nothing_is_left_of_a_reservation_that_is_interrupted(
    lockctl: Lockctl, client: Client
) -> None:
    grant = client.acquire("bench")
    waiting = lockctl.start("acquire", "bench", "--for", "4h")
    state = ask_until(client, "bench", lambda state: state["waiter_count"] == 1)
    pidfd = os.pidfd_open(state["waiters"][0]["pid"])
    waiting.send_signal(signal.SIGKILL)
    wait_for_exit(pidfd)
    client.release(grant)
    ask_until(client, "bench", lambda state: state["holder_count"] == 0)


def test_lock_is_free_again_if_nothing_can_sleep(
    lockctl: Lockctl, client: Client
) -> None:
    lockctl.env["PATH"] = "/nowhere"
    done = lockctl("acquire", "bench", "--for", "4h")
    assert (done.returncode, done.stdout) == (69, "")
    assert "cannot run 'sleep': No such file" in done.stderr
    ask_until(client, "bench", lambda state: state["holder_count"] == 0)


@pytest.mark.parametrize(
    "time", ["0", "0.5", "-1", "4 h", "h", "4w", "1e3", "1d2h", "9" * 11, "99999d", ""]
)
def test_time_that_is_none_is_64(lockctl: Lockctl, time: str) -> None:
    done = lockctl("acquire", "bench", f"--for={time}")
    assert done.returncode == 64
    assert f"'{time}' is not a time such as 90, 30m, 4h or 2d" in done.stderr


def test_reservation_names_no_other_process(lockctl: Lockctl) -> None:
    done = lockctl("acquire", "bench", "--for", "4h", "--owner-pid", os.getpid())
    assert done.returncode == 64
    assert "or reserve the lock with --for" in done.stderr


def test_only_the_process_of_a_reservation_is_ended(
    process: subprocess.Popen[bytes],
) -> None:
    assert not reserve.end(process.pid)
    script = "import sys; print('ready', flush=True); sys.stdin.read()"
    env = {reserve.MARK: str(process.pid)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # It has inherited the mark of another process.
        assert not reserve.end(child.pid)
        child.communicate()
        assert child.returncode == 0
    assert not reserve.end(child.pid)
    assert process.poll() is None
