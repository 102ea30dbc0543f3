"""The daemon as a service: reloading, idle exit, and what systemd is told."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import StartDaemon
from daemon_process import DaemonProcess
from wire_client import WireClient

PATIENCE = 30


class Manager:
    """The end of the notification socket that systemd would have."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)

    def wait_for(self, part: str) -> str:
        """Waits until something is told."""
        while True:
            told = self.socket.recv(4096).decode()
            if part in told:
                return told


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def test_manager_hears_of_the_whole_life(
    manager: Manager, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    manager.wait_for("READY=1")
    manager.wait_for("STATUS=0 held, 0 waiting, 0 sessions")
    with WireClient(daemon.socket) as client:
        client.acquire("a")
        manager.wait_for("STATUS=1 held, 0 waiting, 1 sessions")
        os.kill(daemon.pid, signal.SIGHUP)
        manager.wait_for("RELOADING=1\nMONOTONIC_USEC=")
        manager.wait_for("READY=1")
        os.kill(daemon.pid, signal.SIGUSR1)
        manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        client.call("release", resource="a")
    os.kill(daemon.pid, signal.SIGTERM)
    manager.wait_for("STOPPING=1")


def test_loop_pets_the_watchdog(
    manager: Manager, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    daemon = start_daemon()
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")
    daemon.upgrade()
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")


def test_reload_counts_at_once(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.acquire("a")
        lockd.config.write_text("[lockspaces.new]\nkind = 'memory'\n")
        lockd.reload()
        client.acquire("a", lockspace="new")
        client.call("release", resource="a")
    lockd.config.write_text("")
    lockd.reload()
    assert any(
        "[lockspaces.new] is served until the next start" in x for x in lockd.said
    )
    with WireClient(lockd.socket) as client:
        client.acquire("a", lockspace="new")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 1\n", 'there is no key "colour"'),
        (
            "[lockspaces.good]\nkind = 'memory'\n"
            "[lockspaces.bad]\nkind = 'directory'\npath = '/no/such'\n",
            "No such file",
        ),
    ],
)
def test_bad_configuration_changes_nothing(
    manager: Manager, start_daemon: StartDaemon, text: str, why: str
) -> None:
    daemon = start_daemon("[limits]\nlocks_per_session = 1\n")
    daemon.config.write_text(text)
    os.kill(daemon.pid, signal.SIGHUP)
    assert why in daemon.wait_for_line("the configuration stays as it was")
    manager.wait_for("the configuration stays as it was")
    with WireClient(daemon.socket) as client:
        client.acquire("a")
        assert client.refusal("acquire", resource="b").code == "limit"
        names = [x["name"] for x in client.call("list_lockspaces")["lockspaces"]]
        assert names == ["default", "direct"]


def test_idle_daemon_ends_and_a_busy_one_does_not(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    process = subprocess.Popen(
        [*daemon.command, "--timeout=0.5"], stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert "serves at" in process.stderr.readline()
        with WireClient(daemon.socket) as client:
            client.acquire("a")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            client.call("release", resource="a")
        assert process.wait(PATIENCE) == 0
        assert "nobody needed it" in process.stderr.read()
    assert not daemon.socket.exists()


@pytest.mark.parametrize("timeout", ["0", "-1", "x"])
def test_timeout_must_be_seconds(timeout: str, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    done = subprocess.run(
        [*daemon.command, f"--timeout={timeout}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "--timeout" in done.stderr
