"""A real daemon process for tests: in the foreground, on a socket of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.nursery import DAEMONS, execute
from support.wire_client import PATIENCE

READY = "serves at"


class DaemonProcess:
    """Starts, stops, kills and restarts one daemon; remembers what it said.

    Args:
        directory: where all of it is.
        config: its configuration.
        checks: whether it checks its invariants after each command.
        executed: whether it is executed, and not forked by a nursery: a test that is
            about how a daemon starts says so.
        program: the words that run it, before its options; else the source.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        checks: bool = True,
        executed: bool = False,
        program: Sequence[str] = (sys.executable, "-m", "lockd.daemon.main"),
    ) -> None:
        self._checks = checks
        self._popen = execute if executed else DAEMONS.popen
        self.directory = directory
        self.socket = directory / "lockd.sock"
        self.virtlockd_socket = directory / "virtlockd.sock"
        self.state_dir = directory / "state"
        self.config = directory / "lockd.toml"
        self.config.write_text(config)
        self.said: list[str] = []
        self.program = [*program]
        self._process: subprocess.Popen[str] | None = None

    @property
    def command(self) -> list[str]:
        return [
            *self.program,
            f"--config={self.config}",
            f"--socket={self.socket}",
            f"--virtlockd-socket={self.virtlockd_socket}",
            f"--state-dir={self.state_dir}",
        ]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, prefix: list[str] | None = None) -> None:
        """Starts it, in a wrapper if there is a `prefix`; waits until it serves."""
        environment = os.environ | {"LOCKD_CHECK_INVARIANTS": str(int(self._checks))}
        environment.pop("JOURNAL_STREAM", None)
        self._process = self._popen(
            [*(prefix or []), *self.command],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.wait_for_line(READY)

    def reload(self) -> None:
        """Has it read its configuration anew; waits until it did, or refused to."""
        os.kill(self.pid, signal.SIGHUP)
        self.wait_for_line("the configuration")

    def upgrade(self) -> None:
        """Has it give way to a new program; waits until that one serves."""
        os.kill(self.pid, signal.SIGUSR1)
        self.wait_for_line("hands over")
        self.wait_for_line(READY)

    def wait_for_line(self, part: str) -> str:
        """Waits until it says something; returns that line."""
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.rstrip("\n"))
            if part in line:
                return self.said[-1]
        raise AssertionError(f"it ended without saying {part!r}: {self.said}")

    def wait(self) -> int:
        """Waits for its end; returns its exit status."""
        assert self._process is not None
        _, rest = self._process.communicate(timeout=PATIENCE)
        self.said += (rest or "").splitlines()
        status = self._process.returncode
        self._process = None
        return status

    def stop(self) -> int:
        """Ends it cleanly; returns its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Ends it as a crash would."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Leaves nothing behind; a daemon that broke a law fails the test."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            status = self.stop()
        else:
            status = self.wait()
        assert status == 0, self.said
        assert not [line for line in self.said if "Traceback" in line], self.said
