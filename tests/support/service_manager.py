"""A service manager for tests: sockets, a descriptor store, a new start after a kill.

As much of systemd as surviving takes (sd_listen_fds(3), sd_notify(3)), in this process,
with the store of `lockd keep`: tests can look at what is stored, and decide when the
daemon is started.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lockd.keep.descriptor_store import CAPACITY, DescriptorStore
from support.nursery import DAEMONS, execute
from support.wire_client import PATIENCE


class ServiceManager:
    """Runs one lockd as a service, in a directory; see `DaemonProcess`."""

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        checks: bool = True,
        executed: bool = False,
        program: Sequence[str] = (sys.executable, "-m", "lockd.daemon.main"),
    ) -> None:
        self._program = program
        self._popen = execute if executed else DAEMONS.popen
        self.directory = directory
        self._checks = checks
        self.config = directory / "lockd.toml"
        self.config.write_text(config)
        self.socket = directory / "lockd.sock"
        self.admin_socket = directory / "admin.sock"
        self.virtlockd_socket = directory / "virtlockd.sock"
        self._store = DescriptorStore(str(directory / "notify"))
        self._store.socket.settimeout(PATIENCE)
        self.listeners = {
            "client": self._listen(self.socket),
            "admin": self._listen(self.admin_socket),
            "virtlockd": self._listen(self.virtlockd_socket),
        }
        self.said: list[str] = []
        self._log = (directory / "log").open("a")
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(1_000)
        return sock

    @property
    def stored(self) -> dict[str, int]:
        """What the daemon has stored, by name."""
        return self._store.kept

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True, prefix: tuple[str, ...] = ()) -> None:
        """Starts the daemon with what it had stored, and waits until it is ready."""
        passed = {name: sock.fileno() for name, sock in self.listeners.items()}
        passed |= self.stored
        environment = os.environ | {
            "LISTEN_FDS": str(len(passed)),
            "LISTEN_FDNAMES": ":".join(passed),
            "NOTIFY_SOCKET": self._store.address,
            "LOCKD_KEEP": str(CAPACITY),
            "LOCKD_CHECK_INVARIANTS": str(int(self._checks)),
        }
        environment.pop("JOURNAL_STREAM", None)
        daemon = [*self._program, f"--config={self.config}"]
        daemon.append(f"--state-dir={self.directory / 'state'}")
        self._process = self._popen(
            [*prefix, *daemon],
            listen_fds=tuple(passed.values()),
            stderr=self._log,
            env=environment,
            text=True,
        )
        if wait:
            self.wait_until("READY=1")

    def wait_until(self, assignment: str) -> None:
        """Waits until the daemon says something, and stores what it wants stored."""
        while assignment not in self.hear():
            pass

    def hear(self) -> list[str]:
        """Waits for the next message of the daemon."""
        notice = self._store.hear(self.pid)
        assert notice.get("FDPOLL", "0") == "0"
        lines = [f"{name}={value}" for name, value in notice.items()]
        self.said += lines
        return lines

    def drain(self) -> None:
        """Takes what the daemon has said up to now."""
        self._store.socket.setblocking(False)
        try:
            while True:
                self.hear()
        except BlockingIOError:
            pass
        finally:
            self._store.socket.settimeout(PATIENCE)

    def kill(self) -> None:
        """Ends the daemon as a crash does."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self.drain()

    def kill_and_start(self) -> None:
        """Ends it, and starts another one."""
        self.kill()
        self.start()

    def upgrade(self) -> None:
        """Has the daemon give way to a new program."""
        os.kill(self.pid, signal.SIGUSR1)
        self.wait_until("READY=1")

    def wait(self) -> int:
        """Waits until the daemon ends by itself; returns its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout=PATIENCE)
        self.drain()
        return status

    def stop(self) -> int:
        """Ends the daemon as `systemctl stop` and `restart` do, without a new start."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def log(self) -> str:
        """Returns what the daemons have logged."""
        return (self.directory / "log").read_text()

    def wait_for_log(self, words: str, count: int = 1) -> None:
        """Waits until the daemons have logged something so many times, and never more.

        A daemon answers before its line is written, which a thread of its own does.
        """
        until = time.monotonic() + PATIENCE
        while self.log().count(words) < count:
            assert time.monotonic() < until, self.log()
            time.sleep(0.001)
        assert self.log().count(words) == count

    def close(self) -> None:
        """Leaves nothing behind; a daemon with a defect fails the test."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            self.kill()
        self._store.close()
        self._log.close()
        for sock in self.listeners.values():
            sock.close()
        assert "Traceback" not in self.log(), self.log()
