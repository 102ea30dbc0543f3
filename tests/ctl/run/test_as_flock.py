"""`lockctl flock` beside flock(1): the same line in both, and the same comes of it."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.processes import LOCKCTL, Lockctl, line_of
from lockd import Client

FLOCK = shutil.which("flock") or "flock"

both = pytest.mark.parametrize("which", ["flock(1)", "lockctl flock"])
"""Each such test is run with flock(1) itself, which says whether it asks for too much.
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(which: str) -> tuple[str, ...]:
    return (*LOCKCTL, "flock") if which == "lockctl flock" else (FLOCK,)


@pytest.fixture
def run(command: tuple[str, ...], lockctl: Lockctl, tmp_path: Path) -> Run:
    def run(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        words = [*command, *map(str, args)]
        how: dict[str, Any] = {"cwd": tmp_path, "env": lockctl.env, "timeout": 50}
        return subprocess.run(
            words, check=False, capture_output=True, text=True, **how, **options
        )

    return run


@pytest.fixture
def start(
    command: tuple[str, ...], lockctl: Lockctl, tmp_path: Path
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts it with a shell script, and waits for the script's first line."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **options: Any) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*command, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=lockctl.env,
            **options,
        )
        started.append(process)
        assert line_of(process) == "ready"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


HELD = ("file", "sh", "-c", "echo ready; read line; exit 3")
"""A command that has the lock until a line comes."""


def is_free(place: Path, *options: str) -> bool:
    """Asks flock(1) for the kernel's lock."""
    return subprocess.run([FLOCK, "-n", *options, place, "true"]).returncode == 0


LINES: dict[str, tuple[object, ...]] = {
    "command": ("file", "echo", "a b", "-n"),
    "status": ("file", "sh", "-c", "exit 75"),
    "death": ("file", "sh", "-c", "kill $$"),
    "string": ("file", "-c", 'echo "$0 $#"; exit 4'),
    "long string": ("file", "--command", "echo yes"),
    "two strings": ("file", "-c", "echo yes", "more"),
    "no string": ("file", "-c"),
    "directory": (".", "echo", "yes"),
    "options": ("-x", "-e", "-s", "-w", "9.5", "-E", "7", "file", "echo", "yes"),
    "joined": ("-sw9", "-E7", "file", "echo", "yes"),
    "long options": ("--shared", "--wait=9", "--nb", "--close", "file", "echo", "yes"),
    "cut options": ("--excl", "--time=9", "--conf", "7", "file", "echo", "yes"),
    "dashes": ("-x", "--", "file", "echo", "--", "yes"),
    "in place": ("-F", "file", "echo", "yes"),
    "no wait": ("-w", "0", "file", "echo", "yes"),
    "nothing to run": ("file", "./nothing"),
    "not executable": ("file", "/dev/null"),
    "no directory": ("none/file", "true"),
    "no arguments": (),
    "only options": ("-x",),
    "no descriptor": ("file",),
    "closed descriptor": ("99",),
    "unknown option": ("-z", "file", "true"),
    "unknown long option": ("--zebra", "file", "true"),
    "missing value": ("-w",),
    "wrong time": ("-w", "soon", "file", "true"),
    "wrong status": ("-E", "256", "file", "true"),
    "worse status": ("-E", "x", "file", "true"),
    "both": ("-F", "-o", "file", "true"),
    "unlock": ("-u", "file", "echo", "yes"),
    "help": ("--help",),
}


@pytest.mark.parametrize("line", LINES)
def test_line_has_the_outcome_that_it_has_with_flock(
    line: str, lockctl: Lockctl, tmp_path: Path
) -> None:
    found: list[object] = []
    for command in (FLOCK,), (*LOCKCTL, "flock"):
        place = tmp_path / f"place{len(found)}"
        place.mkdir()
        words = [*command, *map(str, LINES[line])]
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=place, env=lockctl.env
        )
        assert "Traceback" not in done.stderr
        out = done.stdout if line != "help" else ""
        told = bool(done.stderr)
        found.append((done.returncode, out, told, sorted(os.listdir(place))))
    assert found[0] == found[1]


