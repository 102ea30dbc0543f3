"""`lockd keep` with the real daemon: what its clients see when it dies."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.wire_client import PATIENCE, WireClient

LOCKD = (sys.executable, "-c", "from lockd.__main__ import lockd; lockd()")


class KeptDaemon:
    """A daemon under `lockd keep`."""

    def __init__(self, directory: Path, *words: str, stderr: int | None = None) -> None:
        self.path = directory / "lockd.sock"
        self.log = directory / "log"
        options = [f"--socket={self.path}", f"--state-dir={directory / 'state'}"]
        options += [f"--admin-socket={directory / 'admin.sock'}"]
        with self.log.open("w") as log:
            self.keeper = subprocess.Popen(
                [*LOCKD, "keep", *words, *options],
                stderr=stderr or log,
                # One that is killed leaves its directory behind.
                env=os.environ | {"TMPDIR": str(directory)},
            )

    def connect(self) -> WireClient:
        """Connects as soon as it listens."""
        while True:
            assert self.keeper.poll() is None, self.log.read_text()
            try:
                return WireClient(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                os.sched_yield()

    def stop(self) -> int:
        self.keeper.send_signal(signal.SIGTERM)
        return self.keeper.wait(PATIENCE)


Start = Callable[..., KeptDaemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[KeptDaemon] = []

    def start(*words: str, **how: int) -> KeptDaemon:
        started.append(KeptDaemon(tmp_path, *words, **how))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.keeper.poll() is None:
            daemon.stop()
        assert "Traceback" not in daemon.log.read_text()


def kept_by(client: WireClient) -> tuple[int, str | None]:
    said = client.call("statistics")
    return said["pid"], said["kept"]["by"]


@pytest.mark.parametrize("words", [(), ("--", *LOCKD)])
def test_nothing_is_lost_when_the_daemon_is_killed(
    words: tuple[str, ...], start: Start
) -> None:
    daemon = start(*words)
    with daemon.connect() as holder, daemon.connect() as waiter:
        grant = holder.call("acquire", resource="backup")["grant"]
        asked = waiter.send("acquire", resource="backup")
        for _ in range(3):
            pid, by = kept_by(holder)
            assert by == "lockd keep"
            os.kill(pid, signal.SIGKILL)
        with daemon.connect() as other:
            refusal = other.refusal("acquire", resource="backup", timeout=0)
            assert refusal.code == "busy"
            token = other.call("statistics")["last_fencing_token"]
            assert token == grant["fencing_token"]
        holder.call("release", resource="backup")
        assert waiter.result(asked)["grant"]["fencing_token"] > grant["fencing_token"]


def test_nothing_is_lost_by_an_upgrade_and_a_kill_after_it(start: Start) -> None:
    daemon = start()
    with daemon.connect() as client:
        client.call("acquire", resource="backup")
        daemon.keeper.send_signal(signal.SIGUSR1)
        while client.call("statistics")["upgrades"] == 0:
            pass
        pid, _ = kept_by(client)
        os.kill(pid, signal.SIGKILL)
        assert kept_by(client) != (pid, "lockd keep")
        assert client.call("statistics")["held"] == 1


def test_client_that_comes_between_two_daemons_waits(start: Start) -> None:
    daemon = start()
    with daemon.connect() as client:
        pid, _ = kept_by(client)
        daemon.keeper.send_signal(signal.SIGSTOP)
        os.waitpid(daemon.keeper.pid, os.WUNTRACED)
        os.kill(pid, signal.SIGKILL)
        with WireClient(daemon.path) as other:
            asked = other.send("statistics")
            daemon.keeper.send_signal(signal.SIGCONT)
            other.result(asked)


def test_stop_leaves_no_socket_behind(start: Start, tmp_path: Path) -> None:
    daemon = start()
    with daemon.connect() as client:
        pid, _ = kept_by(client)
        os.kill(pid, signal.SIGKILL)
        kept_by(client)
        assert daemon.stop() == 0
        assert client.socket.recv(1_000) == b""
    assert not list(tmp_path.glob("*.sock*"))


def test_daemon_whose_keeper_was_killed_runs_on_and_says_so(start: Start) -> None:
    daemon = start()
    with daemon.connect() as client:
        client.call("acquire", resource="backup")
        daemon.keeper.kill()
        daemon.keeper.wait()
        pid, by = kept_by(client)
        assert by is None
        assert client.call("statistics")["held"] == 1
        os.kill(pid, signal.SIGTERM)
        assert client.socket.recv(100) == b""


def test_invalid_configuration_is_told_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "lockd.toml").write_text("nonsense = 1")
    daemon = start(f"--config={tmp_path / 'lockd.toml'}")
    assert daemon.keeper.wait(PATIENCE) == 78
    assert daemon.log.read_text().count("nonsense") == 1


def test_second_keeper_leaves_the_socket_of_the_first_alone(
    start: Start, tmp_path: Path
) -> None:
    first = start()
    with first.connect() as client:
        assert start().keeper.wait(PATIENCE) == 78
        assert (tmp_path / "lockd.sock").exists()
        kept_by(client)
        with WireClient(first.path) as other:
            other.call("statistics")


def test_control_c_at_a_terminal_stops_all(start: Start, tmp_path: Path) -> None:
    keeper, terminal = pty.openpty()
    program = [*LOCKD, "keep", f"--socket={tmp_path / 'lockd.sock'}"]
    program.append(f"--state-dir={tmp_path / 'state'}")
    # A daemon in the background of a terminal is stopped when it writes, with this.
    subprocess.run(["stty", "tostop"], stdin=terminal, check=True)
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *program],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        said = b""
        while b"serves at" not in said or b"locks" in said:
            said += os.read(keeper, 1_000)
        os.write(keeper, b"\x03")
        assert process.wait(PATIENCE) == 0
    os.close(keeper)
    assert not list(tmp_path.glob("*.sock"))


def test_help_says_what_it_does() -> None:
    shown = subprocess.run(
        [*LOCKD, "keep", "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("usage: lockd keep [OPTION...]")
    assert "survives crashes" in shown.stdout


def test_command_after_dashes_must_be_there() -> None:
    shown = subprocess.run([*LOCKD, "keep", "--"], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (
        1,
        "lockd keep: the command after -- is missing\n",
    )
