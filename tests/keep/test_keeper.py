"""The keeper runs small daemons that tell what happens to them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockd.keep.keeper import FIRST_PAUSE, LONGEST_PAUSE, pause_after
from support.wire_client import PATIENCE

KEEP = """
import sys
from lockd.keep.keeper import Keeper
watchdog, *command = sys.argv[1:]
sys.exit(Keeper("toy", command, float(watchdog)).run())
"""

PRELUDE = """
import array, os, signal, socket, sys, time
from lockd.notify import notify

def tell(word):
    os.write(1, f"{word}\\n".encode())

def wait():
    while True:
        signal.pause()

tell(os.getpid())
names = os.environ["LISTEN_FDNAMES"].split(":")
passed = dict(zip(names, range(3, 3 + int(os.environ["LISTEN_FDS"]))))
"""

DAEMON = """
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LOCKD_KEEPER"] == str(os.getppid())
if "kept-a" not in passed:
    for name in "kept-a", "kept-b":
        fd = os.memfd_create(name)
        os.write(fd, name.encode())
        notify(f"FDSTORE=1\\nFDNAME={name}\\nFDPOLL=0", [fd])
else:
    for name, fd in passed.items():
        assert os.pread(fd, 10, 0) == name.encode()
    tell(f"got {' '.join(sorted(passed))}")
notify("READY=1")
tell("serves")
wait()
"""


class Kept:
    """A keeper, and what its daemons have said."""

    def __init__(
        self, directory: Path, watchdog: float = 600, prefix: tuple[str, ...] = ()
    ) -> None:
        self._script = directory / "daemon.py"
        self._errors = directory / "errors"
        self._watchdog = watchdog
        self._prefix = prefix
        self.process: subprocess.Popen[str]

    def start(self, script: str, command: tuple[str, ...] = ()) -> None:
        self._script.write_text(PRELUDE + textwrap.dedent(script))
        command = command or (sys.executable, str(self._script))
        keeper = [sys.executable, "-c", KEEP, str(self._watchdog), *command]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*self._prefix, *keeper],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def pid(self) -> int:
        """Waits for the next daemon; returns its pid."""
        return int(self.line())

    def children(self) -> list[int]:
        """Returns the pids of those that have not been waited for."""
        process = Path(f"/proc/{self.process.pid}/task/{self.process.pid}")
        return [int(pid) for pid in (process / "children").read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


Run = Callable[..., Kept]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started: list[Kept] = []

    def start(script: str = DAEMON, command: tuple[str, ...] = (), **how: Any) -> Kept:
        kept = Kept(tmp_path, **how)
        kept.start(script, command)
        started.append(kept)
        return kept

    yield start
    for kept in started:
        if kept.process.poll() is None:
            kept.end()
        assert kept.process.stdout is not None
        kept.process.stdout.close()
        assert "Traceback" not in kept.errors, kept.errors


def test_next_daemon_gets_what_the_one_before_had_stored(run: Run) -> None:
    kept = run()
    first = kept.pid()
    assert kept.line() == "serves"
    os.kill(first, signal.SIGKILL)
    second = kept.pid()
    assert second != first
    assert kept.line() == "got kept-a kept-b"
    assert kept.line() == "serves"
    assert kept.errors == (
        f"lockd keep: toy (pid {first}) was killed by SIGKILL: starting it again, "
        "with its locks and connections\n"
    )


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM, signal.SIGKILL])
def test_daemon_is_started_again_whatever_killed_it(
    number: signal.Signals, run: Run
) -> None:
    kept = run()
    daemon = kept.pid()
    assert kept.line() == "serves"
    os.kill(daemon, number)
    assert kept.pid() != daemon
    assert kept.line() == "got kept-a kept-b"
    assert f"(pid {daemon}) was killed by {number.name}" in kept.errors


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("notify('READY=1'); sys.exit(0)", 0),  # it was stopped, or had been idle
        ("notify('READY=1'); sys.exit(78)", 78),  # its configuration is invalid
        ("sys.exit(3)", 3),  # it has never served
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_keeper_ends_as_its_daemon_where_a_new_one_would_be_of_no_use(
    script: str, status: int, run: Run
) -> None:
    kept = run(script)
    assert kept.process.wait(PATIENCE) == status
    assert ("toy (pid" in kept.errors) == (status != 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_keeper_ends_when_it_is_told_to(number: signal.Signals, run: Run) -> None:
    kept = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGQUIT, lambda *_: sys.exit(5))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        notify("READY=1")
        tell("serves")
        wait()
        """
    )
    kept.pid()
    assert kept.line() == "serves"
    wanted = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGQUIT: 5}
    assert kept.end(number) == wanted[number]
    assert "lockd keep" not in kept.errors


