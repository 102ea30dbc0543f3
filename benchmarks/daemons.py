"""Starts what is measured in a private directory, and ends it whatever happens."""

import array
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.installed import LOCKD, as_installed
from benchmarks.wires import LockdWire, VirtlockdWire

_START_SECONDS: Final = 15.0
_SLOW_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 5.0

VIRTLOCKD: Final = "/usr/sbin/virtlockd"

DIRECTORY: Final = "bench"
"""The lockspace of kind directory that every lockd here has; `default` is memory."""


LOOKING, NOT_LOOKING = "looking", "not-looking"
"""Lockspaces of kind direct: with and without a look at who else has a file locked."""


class SkipError(Exception):
    """Raised when something cannot be measured here; says what would help."""


class StartError(Exception):
    """Raised when something that should be measured does not start."""


@contextmanager
def private_directory(parent: Path) -> Iterator[Path]:
    """Makes a directory for sockets and lock files, and removes it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="lockd-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Daemon:
    """A running lockd."""

    pid: int
    socket: Path
    virtlockd_socket: Path
    locks: Path

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def wire(self, lockspace: str = "default") -> LockdWire:
        return LockdWire(self.socket, lockspace)


@contextmanager
def lockd(
    directory: Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Starts lockd with its own socket, state and lock directory.

    Args:
        directory: where to put them.
        environment: more variables.
        program: what to execute, with its first options; it may start slowly.
            Without one, what `make install` gives: other interpreters of the same
            version differ by up to a fifth, and each of their starts by as much.
    """
    directory.mkdir(exist_ok=True)
    locks = directory / "locks"
    locks.mkdir()
    config = directory / "lockd.toml"
    config.write_text(
        "[limits]\nlocks_per_session = 100000\nlocks_per_user = 1000000\n"
        f'[lockspaces.{DIRECTORY}]\nkind = "directory"\npath = "{locks}"\n'
        f'[lockspaces.{LOOKING}]\nkind = "direct"\n'
        f'[lockspaces.{NOT_LOOKING}]\nkind = "direct"\noutside = "byte"\n'
    )
    path = directory / "lockd.sock"
    command = [*(program or as_installed(LOCKD, directory / "lockd"))]
    as_virtlockd = directory / "virtlockd.sock"
    command += ["--socket", str(path), "--virtlockd-socket", str(as_virtlockd)]
    command += ["--state-dir", str(directory / "state")]
    command += ["--config", str(config)]
    environment = os.environ | (environment or {})
    patience = _SLOW_START_SECONDS if program else _START_SECONDS
    with running(command, directory / "log", environment) as process:
        wait_until_listening(path, process, directory / "log", patience)
        yield Daemon(process.pid, path, as_virtlockd, locks)


@contextmanager
def lockd_that_is_kept(
    directory: Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Starts lockd as a service manager does that keeps what is to outlive it.

    Args: those of `lockd`.
    """
    directory.mkdir()
    path = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(_SLOW_START_SECONDS if program else _START_SECONDS)
        kept: list[int] = []
        keeper = threading.Thread(target=_keep, args=(notify, kept))
        manager = {"NOTIFY_SOCKET": str(path), "LOCKD_KEEP": "64"}
        try:
            keeper.start()
            with lockd(directory, manager | dict(environment or {}), program) as daemon:
                keeper.join()
                if not kept:
                    raise StartError("nothing was given to be kept")
                yield daemon
        finally:
            keeper.join()
            for fd in kept:
                os.close(fd)


def _keep(notify: socket.socket, kept: list[int]) -> None:
    """Takes what a daemon wants to be kept, until it says that it is ready."""
    most = 16 * array.array("i").itemsize
    text = b""
    with suppress(TimeoutError):
        while b"READY=1" not in text.split(b"\n"):
            text, control, _, _ = notify.recvmsg(4_096, socket.CMSG_SPACE(most))
            for _, _, raw in control:
                kept.extend(array.array("i", raw))


@dataclass(frozen=True)
class Virtlockd:
    """A running virtlockd, and a connection to it."""

    pid: int
    socket: Path
    locks: Path
    wire: VirtlockdWire


@contextmanager
def virtlockd(directory: Path) -> Iterator[Virtlockd]:
    """Starts virtlockd on a private socket, which it takes as if from systemd."""
    if not Path(VIRTLOCKD).exists():
        raise SkipError(
            "virtlockd comes with Debian's libvirt-daemon and libvirt-daemon-system"
        )
    directory.mkdir()
    locks = directory / "locks"
    locks.mkdir()
    config = directory / "virtlockd.conf"
    config.write_text('log_outputs = "3:stderr"\n')
    path = directory / "virtlockd.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    # sd_listen_fds(3): descriptor 3, and LISTEN_PID is the process after exec.
    take_socket = 'exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@"'
    command = ["sh", "-c", take_socket, "sh", VIRTLOCKD]
    command += ["-f", str(config), "-p", str(directory / "virtlockd.pid")]
    private = {"HOME": directory, "XDG_RUNTIME_DIR": directory}
    activation = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "virtlockd.socket"}
    environment = os.environ | {k: str(v) for k, v in private.items()} | activation
    wires: list[VirtlockdWire] = []
    try:
        with running(
            # SIGTERM would make it kill the owners of all locks, this process too.
            *(command, directory / "log", environment, listener),
            end=signal.SIGKILL,
        ) as process:
            listener.close()
            wait_until_listening(path, process, directory / "log")
            wires.append(VirtlockdWire(path, locks))
            yield Virtlockd(process.pid, path, locks, wires[0])
    finally:
        # Only now, with virtlockd gone: it would kill this process for locks left.
        for wire in wires:
            wire.close()
        listener.close()


@contextmanager
def redis(directory: Path) -> Iterator[Path]:
    """Starts a Redis that keeps nothing on disk; yields its socket."""
    program = shutil.which("redis-server")
    if program is None:
        raise SkipError("Redis comes with Debian's redis-server")
    directory.mkdir()
    path = directory / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", ""]
    command += ["--appendonly", "no", "--dir", str(directory)]
    with running(command, directory / "log") as process:
        wait_until_listening(path, process, directory / "log")
        yield path


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    stdin: socket.socket | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    try:
        yield process
    finally:
        _stop(process, end)


def _stop(process: subprocess.Popen[bytes], end: signal.Signals) -> None:
    process.send_signal(end)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_listening(
    path: Path,
    process: subprocess.Popen[bytes],
    log: Path,
    patience: float = _START_SECONDS,
) -> None:
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(path))
            return
        time.sleep(0.01)
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    what = f"nobody listens on {path.name}, exit status {process.returncode}; it said:"
    raise StartError("\n".join([what, *said]))
