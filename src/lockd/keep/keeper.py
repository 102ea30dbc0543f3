"""The parent of a daemon: starts it again after a crash, with what it had stored.

It is the part of a service manager that surviving a crash takes, for a container or a
terminal. Everything that can fail is in the daemon. The keeper holds descriptors, and
reads none of them.
"""

import fcntl
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from typing import Final, NoReturn

from lockd.keep.descriptor_store import CAPACITY, DescriptorStore

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""

WATCHDOG: Final = 30.0
"""After how many seconds without a sign of life a daemon hangs. It gives one twice as
often (sd_watchdog_enabled(3)). lockd.service has the same time."""

SLOWEST_START: Final = 90.0
"""After how many seconds a daemon that does not serve yet hangs: as in systemd."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Seconds before the next start, from the second one in a row on that failed before it
served. Each pause is twice the one before."""

LONGEST_PLACE: Final = 80
"""Bytes of the path below which the socket is: its own has 107 at most (unix(7))."""

MOST_AT_ONCE: Final = 64
"""How many notifications are heard before signals and the end of the daemon are."""

PASSED_ON: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
STOPPING: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""After these, the end of the daemon is the end of the keeper."""

EXIT_CONFIG: Final = 78
"""Somebody must mend the configuration: a new start would not."""

EXIT_CANNOT_EXECUTE: Final = 126
EXIT_NOT_FOUND: Final = 127


class Keeper:
    """Runs a daemon until it is stopped.

    Args:
        name: what messages call it.
        command: the program and its arguments.
        watchdog: after how many seconds without a notification it is killed.
    """

    def __init__(
        self, name: str, command: list[str], watchdog: float = WATCHDOG
    ) -> None:
        self._name = name
        self._command = command
        self._watchdog = watchdog
        self._place = _private_directory()
        self._store = DescriptorStore(f"{self._place}/notify" if self._place else "")
        self._store.socket.setblocking(False)
        self._signals, self._wake = socket.socketpair()
        for end in self._signals, self._wake:
            end.setblocking(False)
        self._pid = 0
        self._began = 0.0
        self._heard_at = 0.0
        self._serves = self._has_served = False
        self._is_stopping = False
        self._failed_starts = 0

    def run(self) -> int:
        """Runs the daemon, and every successor. Returns the exit status of the last."""
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, _only_wake)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._store.socket, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        try:
            self._start()
            while True:
                poll.poll(max(0, self._due() - time.monotonic()) * 1_000)
                self._hear()
                self._pass_on()
                status = self._reap()
                if status is not None:
                    return status
                if time.monotonic() < self._due():
                    continue
                if self._pid:
                    _say(f"{self._name} (pid {self._pid}) hangs: killing it")
                    self._heard_at = time.monotonic()
                    self._signal(signal.SIGKILL)
                else:
                    self._start()
        finally:
            self._store.close()
            if self._place:
                shutil.rmtree(self._place, ignore_errors=True)

    def _due(self) -> float:
        """Returns when the next daemon starts, or when this one counts as hung."""
        if self._pid:
            limit = self._watchdog if self._serves else SLOWEST_START
            return self._heard_at + limit
        return self._began + pause_after(self._failed_starts)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            for _ in range(MOST_AT_ONCE):
                notice = self._store.hear(self._pid)
                if notice:
                    self._heard_at = time.monotonic()
                    self._serves |= notice.get("READY") == "1"
                    self._has_served |= self._serves

    def _pass_on(self) -> None:
        with suppress(BlockingIOError):
            for number in self._signals.recv(4_096):
                if number in PASSED_ON:
                    self._is_stopping |= number in STOPPING
                    self._signal(number)

    def _signal(self, number: int) -> None:
        if self._pid:
            os.kill(self._pid, number)

    def _reap(self) -> int | None:
        """Waits for all children that have ended. As PID 1 it is given those of others.

        Returns:
            The exit status if no other daemon shall start, else None.
        """
        last = None
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._pid:
                    last = self._ended(os.waitstatus_to_exitcode(ended[1]))
        if last is None and self._is_stopping and not self._pid:
            return 0
        return last

    def _ended(self, code: int) -> int | None:
        self._hear()  # its last words
        how = f"ended with status {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        how = f"{self._name} (pid {self._pid}) {how}"
        self._pid = 0
        # A daemon that never served has left nothing to keep.
        if self._is_stopping or not self._has_served or code in (0, EXIT_CONFIG):
            if code and not self._is_stopping:
                _say(how)
            return code if code >= 0 else 128 - code
        self._failed_starts = 0 if self._serves else self._failed_starts + 1
        self._began = time.monotonic()
        _say(f"{how}: starting it again, with its locks and connections")
        return None

    def _start(self) -> None:
        self._began = self._heard_at = time.monotonic()
        self._serves = False
        kept = self._store.kept
        environment = os.environ | {
            "NOTIFY_SOCKET": self._store.address,
            "WATCHDOG_USEC": str(int(self._watchdog * 1_000_000)),
            "LOCKD_KEEP": str(CAPACITY),
            "LOCKD_KEEPER": str(os.getpid()),
            "LISTEN_FDS": str(len(kept)),
            "LISTEN_FDNAMES": ":".join(kept),
        }
        environment.pop("WATCHDOG_PID", None)
        # A signal that came to the child before it has its own actions would be told to
        # us: both have the same wake-up descriptor.
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        self._pid = os.fork()
        if self._pid == 0:
            _become(self._command, environment, list(kept.values()), mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _private_directory() -> str:
    """Makes a directory for the socket; returns "" where there is no place for one.

    Its socket is only for this user. Others could fill one that has no file, and the
    daemon's signs of life would be dropped.
    """
    try:
        if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_PLACE:
            return tempfile.mkdtemp(prefix="lockd-keep-")
    except OSError:
        pass
    return ""


def pause_after(failed_starts: int) -> float:
    """Returns how many seconds to wait after so many failed starts in a row."""
    if failed_starts < 2:
        return 0
    return min(FIRST_PAUSE * 2.0 ** min(failed_starts - 2, 10), LONGEST_PAUSE)


def _become(
    command: list[str],
    environment: dict[str, str],
    fds: list[int],
    mask: set[int | signal.Signals],
) -> NoReturn:
    """Makes this process, a child, the daemon."""
    status = EXIT_CANNOT_EXECUTE
    try:
        # Ctrl-C is for the keeper, which passes it on: the daemon gets it once.
        os.setpgid(0, 0)
        # Then a terminal would stop it for what it logs (`stty tostop`).
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        for number in (*PASSED_ON, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        above = FIRST_FD + len(fds)
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
        for place, fd in enumerate(copies, FIRST_FD):
            os.dup2(fd, place)
        environment["LISTEN_PID"] = str(os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        _say(f"{command[0]}: not found")
        status = EXIT_NOT_FOUND
    except OSError as error:
        _say(f"cannot execute {command[0]}: {error.strerror}")
    finally:
        os._exit(status)


def _only_wake(number: int, frame: object) -> None:
    """The wake-up descriptor says which signal came."""


def _say(sentence: str) -> None:
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"lockd keep: {sentence}\n".encode())