def test_daemon_that_must_be_killed_to_stop_is_the_last(run: Run) -> None:
    kept = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: tell("no"))
        notify("READY=1")
        tell("serves")
        wait()
        """
    )
    daemon = kept.pid()
    assert kept.line() == "serves"
    kept.process.send_signal(signal.SIGTERM)
    assert kept.line() == "no"
    os.kill(daemon, signal.SIGKILL)
    assert kept.process.wait(PATIENCE) == 137


def test_each_signal_comes_once_though_it_is_for_the_whole_group(run: Run) -> None:
    kept = run(
        """
        for name in "SIGHUP", "SIGUSR1", "SIGUSR2":
            number = getattr(signal, name)
            signal.signal(number, lambda n, _: tell(signal.Signals(n).name))
        notify("READY=1")
        tell("serves")
        wait()
        """,
        prefix=("setsid",),
    )
    kept.pid()
    assert kept.line() == "serves"
    for number in signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2:
        os.killpg(kept.process.pid, number)
        assert kept.line() == number.name
    assert kept.end() == 128 + signal.SIGTERM


def test_daemon_has_the_actions_and_the_mask_of_an_executed_program(run: Run) -> None:
    kept = run(
        """
        status = dict(x.split(":", 1) for x in open("/proc/self/status"))
        tell(status["SigBlk"].strip())
        ignored = int(status["SigIgn"], 16)
        tell([n for n in range(1, 32) if ignored >> n - 1 & 1])
        notify("READY=1")
        wait()
        """
    )
    kept.pid()
    assert kept.line() == "0000000000000000"
    # The interpreter ignores two. A terminal must not stop it for what it logs.
    ours = sorted([signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU])
    assert kept.line() == str([int(x) for x in ours])


def test_daemon_that_is_silent_for_too_long_is_killed(run: Run) -> None:
    kept = run(watchdog=0.5)
    first = kept.pid()
    assert kept.line() == "serves"
    kept.pid()
    assert kept.line() == "got kept-a kept-b"
    assert f"toy (pid {first}) hangs: killing it" in kept.errors


def test_daemon_that_gives_signs_of_life_is_left_alone(run: Run) -> None:
    kept = run(
        """
        interval = int(os.environ["WATCHDOG_USEC"]) / 2_000_000
        notify("READY=1")
        for _ in range(6):
            time.sleep(interval)
            notify("WATCHDOG=1")
        sys.exit(0)
        """,
        watchdog=0.5,
    )
    assert kept.process.wait(PATIENCE) == 0
    assert kept.errors == ""


def test_daemon_may_take_longer_to_start_than_the_watchdog_has_patience(
    run: Run,
) -> None:
    kept = run(
        """
        time.sleep(2 * int(os.environ["WATCHDOG_USEC"]) / 1_000_000)
        notify("READY=1")
        sys.exit(0)
        """,
        watchdog=0.2,
    )
    assert kept.process.wait(PATIENCE) == 0


def test_keeper_can_be_stopped_between_two_daemons(run: Run) -> None:
    kept = run(
        """
        if not passed.get("kept-a"):
            notify("FDSTORE=1\\nFDNAME=kept-a\\nFDPOLL=0", [0])
            notify("READY=1")
        sys.exit(70)
        """
    )
    until = time.monotonic() + PATIENCE
    while kept.errors.count("ended with status 70") < 7:  # then it pauses for 1.6 s
        assert time.monotonic() < until
        time.sleep(0.01)
    assert kept.end() == 0


def test_pauses_grow_for_a_daemon_that_dies_at_once() -> None:
    pauses = [pause_after(n) for n in range(12)]
    assert pauses[:4] == [0, 0, FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE == pause_after(1_000_000)
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("nowhere/toy", 127, "nowhere/toy: not found"),
        ("/", 126, "cannot execute /: Permission denied"),
    ],
)
def test_command_that_cannot_be_executed(
    name: str, status: int, sentence: str, run: Run
) -> None:
    kept = run("", (name,))
    assert kept.process.wait(PATIENCE) == status
    assert f"lockd keep: {sentence}\n" in kept.errors


def test_keeper_waits_for_the_children_of_others_as_pid_1(run: Run) -> None:
    namespace = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("there are no namespaces for users here")
    kept = run(
        """
        assert os.getppid() == 1
        notify("READY=1")
        reader, writer = os.pipe()
        if not os.fork():  # its child has no parent but the keeper
            if not (orphan := os.fork()):
                os.read(reader, 1)
                os._exit(0)
            os._exit(0)
        os.wait()
        orphan = max(int(x) for x in os.listdir("/proc") if x.isdecimal())
        os.write(writer, b".")
        tell("serves")
        wait()
        """,
        prefix=(*namespace, "--kill-child", "--mount-proc"),
    )
    assert kept.pid() == 2
    assert kept.line() == "serves"
    (keeper,) = kept.children()
    until = time.monotonic() + PATIENCE
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    while len(children.read_text().split()) > 1:
        assert time.monotonic() < until, "an orphan has ended, and nobody waits for it"
        time.sleep(0.001)
    os.kill(keeper, signal.SIGTERM)


def test_socket_is_in_a_directory_of_this_user_and_goes_with_the_keeper(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    kept = run("tell(os.environ['NOTIFY_SOCKET']); notify('READY=1'); wait()")
    kept.pid()
    address = Path(kept.line())
    assert address.parent.parent == tmp_path
    assert address.parent.stat().st_mode & 0o777 == 0o700
    kept.end()
    assert not address.parent.exists()


@pytest.mark.parametrize("place", ["/none", "/tmp/" + "x" * 100])
def test_keeper_without_a_place_for_files_needs_none(
    place: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = KEEP.replace(
        "import sys", "import sys, tempfile; tempfile.tempdir = '/none'"
    )
    monkeypatch.setattr(sys.modules[__name__], "KEEP", code)
    kept = run(
        "tell(os.environ['NOTIFY_SOCKET']); notify('READY=1'); tell('x'); wait()"
    )
    kept.pid()
    assert kept.line().startswith("@")
    assert kept.line() == "x"
