"""Start and stop of the daemon, as the operator sees them."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conftest import StartDaemon
from lockd import __version__, connect
from lockd.daemon.main import MANNER, main
from lockd.daemon.system.epoch import check_epoch, open_epoch
from lockd.daemon.system.listener import bind_listener, check_listener
from lockd.errors import ConfigError
from support.daemon_process import DaemonProcess
from support.rights import needs_root
from support.wire_client import NOBODY, WireClient, wait_for_waiters

CONFIG_ERROR = 78
LOCKD = (sys.executable, "-m", "lockd.daemon.main")


def run(*arguments: object) -> tuple[int, str]:
    """Runs the command in this process; returns its status and what it said."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def refused_start(daemon: DaemonProcess, **changes: object) -> str:
    """Starts another daemon in a place of this one; returns why it would not."""
    options = {
        "config": daemon.config,
        "socket": daemon.socket,
        "state-dir": daemon.state_dir,
    }
    found = options | {name.replace("_", "-"): at for name, at in changes.items()}
    result = subprocess.run(
        [*daemon.command[:3], *(f"--{name}={at}" for name, at in found.items())],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == CONFIG_ERROR, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("lockd: ")
    return line


def check_own_listener(path: Path) -> None:
    check_listener(f"{path}/sock", "--socket")


def check_own_directory(path: Path) -> None:
    check_listener(f"{path}/a/sock", "--socket")


def said_by_nobody(function: Callable[[], object]) -> str:
    """Returns the `ConfigError` of a function that a child without rights calls."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            function()
        except ConfigError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(number: signal.Signals, lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as holder, WireClient(lockd.socket) as waiter:
        holder.acquire("a")
        waiter.send("acquire", resource="a")
        wait_for_waiters(holder, "a", 1)
        os.kill(lockd.pid, number)
        assert holder.rest() == []
        assert waiter.rest() == [], "a lock was given by a daemon that ends"
    assert lockd.wait() == 0
    assert not lockd.socket.exists()
    assert lockd.said[-1] == f"exits on {number.name}"


def test_second_signal_does_not_cut_the_end_short(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        for index in range(300):
            client.acquire(f"{index}")
        for _ in range(5):
            os.kill(lockd.pid, signal.SIGTERM)
        assert lockd.wait() == 0
    assert not lockd.socket.exists()


def test_stopped_daemon_leaves_no_file_that_it_made(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    place = tmp_path / "locks"
    place.mkdir(mode=0o755)
    daemon = start_daemon(f"[lockspaces.d]\nkind = 'directory'\npath = '{place}'\n")
    with WireClient(daemon.socket) as client:
        client.acquire("a", lockspace="d")
        assert (place / "a").exists()
        assert daemon.stop() == 0
    assert list(place.iterdir()) == []


def test_daemon_that_nothing_is_kept_of_says_so(lockd: DaemonProcess) -> None:
    assert "all locks and connections are lost" in lockd.wait_for_line(
        "nobody keeps the locks"
    )


def test_daemon_starts_again_where_it_was(lockd: DaemonProcess) -> None:
    assert lockd.stop() == 0
    lockd.start()
    with WireClient(lockd.socket) as client:
        client.acquire("a", timeout=0)


def test_leftover_of_a_crash_is_no_obstacle(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.acquire("a")
        lockd.kill()
        assert client.receive() is None
    assert lockd.socket.exists()
    lockd.start()
    with WireClient(lockd.socket) as client:
        client.acquire("a", timeout=0)


def test_stop_is_clean_when_its_directory_is_gone(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    moved = daemon.directory.rename(daemon.directory.with_name("moved"))
    assert daemon.stop() == 0
    assert (moved / "lockd.sock").exists()


def test_second_daemon_on_a_socket_is_refused(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    said = refused_start(lockd, state_dir=tmp_path / "other")
    assert "another daemon listens at '/" in said
    with WireClient(lockd.socket) as client:
        client.acquire("a")


def test_second_daemon_in_a_state_directory_is_refused(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    said = refused_start(lockd, socket=tmp_path / "other.sock")
    how = f": stop that with `kill {lockd.pid}`, or choose another directory"
    assert "another lockd uses the state directory" in said
    assert how in said
    assert not (tmp_path / "other.sock").exists()
    with WireClient(lockd.socket) as client:
        client.acquire("a")


@pytest.mark.parametrize("option", ["--socket", "--admin-socket", "--virtlockd-socket"])
def test_socket_whose_directory_cannot_be_made_is_led_to_its_option(
    tmp_path: Path, option: str
) -> None:
    places = {"--socket": str(tmp_path / "a.sock"), option: "/proc/no/a.sock"}
    words = [word for place in places.items() for word in place]
    done = subprocess.run(
        [sys.executable, "-m", "lockd.daemon.main", "--state-dir", tmp_path, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 78
    assert "the directory '/proc/no' cannot be made (" in done.stderr
    assert done.stderr.endswith(f" (or choose another path with {option})\n")


def test_socket_may_lie_in_the_state_directory(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    daemon.state_dir = tmp_path
    daemon.start()
    with WireClient(daemon.socket) as client:
        client.acquire("a")
    assert daemon.stop() == 0


def test_damaged_state_is_refused(lockd: DaemonProcess) -> None:
    lockd.stop()
    (lockd.state_dir / "epoch").write_text("?")
    assert "holds no epoch" in refused_start(lockd)
    assert not lockd.socket.exists()


def test_socket_path_that_is_a_file_is_refused_and_untouched(
    lockd: DaemonProcess,
) -> None:
    lockd.stop()
    lockd.socket.write_text("precious")
    assert "is not a socket" in refused_start(lockd)
    assert lockd.socket.read_text() == "precious"


def test_lockspace_that_cannot_be_used_is_refused_at_the_start(
    lockd: DaemonProcess,
) -> None:
    lockd.stop()
    lockd.config.write_text("[lockspaces.d]\nkind='directory'\npath='/proc/no'\n")
    said = refused_start(lockd)
    assert "lockspace 'd': the directory '/proc/no' cannot be made (" in said
    assert not lockd.socket.exists()


def test_configured_places_are_used(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    daemon.config.write_text(
        f"socket = '{daemon.socket}'\nstate_dir = '{daemon.state_dir}'\n"
    )
    command = daemon.command[:4]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert str(daemon.socket) in process.stderr.readline()
        assert (daemon.state_dir / "epoch").exists()
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


JOURNAL = """
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a program as if its standard error were the journal."""


@pytest.mark.parametrize("is_journal", [True, False])
def test_journal_gets_priorities_and_nobody_else(
    is_journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = DaemonProcess(tmp_path)
    # As a shell inherits it from a session that is a unit.
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    wrapper = [sys.executable, "-c", JOURNAL] if is_journal else []
    command = [*wrapper, *daemon.command]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.terminate()
        process.communicate(timeout=30)
    assert said.startswith("<6>lockd " if is_journal else "lockd ")
    daemon.config.write_text("colour = 1\nsocket = 2\n")
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, timeout=30
    )
    assert done.returncode == CONFIG_ERROR
    start = "<3>lockd: " if is_journal else "lockd: "
    assert [x.startswith(start) for x in done.stderr.splitlines()] == [True] * 2


def test_defect_is_logged_with_its_story(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*told: Any) -> None:
        for listener in told[3].values():
            listener.socket.close()
        raise ZeroDivisionError("the story")

    monkeypatch.setattr("lockd.daemon.main.begin", fail)
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        found, _ = run(
            "--config=/dev/null", f"--state-dir={tmp_path}", f"--socket={tmp_path}/s"
        )
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = capfd.readouterr().err.splitlines()
    assert found == 70
    assert lines[0] == "<2>this is a defect of lockd"
    assert lines[-1] == "<2>ZeroDivisionError: the story"
    assert all(line.startswith("<2>") for line in lines)


def test_it_takes_all_descriptors_that_it_may(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(prefix=["prlimit", "--nofile=100:300"])
    limits = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
    (line,) = [line for line in limits if line.startswith("Max open files")]
    assert line.split()[3:5] == ["300", "300"]


def test_file_of_any_name_is_locked_in_a_locale_without_utf_8(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "ü").touch()
    without = ["LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
    daemon = start_daemon(prefix=["env", *without])
    with connect(str(daemon.socket)) as client:
        client.acquire(f"{tmp_path}/ü", lockspace="direct")
    daemon.upgrade()
    with connect(str(daemon.socket)) as client:
        client.acquire(f"{tmp_path}/ü", lockspace="direct")


def test_socket_is_open_to_user_and_group_only(lockd: DaemonProcess) -> None:
    assert lockd.socket.stat().st_mode & 0o777 == 0o660


def connected(socket: Path) -> WireClient | None:
    try:
        return WireClient(socket)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_are_no_obstacle_and_nothing_gets_their_numbers(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path)
    words = " ".join(f"{number}>&-" for number in closed)
    command = ["sh", "-c", f'exec "$@" {words}', "sh", *daemon.command]
    with subprocess.Popen(command) as process:
        # What says that it serves is closed, too. The file is there before it listens.
        while (client := connected(daemon.socket)) is None:
            assert process.poll() is None, "it did not start"
            os.sched_yield()
        with client:
            client.acquire("a")
            for number in closed:
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        process.terminate()
        assert process.wait() == 0


# --check-config


def test_good_configuration_is_called_good(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "lockd.toml").write_text(
        f"[lockspaces.d]\nkind = 'directory'\npath = '{tmp_path}'\n"
        "[lockspaces.m]\nkind = 'memory'\non_disconnect = 'kill'\n"
    )
    status, said = run("--check-config", "--config", tmp_path / "lockd.toml")
    assert (status, said) == (0, f"the configuration is valid: {tmp_path}/lockd.toml\n")
    assert [path.name for path in tmp_path.iterdir()] == ["lockd.toml"]


def test_check_says_which_directories_a_start_makes_and_makes_none(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    place = tmp_path / "made" / "locks"
    text = f"[lockspaces.d]\nkind = 'directory'\npath = '{place}'\n"
    (tmp_path / "lockd.toml").write_text(text)
    status, said = run("--check-config", "--config", tmp_path / "lockd.toml")
    assert status == 0
    assert said.splitlines() == [
        f"lockspace 'd': a start makes '{place.parent}'",
        f"lockspace 'd': a start makes '{place}'",
        f"the configuration is valid: {tmp_path}/lockd.toml",
    ]
    assert not place.parent.exists()
    with WireClient(start_daemon(text).socket) as client:
        client.acquire("a", lockspace="d")
        assert (place / "a").exists()


def spoil_epoch(path: Path) -> None:
    path.mkdir()
    (path / "epoch").write_text("one two")


def link_lock(path: Path) -> None:
    Path(f"{path}.lock").symlink_to("/dev/null")


def link_epoch_lock(path: Path) -> None:
    path.mkdir()
    (path / "epoch.lock").symlink_to("/dev/null")


def open_to_others(path: Path) -> None:
    path.mkdir(mode=0o777)
    path.chmod(0o777)


TROUBLES: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a directory": ("socket", "x", Path.mkdir),
    "a file": ("socket", "x", Path.touch),
    "a dangling link": ("socket", "x", lambda path: path.symlink_to("/none")),
    "below a file": ("socket", "x/sock", lambda path: path.parent.touch()),
    "below others": (
        "socket",
        "x/y/sock",
        lambda path: open_to_others(path.parents[1]),
    ),
    "with a strange lock": ("socket", "x", link_lock),
    "with a lock of a directory": ("socket", "x", lambda p: Path(f"{p}.lock").mkdir()),
    "admins below a file": ("admin_socket", "x/sock", lambda p: p.parent.touch()),
    "state in a file": ("state_dir", "x", Path.touch),
    "state below a file": ("state_dir", "x/state", lambda path: path.parent.touch()),
    "state of others": ("state_dir", "x", open_to_others),
    "state without epoch": ("state_dir", "x", spoil_epoch),
    "state with a strange lock": ("state_dir", "x", link_epoch_lock),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("by", ["file", "option"])
def test_check_says_of_a_place_what_a_start_says(
    by: str, trouble: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    key, name, spoil = TROUBLES[trouble]
    path, config = tmp_path / name, tmp_path / "lockd.toml"
    config.write_text(f"{key} = '{path}'\n" if by == "file" else "")
    spoil(path)
    places = {
        "socket": tmp_path / "sock",
        "admin_socket": tmp_path / "admin.sock",
        "state_dir": tmp_path / "state",
    }
    del places[key]
    if by == "option":
        places[key] = path
    options = [f"--{key.replace('_', '-')}={place}" for key, place in places.items()]
    before = sorted(tmp_path.rglob("*"))
    status, said = run("--check-config", f"--config={config}", *options)
    assert sorted(tmp_path.rglob("*")) == before
    command = [*LOCKD, f"--config={config}", *options]
    started = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30
    )
    assert (status, said) == (started.returncode, started.stderr)
    assert (status, said.count("\n")) == (CONFIG_ERROR, 1)
    assert str(path) in said or str(path.parent) in said


def test_check_changes_nothing_where_a_start_would_succeed(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    """Neither a daemon that serves there nor a missing directory is a problem."""
    for place in (Path(lockd.socket).parent, tmp_path / "not" / "yet"):
        options = [f"--socket={place}/sock", f"--state-dir={place}/state"]
        status, said = run("--check-config", f"--config={lockd.config}", *options)
        assert (status, said.startswith("the configuration is valid")) == (0, True)
    used = [f"--socket={lockd.socket}", f"--state-dir={lockd.state_dir}"]
    assert run("--check-config", f"--config={lockd.config}", *used)[0] == 0
    assert not (tmp_path / "not").exists()
    with connect(lockd.socket) as client:
        client.acquire("a")


@needs_root
@pytest.mark.parametrize(
    ("start", "check"),
    [
        (lambda path: bind_listener(f"{path}/sock"), check_own_listener),
        (lambda path: bind_listener(f"{path}/a/sock"), check_own_directory),
        (lambda path: open_epoch(f"{path}/a"), lambda path: check_epoch(f"{path}/a")),
        (lambda path: open_epoch(str(path)), lambda path: check_epoch(str(path))),
    ],
)
def test_check_without_rights_says_what_a_start_says(
    start: Callable[[Path], object], check: Callable[[Path], object], tmp_path: Path
) -> None:
    for place in (tmp_path, *tmp_path.parents[:-2]):
        place.chmod(0o755)
    assert said_by_nobody(partial(check, tmp_path)) == (
        said := said_by_nobody(partial(start, tmp_path))
    )
    assert "Permission denied" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[lockspaces.d]\nkind = 'etcd'\n", "[lockspaces.d]"),
        ("color = 1\n", 'there is no key "color"'),
        ("[lockspaces.d]\nkind = 'directory'\n", '"path" must be'),
        ("[lockspaces.d]\nkind = 'directory'\npath = '/dev/null/d'\n", "'d'"),
        ("[lockspaces.d]\nkind = 'directory'\npath = '{}'\n", "chmod go-w"),
        ("[lockspaces.d\n", "line 1"),
    ],
)
def test_bad_configuration_names_file_and_key(
    text: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "lockd.toml"
    path.write_text(text.replace("{}", str(tmp_path)))
    tmp_path.chmod(0o775)
    status, said = run("--check-config", "--config", path)
    assert status == CONFIG_ERROR
    assert said.startswith(f"lockd: {path}: ")
    assert why in said


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    status, said = run("--check-config", "--config", tmp_path / "none.toml")
    assert status == CONFIG_ERROR
    assert said == f"lockd: {tmp_path}/none.toml: no such file or directory\n"


def test_version_and_help_are_told() -> None:
    assert run("--version") == (0, f"lockd {__version__} ({MANNER})\n")
    assert "--state-dir" in run("-h")[1]


def test_unknown_option_is_a_usage_error() -> None:
    assert run("--colour")[0] == 2


@pytest.mark.parametrize(
    "option",
    ["--config", "--socket", "--admin-socket", "--virtlockd-socket", "--state-dir"],
)
def test_empty_path_is_not_taken_for_the_default(option: str, tmp_path: Path) -> None:
    """As in `lockd --socket "$UNSET"`, which must not serve the whole host."""
    command = [sys.executable, "-m", "lockd.daemon.main", option, ""]
    others = {"--socket": tmp_path / "s", "--state-dir": tmp_path / "state"}
    for name, path in others.items():
        command += [] if name == option else [name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert f"'{option}': the path is empty: is a variable not set?" in done.stderr


@pytest.mark.parametrize("word", ["nan", "inf", "1e400", "0", "-1", "soon", ""])
def test_idle_timeout_must_be_a_number_of_seconds(word: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lockd.daemon.main", "--timeout", word]
    command += ["--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path / "st")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert f"'{word}' is not a number of seconds over 0" in done.stderr
