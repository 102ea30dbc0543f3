"""`lockctl run --max-hold`: a command that runs too long is stopped, under its lock."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import Lockctl, line_of
from lockd import Client, LockLostError, connect
from support.daemon_process import DaemonProcess

LATE = (
    "lockctl: 'job' is held for longer than --max-hold (1 s); stopping the command and "
    "all that it started\n"
)

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
"""A command that only SIGKILL ends."""


@pytest.fixture
def status() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_command_that_runs_too_long_is_stopped_and_is_76(lockctl: Lockctl) -> None:
    done = lockctl("run", "--max-hold", "1", "job", "--", "sleep", "600")
    assert (done.returncode, done.stderr) == (76, LATE)


def test_command_that_ends_in_time_is_not_told(lockctl: Lockctl) -> None:
    done = lockctl("run", "--max-hold", "2h", "job", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, "")


def test_lock_is_held_until_the_command_has_ended(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    told, go = tmp_path / "told", tmp_path / "go"
    os.mkfifo(told)
    os.mkfifo(go)
    end = f"echo told > {told}; read x < {go}; exit 0"
    script = f"trap '{end}' TERM; echo ready; while :; do sleep 0.02; done"
    process = lockctl.start("run", "--max-hold", "1", "job", "-c", script)
    assert line_of(process) == "ready"
    assert told.read_text() == "told\n"
    (holder,) = client.query("job")["holders"]
    assert holder["overdue"]
    go.write_text("\n")
    assert process.wait() == 76
    assert client.query("job")["holders"] == []


def test_command_that_does_not_stop_is_killed(lockctl: Lockctl, client: Client) -> None:
    options = ("--max-hold", "1", "--kill-after", "0.1")
    process = lockctl.start("run", *options, "job", "-c", STUBBORN)
    assert process.wait() == 76
    assert client.query("job")["last_holder"]["outcome"] == "failed"


def test_what_it_left_behind_is_stopped_too(lockctl: Lockctl, client: Client) -> None:
    done = lockctl("run", "--max-hold", "1", "job", "-c", "sleep 600 &")
    assert (done.returncode, done.stderr) == (76, LATE)
    assert client.query("job")["holders"] == []


def test_next_holder_hears_that_it_failed(lockctl: Lockctl) -> None:
    lockctl("run", "--max-hold", "1", "job", "--", "sleep", "600")
    done = lockctl("run", "job", "-c", "echo $LOCKD_PREVIOUS")
    assert done.stdout == "failed\n"


def test_outcome_is_reported(lockctl: Lockctl, status: tuple[int, int]) -> None:
    reader, writer = status
    options = ("--max-hold", "1", "--status-fd", writer)
    lockctl("run", *options, "job", "--", "sleep", "600", pass_fds=[writer])
    found = json.loads(os.read(reader, 65_536))
    assert (found["outcome"], found["exit_status"]) == ("overdue", 76)
    assert found["held"] >= 0.9


def test_shorter_limit_of_the_lockspace_counts(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[lockspaces.default]\nmax_hold = 0.3\n")
    lockctl = Lockctl(str(daemon.socket))
    done = lockctl("run", "--max-hold", "2h", "job", "--", "sleep", "600")
    assert done.returncode == 76
    assert "longer than max_hold of the lockspace (" in done.stderr


def test_command_is_stopped_where_overdue_locks_are_broken(
    start_daemon: StartDaemon,
) -> None:
    limit = 'max_hold = 0.3\non_overdue = "break"\n'
    daemon = start_daemon(f"[lockspaces.default]\n{limit}")
    lockctl = Lockctl(str(daemon.socket))
    for options in ((), ("--max-hold", "2h")):
        done = lockctl("run", *options, "job", "--", "sleep", "600")
        assert done.returncode == 76
        assert (
            "lost: it was broken ('held for longer than the max_hold (0.3 s) of "
            "lockspace default'); stopping the command"
        ) in done.stderr


def test_own_limit_is_named_where_overdue_locks_are_broken(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(
        '[lockspaces.default]\nmax_hold = 600\non_overdue = "break"\n'
    )
    with connect(str(daemon.socket)) as client, client.watch() as events:
        grant = client.acquire("job", max_hold=0.2)
        while next(events)["event"] != "released":
            pass
        with pytest.raises(LockLostError) as caught:
            grant.release()
    assert str(caught.value) == (
        "the lock on 'job' was lost: it was broken ('held for longer than its max_hold "
        "(0.2 s), and lockspace default breaks overdue locks')"
    )


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "soon", "0.5", "1e10", "99999d"])
def test_time_is_a_time(lockctl: Lockctl, wrong: str) -> None:
    done = lockctl("run", f"--max-hold={wrong}", "job", "--", "true")
    assert done.returncode == 64
    limits = "is not a time such as 90, 30m, 4h or 2d, from 1 s to 11574d"
    assert limits in " ".join(done.stderr.split())


def test_longest_time_is_a_time(lockctl: Lockctl) -> None:
    assert lockctl("run", "--max-hold=11574d", "job", "--", "true").returncode == 0
    assert lockctl("run", "--max-hold=11575d", "job", "--", "true").returncode == 64


def test_only_the_command_is_said_to_be_stopped_with_close(lockctl: Lockctl) -> None:
    done = lockctl("run", "-o", "--max-hold", "1", "job", "--", "sleep", "600")
    assert done.returncode == 76
    assert done.stderr.endswith("--max-hold (1 s); stopping the command\n")


def test_nobody_is_left_to_stop_a_command_in_place(lockctl: Lockctl) -> None:
    done = lockctl("run", "-F", "--max-hold", "1h", "job", "--", "true")
    assert done.returncode == 64
    assert "no lockctl is left to stop COMMAND" in done.stderr


# The mark.


def overdue(sock: str) -> None:
    """Waits until a lock is overdue."""
    with connect(sock) as client, client.watch() as events:
        if not any(x["overdue"] for x in client.query("job")["holders"]):
            next(event for event in events if event["event"] == "overdue")


def test_hold_says_so_and_goes_on(lockctl: Lockctl, sock: str, client: Client) -> None:
    process = lockctl.start("hold", "job", "--max-hold", "1")
    assert line_of(process) == "held"
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == "lockctl: 'job' is held for longer than --max-hold (1 s)\n"
    assert client.query("job")["holders"][0]["overdue"]
    process.terminate()
    assert process.wait() == 0


def test_hold_names_the_shorter_limit_of_the_lockspace(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[lockspaces.default]\nmax_hold = 0.3\n")
    lockctl = Lockctl(str(daemon.socket))
    try:
        process = lockctl.start("hold", "job", "--max-hold", "2h")
        assert line_of(process) == "held"
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "'job' is held for longer than max_hold of the lockspace (" in said
    finally:
        lockctl.end_all()


def test_overdue_is_marked_where_locks_are_shown(
    lockctl: Lockctl, sock: str, lockd: DaemonProcess, sleepers: list[int]
) -> None:
    options = ("--for", "1h", "--max-hold", "1", "--json")
    done = lockctl("acquire", "job", *options)
    sleepers.append(json.loads(done.stdout)["pid"])
    assert lockctl("list").stdout.rstrip("\n").split("\t")[-2] == "-"
    overdue(sock)
    assert lockctl("list").stdout.rstrip("\n").split("\t")[-2] == "overdue"
    assert lockctl("show", "job").stdout.split("\t")[0] == "holds, overdue"
    (found,) = json.loads(lockctl("list", "--json").stdout)["resources"]
    assert found["holders"][0]["overdue"] is True
    assert lockctl("release", "job").returncode == 0
