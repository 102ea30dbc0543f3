"""`lockctl hold`: ready when it is granted, ends when it is lost."""

import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctl.processes import LOCKCTL
from lockd import Client
from support.daemon_process import DaemonProcess
from support.wire_client import PATIENCE


@contextmanager
def holding(
    lockd: DaemonProcess, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*LOCKCTL, f"--socket={lockd.socket}", "hold", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_lock_is_held_until_told_to_stop(
    lockd: DaemonProcess, client: Client, number: signal.Signals
) -> None:
    with holding(lockd, "a", "b", "--reason=why", "--owner=the unit") as process:
        assert line(process) == "held\n"
        for name in "ab":
            (holder,) = client.query(name)["holders"]
            assert (holder["name"], holder["reason"]) == ("the unit", "why")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    client.acquire("a", timeout=0)


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM"])
def test_signal_that_is_ignored_does_not_stop_it(
    lockd: DaemonProcess, client: Client, name: str
) -> None:
    words = " ".join((*LOCKCTL, f"--socket={lockd.socket}", "hold", "a"))
    script = f"trap '' {name}; exec {words}"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        process.send_signal(signal.SIGUSR1)  # it does not handle this one
        assert process.wait(PATIENCE) == -signal.SIGUSR1


def test_manager_hears_that_it_is_ready_when_it_is_granted(
    lockd: DaemonProcess, client: Client, tmp_path: Path
) -> None:
    grant = client.acquire("a")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        address = str(tmp_path / "notify")
        with holding(lockd, "a", NOTIFY_SOCKET=address) as process:
            while not client.query("a")["waiters"]:
                pass
            assert manager.recv(1000) == b"STATUS=waits for 'a'"
            assert select.select([manager], [], [], 0)[0] == []
            client.release(grant)
            said = manager.recv(1000).decode()
            assert said.startswith("READY=1\nSTATUS=holds 'a', fencing token ")
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1\nSTATUS=released 'a'"
            assert process.wait(PATIENCE) == 0


def test_manager_hears_that_it_was_lost(
    lockd: DaemonProcess, client: Client, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        with holding(lockd, "a", NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            while b"READY=1" not in manager.recv(1000):
                pass
            (session,) = (
                x["session"]
                for x in client.list_sessions()
                if x["client"] == "lockctl hold"
            )
            client.disconnect_session(session, "maintenance")
            assert manager.recv(1000) == b"STATUS=lost 'a'"
            assert process.wait(PATIENCE) == 76


def test_loss_ends_it(lockd: DaemonProcess, client: Client) -> None:
    with holding(lockd, "a") as process:
        assert line(process) == "held\n"
        (holder,) = client.query("a")["holders"]
        client.break_grant(holder["fencing_token"], "maintenance")
        assert process.wait(PATIENCE) == 76
        assert process.stderr is not None
        assert "maintenance" in process.stderr.read()


def test_end_of_the_daemon_ends_it(lockd: DaemonProcess) -> None:
    with holding(lockd, "a") as process:
        assert line(process) == "held\n"
        lockd.kill()
        assert process.wait(PATIENCE) == 76


def test_patience_has_an_end(lockd: DaemonProcess, client: Client) -> None:
    client.acquire("a", reason="mine")
    with holding(lockd, "a", "-w", "0") as process:
        assert process.wait(PATIENCE) == 75
        assert process.stderr is not None
        assert "mine" in process.stderr.read()


def test_help_tells_its_own_exit_statuses() -> None:
    done = subprocess.run(
        [*LOCKCTL, "hold", "--help"], capture_output=True, text=True, check=True
    )
    told = re.findall(r"^  (\d+) +(.+)$", done.stdout, re.MULTILINE)
    statuses = dict(told)
    assert statuses["75"] == "busy or timed out"
    assert statuses["76"] == "the lock was lost"
    assert not {"126", "127"} & statuses.keys()