@both
def test_held_file_is_refused_and_waited_for(start: Any, run: Run) -> None:
    holder = start(*HELD)
    assert (refused := run("-n", "file", "echo", "no")).returncode == 1
    assert (refused.stdout, refused.stderr) == ("", "")
    assert run("-n", "-E", "123", "file", "echo", "no").returncode == 123
    assert run("-w", "0.05", "-E", "5", "-s", "file", "echo", "no").returncode == 5
    assert run("-n", "other", "echo", "yes").stdout == "yes\n"
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert run("-w", "40", "file", "echo", "yes").stdout == "yes\n"
    assert holder.wait() == 3


@both
def test_shared_lock_is_shared(start: Any, run: Run) -> None:
    start("-s", *HELD)
    assert run("-n", "-s", "file", "echo", "yes").stdout == "yes\n"
    assert run("-n", "file", "echo", "no").returncode == 1


@both
def test_lock_excludes_flock_and_flock_excludes_it(
    start: Any, run: Run, tmp_path: Path
) -> None:
    start(*HELD)
    assert not is_free(tmp_path / "file")
    with subprocess.Popen(
        [FLOCK, tmp_path / "other", "sh", "-c", "echo ready; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert line_of(other) == "ready"
        assert run("-n", "-E", "9", "other", "echo", "no").returncode == 9
        assert run("-w", "0.05", "-E", "9", "other", "echo", "no").returncode == 9
        other.communicate("\n")
    assert run("other", "echo", "yes").stdout == "yes\n"


@both
@pytest.mark.parametrize("option", ["-x", "-F"])
def test_lock_lasts_as_long_as_a_process_has_inherited_it(
    option: str, start: Any, run: Run, tmp_path: Path
) -> None:
    script = "exec 8<&0; sh -c 'read line <&8' >/dev/null & echo ready"
    parent = start(option, "file", "sh", "-c", script)
    assert parent.wait() == 0
    assert not is_free(tmp_path / "file")
    assert run("-n", "file", "true").returncode == 1
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert run("-w", "40", "file", "echo", "yes").stdout == "yes\n"


@both
def test_command_does_not_inherit_a_lock_that_is_closed(
    start: Any, run: Run, tmp_path: Path
) -> None:
    script = "exec 8<&0; sh -c 'read line <&8' >/dev/null & echo ready"
    parent = start("-o", "file", "sh", "-c", script)
    assert parent.wait() == 0
    assert is_free(tmp_path / "file")
    assert run("-n", "file", "echo", "yes").stdout == "yes\n"


@both
def test_killed_parent_leaves_the_lock_to_its_command(
    start: Any, run: Run, tmp_path: Path
) -> None:
    parent = start(*HELD)
    parent.kill()
    parent.wait()
    assert not is_free(tmp_path / "file")
    assert run("-n", "file", "true").returncode == 1
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert run("-w", "40", "file", "echo", "yes").stdout == "yes\n"


@both
def test_lock_of_a_descriptor_stays_with_it(run: Run, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    other = os.open(tmp_path / "file", os.O_RDWR)
    fds = {"pass_fds": [fd, other]}
    assert run("-n", "-x", str(fd), **fds).returncode == 0
    assert not is_free(tmp_path / "file")
    assert run("-n", "-E", "123", str(other), **fds).returncode == 123
    assert run("-u", str(fd), **fds).returncode == 0
    assert is_free(tmp_path / "file")
    os.close(fd)
    os.close(other)


@both
def test_verbose_tells_how_long_it_took(run: Run) -> None:
    done = run("--verbose", "file", "echo", "yes")
    told = re.sub(r"\d+\.\d{6}", "N", done.stdout)
    # flock(1) writes its lines at its end where nobody looks on.
    wanted = {"flock: getting lock took N seconds", "flock: executing echo", "yes"}
    assert {*told.splitlines()} == wanted


@both
def test_command_has_the_signals_that_flock_gives(run: Run) -> None:
    def prepare() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])

    shown = run(
        *("file", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"),
        preexec_fn=prepare,
    )
    blocked, ignored = (int(x.split()[1], 16) for x in shown.stdout.splitlines())
    assert blocked == 1 << signal.SIGUSR2 - 1
    known = (1 << 31) - 1  # beyond are signals of the C library's own
    assert ignored & known == 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGINT - 1


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_ends_with_a_signal(
    number: signal.Signals, start: Any, command: tuple[str, ...], lockctl: Lockctl,
    tmp_path: Path,
) -> None:  # fmt: skip
    start(*HELD)
    with subprocess.Popen(
        [*command, "file", "echo", "no"], cwd=tmp_path, env=lockctl.env
    ) as waiter:
        children = Path(f"/proc/{waiter.pid}/wchan")
        while "sched" not in (wchan := children.read_text()) and wchan in ("", "0"):
            if waiter.poll() is not None:
                break
            os.sched_yield()
        waiter.send_signal(number)
        assert waiter.wait(50) == -number


# What flock(1) has not.


def test_holder_and_waiter_are_known_to_lockd(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    script = ("sh", "-c", "echo ready; read line")
    holder = lockctl.start("flock", file, *script)
    assert line_of(holder) == "ready"
    state = client.query(str(file), lockspace="default")
    assert [x["name"] for x in state["holders"]] == ["sh"]
    refused = lockctl("flock", "--verbose", "-n", file, "true")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"lockctl: '{file}' is held exclusively by sh (pid"
    )
    assert lockctl("who", file).stdout.startswith(f"default\t{file}\tsh\t")
    holder.communicate("\n")


def test_waiters_get_the_lock_in_the_order_in_which_they_came(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    file, order = tmp_path / "file", tmp_path / "order"
    holder = lockctl.start("flock", file, "sh", "-c", "echo ready; read line")
    assert line_of(holder) == "ready"
    waiters = []
    for number in range(4):
        waiters.append(lockctl.start("flock", file, "-c", f"echo {number} >>{order}"))
        while len(client.query(str(file), lockspace="default")["waiters"]) <= number:
            pass
    holder.communicate("\n")
    for waiter in waiters:
        assert waiter.wait(50) == 0
    assert order.read_text().split() == ["0", "1", "2", "3"]


def test_file_is_one_by_all_its_paths(lockctl: Lockctl, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    holder = lockctl.start("flock", tmp_path / "file", "sh", "-c", "echo ready; read x")
    assert line_of(holder) == "ready"
    refused = lockctl("flock", "-n", "--verbose", "link", "true", cwd=tmp_path)
    assert "is held exclusively by sh" in refused.stderr
    holder.communicate("\n")


@pytest.mark.parametrize("name", ["x" * 250, "\n", "\udcff"])
def test_path_that_is_no_name_is_locked_by_its_hash(
    name: str, lockctl: Lockctl, tmp_path: Path
) -> None:
    place = tmp_path / ("y" * 100)
    place.mkdir()
    done = lockctl("flock", "--verbose", place / name, "echo", "yes")
    assert done.stdout.endswith("yes\n")
    assert done.stderr == ""


def test_lock_is_not_lost_with_the_daemon_for_those_who_use_it(
    lockctl: Lockctl, lockd: Any, tmp_path: Path
) -> None:
    holder = lockctl.start("flock", "file", "sh", "-c", "echo ready; read line; exit 3",
                           cwd=tmp_path)  # fmt: skip
    assert line_of(holder) == "ready"
    lockd.stop()
    lockd.start()
    assert not is_free(tmp_path / "file")
    refused = lockctl("flock", "-n", "--verbose", "file", "true", cwd=tmp_path)
    assert refused.returncode == 1
    assert "a program that does not ask lockd has it" in refused.stderr
    holder.communicate("\n")
    assert holder.returncode == 3


def test_no_daemon_is_told(lockctl: Lockctl, tmp_path: Path) -> None:
    lockctl.env["LOCKD_SOCKET"] = str(tmp_path / "none")
    done = lockctl("flock", "file", "echo", "no", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (69, "")
    assert "lockd cannot be reached" in done.stderr


@pytest.mark.parametrize("option", ["--fcntl", "--start=1", "--length=1", "--fd=3"])
def test_options_of_newer_versions_are_refused_in_words(
    option: str, lockctl: Lockctl, tmp_path: Path
) -> None:
    done = lockctl("flock", option, "file", "true", cwd=tmp_path)
    assert done.returncode == 64
    assert "lockctl does not have this option of newer versions of flock" in done.stderr
