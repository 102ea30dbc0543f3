"""`lockctl watch`: what happens, as it happens, through the end of the daemon."""

import json
import os
import signal
import subprocess
from pathlib import Path
from pwd import getpwuid
from typing import Any

import pytest

from ctl.processes import LIMIT, LOCKCTL, Lockctl, Terminal, line_of
from lockd import Client, connect
from support.asking import ask_until
from support.daemon_process import DaemonProcess
from support.service_manager import ServiceManager


def next_event(watcher: subprocess.Popen[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line_of(watcher))
    return found


def test_events_are_told_in_columns_when_piped(
    lockctl: Lockctl, client: Client
) -> None:
    watcher = lockctl.start("watch")
    assert line_of(watcher).split("\t")[1:] == ["watching", *"-------"]
    grant = client.acquire("job", mode="shared")
    client.release(grant)
    granted, released = (line_of(watcher).split("\t")[1:] for _ in range(2))
    owner = ["the test", str(os.getpid()), getpwuid(os.getuid()).pw_name]
    token = str(grant.fencing_token)
    assert granted == ["granted", "default", "job", "shared", *owner, token]
    assert released == ["released", "default", "job", "shared", *owner, "released"]


def test_only_what_happens_to_one_name_is_told(
    lockctl: Lockctl, client: Client
) -> None:
    watcher = lockctl.start("watch", "--json", "--name", "b", "default")
    assert next_event(watcher)["event"] == "watching"
    client.release(client.acquire("a"))
    client.acquire("b")
    assert next_event(watcher)["resource"] == "b"


def test_what_happens_to_a_file_is_told_however_it_is_spelled(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    for spelled in ("./disk.img", f"{tmp_path}/../{tmp_path.name}/disk.img"):
        watcher = lockctl.start("watch", "--json", "--name", spelled, cwd=tmp_path)
        assert next_event(watcher)["event"] == "watching"
        client.release(client.acquire(str(disk)))
        assert next_event(watcher)["resource"] == str(disk)
    assert lockctl("watch", "direct", "--name", "").returncode == 64


def test_events_are_sentences_on_a_terminal(lockctl: Lockctl, client: Client) -> None:
    terminal = Terminal((*LOCKCTL, "watch"), lockctl.env)
    terminal.wait_for("Watching. Ctrl-C ends it.")
    grant = client.acquire("job")
    terminal.wait_for(f"granted   job exclusive  the test (pid {os.getpid()}, ")
    terminal.wait_for(f"token {grant.fencing_token}")
    client.break_grant(grant.fencing_token, "test")
    terminal.wait_for("(broken)")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.wait() == -signal.SIGINT


def test_watch_goes_on_with_the_next_daemon_and_says_that_it_missed_something(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    watcher = lockctl.start("watch", "--json")
    assert next_event(watcher)["epoch"] == 1
    for epoch in (2, 3):
        lockd.kill()
        lockd.start()
        again = next_event(watcher)
        assert (again["event"], again["epoch"]) == ("watching", epoch)
        assert again["missed"]
        with connect(lockd.socket) as client:
            client.acquire("job")
        assert next_event(watcher)["event"] == "granted"
        assert next_event(watcher)["cause"] == "disconnected"
    watcher.kill()
    assert watcher.stderr is not None
    said = watcher.stderr.read().splitlines()
    assert said[:2] == [
        "lockctl: the daemon is gone; waiting for the next one",
        "lockctl: watching again, epoch 2 after 1",
    ]


def test_watch_misses_nothing_where_the_daemon_is_kept(tmp_path: Path) -> None:
    manager = ServiceManager(tmp_path)
    manager.start()
    try:
        lockctl = Lockctl(str(manager.socket))
        watcher = lockctl.start("watch", "--json")
        assert next_event(watcher)["event"] == "watching"
        with connect(manager.socket) as client:
            client.acquire("a")
            assert next_event(watcher)["resource"] == "a"
            manager.kill_and_start()
            client.acquire("b")
            event = next_event(watcher)
            assert (event["event"], event["resource"]) == ("granted", "b")
        lockctl.end_all()
    finally:
        manager.close()


def test_watch_ends_with_its_reader_though_nothing_happens(
    lockctl: Lockctl, client: Client
) -> None:
    """As in `lockctl watch | head -n 1` and in `grep -q`."""
    watcher = lockctl.start("watch")
    line_of(watcher)
    assert watcher.stdout is not None
    watcher.stdout.close()
    assert watcher.wait(LIMIT) == -signal.SIGPIPE


def test_watch_ends_with_its_reader_while_the_daemon_is_away(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    watcher = lockctl.start("watch")
    line_of(watcher)
    lockd.kill()
    assert watcher.stderr is not None
    assert "the daemon is gone" in watcher.stderr.readline()
    assert watcher.stdout is not None
    watcher.stdout.close()
    assert watcher.wait(LIMIT) == -signal.SIGPIPE


def test_watch_into_a_file_has_no_reader_to_lose(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        watcher = subprocess.Popen([*LOCKCTL, "watch"], env=lockctl.env, stdout=file)
    try:
        for told in ("watching", "granted"):
            while told not in log.read_text():
                assert watcher.poll() is None
            client.acquire(told)
        assert watcher.poll() is None
    finally:
        watcher.kill()
        watcher.wait(LIMIT)


def test_watch_of_a_lockspace_that_is_not_there_is_64(lockctl: Lockctl) -> None:
    assert lockctl("watch", "nowhere").returncode == 64


def test_wait_ends_when_the_lock_is_free(lockctl: Lockctl, client: Client) -> None:
    assert lockctl("wait", "job").returncode == 0
    grant = client.acquire("job")
    waiting = lockctl.start("wait", "job")
    sessions = client.list_sessions()
    while len(sessions) < 2:
        sessions = client.list_sessions()
    # It does not take it, nor stands in line for it.
    client.release(client.acquire("other"))
    assert waiting.poll() is None
    client.release(grant)
    assert waiting.wait(30) == 0
    assert client.query("job")["last_holder"]["fencing_token"] == grant.fencing_token


def test_wait_goes_on_while_somebody_else_is_next(
    lockctl: Lockctl, client: Client
) -> None:
    grant = client.acquire("job")
    next_one = lockctl.start("run", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    waiting = lockctl.start("wait", "job", "-w", "1000")
    while len(client.list_sessions()) < 3:
        pass
    client.release(grant)
    ask_until(client, "job", lambda state: state["holder_count"] == 1)
    assert waiting.poll() is None
    next_one.communicate("")
    assert waiting.wait(30) == 0


def test_wait_that_takes_too_long_is_75_and_says_who_is_in_the_way(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("job")
    done = lockctl("wait", "-w", "0.1", "job")
    assert done.returncode == 75
    assert "'job' was not free within 0.1 s: held for " in done.stderr
    assert f"by the test, pid {os.getpid()}, " in done.stderr
    assert lockctl("wait", "-w", "0", "job").returncode == 75
    assert lockctl("wait", "-w", "0", "free").returncode == 0


@pytest.mark.parametrize("option", ["-1", "x", "inf"])
def test_wait_for_no_number_of_seconds_is_64(lockctl: Lockctl, option: str) -> None:
    assert lockctl("wait", f"--timeout={option}", "job").returncode == 64
