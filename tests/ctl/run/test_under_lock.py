"""The lock lasts as long as the command, whatever ends in between."""

import os
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import (
    LIMIT,
    LOCKCTL,
    Lockctl,
    Terminal,
    end_input,
    line_of,
    wait_for_exit,
)
from lockd import Client, connect
from support.asking import ask_until
from support.daemon_process import DaemonProcess


@pytest.mark.parametrize("script", ["exit 0", "exit 3", "kill -9 $$"])
def test_end_of_the_command_is_told_as_a_release(
    lockctl: Lockctl, client: Client, script: str
) -> None:
    with client.watch() as events:
        lockctl("run", "job", "--", "sh", "-c", script)
        told = [next(events) for _ in range(2)]
    assert [event["event"] for event in told] == ["granted", "released"]
    assert told[-1]["cause"] == "released"


def test_lock_that_is_broken_by_ending_the_command_is_76(
    start_daemon: StartDaemon,
) -> None:
    killing = '[lockspaces.killing]\nkind = "memory"\non_disconnect = "kill"\n'
    lockd = start_daemon(killing)
    lockctl = Lockctl(str(lockd.socket))
    process = lockctl.start(
        *("run", "--lockspace", "killing", "-c", "echo ready; exec sleep 60", "job")
    )
    assert line_of(process) == "ready"
    with connect(lockd.socket) as admin:
        (holder,) = admin.query("job", lockspace="killing")["holders"]
        admin.break_grant(holder["fencing_token"], "the disk is on fire")
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 76
    assert "the disk is on fire" in errors


def test_lockctl_killed_while_waiting_leaves_the_queue_and_runs_nothing(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    client.acquire("job")
    process = lockctl.start("run", "job", "--", "touch", mark)
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    owner = os.pidfd_open(state["waiters"][0]["pid"])
    process.kill()
    wait_for_exit(owner)
    ask_until(client, "job", lambda state: state["waiter_count"] == 0)
    assert not mark.exists()


def test_lock_outlives_a_killed_lockctl_as_long_as_its_command(
    lockctl: Lockctl, client: Client
) -> None:
    process = lockctl.start("run", "-c", "echo ready; cat", "job")
    assert line_of(process) == "ready"
    process.kill()
    process.wait(LIMIT)
    # Only now is its session certainly gone.
    ended = [session["pid"] for session in client.list_sessions()]
    while process.pid in ended:
        ended = [session["pid"] for session in client.list_sessions()]
    assert lockctl("run", "-n", "job", "--", "true").returncode == 75
    end_input(process)
    ask_until(client, "job", lambda state: not state["holders"])


def test_daemon_that_goes_during_the_wait_is_69(
    lockctl: Lockctl, client: Client, lockd: DaemonProcess, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    client.acquire("job")
    process = lockctl.start("run", "job", "--", "touch", mark)
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    lockd.stop()
    assert process.wait(LIMIT) == 69
    assert not mark.exists()


def test_waiting_is_explained_on_a_terminal(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("job")
    terminal = Terminal((*LOCKCTL, "run", "job", "--", "true"), lockctl.env)
    terminal.wait_for("lockctl: waiting for 'job' (1st in queue; held for ")
    terminal.wait_for(f"by the test, pid {os.getpid()}, uid {os.getuid()})")
    client.release(grant)
    assert terminal.wait() == 0


def test_verbose_says_what_was_got(lockctl: Lockctl) -> None:
    done = lockctl("run", "-v", "job", "--", "true")
    assert done.stderr.startswith("lockctl: got 'job' after 0.0")
