"""Where a daemon is looked for, and what is said if it cannot be reached."""

import asyncio
import grp
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import lockd
from conftest import StartDaemon
from ctl.processes import Lockctl, Terminal, open_to_all
from lockd import ConnectionLostError, DeniedError, connect
from lockd.client import paths
from lockd.client.paths import (
    SYSTEM_SOCKET,
    Address,
    find_socket,
    unreachable,
    user_socket,
)
from support.daemon_process import DaemonProcess
from support.places import ROOT, SRC
from support.wire_client import NOBODY

GROUP = grp.getgrall()[1]

takes_root = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can act as another user"
)


@takes_root
def test_who_is_not_in_the_group_of_the_socket_hears_which_to_join(
    daemon: DaemonProcess,
) -> None:
    open_to_all(daemon.socket)
    daemon.socket.chmod(0o660)
    os.chown(daemon.socket, 0, GROUP.gr_gid)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == (
        f"lockctl: lockd cannot be reached at {daemon.socket}, from LOCKD_SOCKET "
        f"(Permission denied): join the group '{GROUP.gr_name}', which owns the "
        "socket, or ask root\n"
    )


@takes_root
def test_directory_that_may_not_be_passed_is_named(daemon: DaemonProcess) -> None:
    open_to_all(daemon.socket)
    daemon.directory.chmod(0o750)
    os.chown(daemon.directory, 0, GROUP.gr_gid)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert done.returncode == 77
    assert f"'{GROUP.gr_name}', which owns {daemon.directory}, or" in done.stderr


@takes_root
def test_socket_of_one_user_is_that_users_to_open(daemon: DaemonProcess) -> None:
    open_to_all(daemon.socket)
    daemon.socket.chmod(0o600)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert done.returncode == 77
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert f"only user '{owner}' may use the socket: ask that user" in done.stderr


def test_daemon_is_not_to_be_started_where_it_could_not_listen(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path, plain):
        with pytest.raises(ConnectionLostError, match="is not a socket; give the path"):
            connect(path)
    with pytest.raises(ConnectionLostError, match="give the path of its socket"):
        connect("/" + "x" * 200)


def test_daemon_that_is_away_is_to_be_started(daemon: DaemonProcess) -> None:
    daemon.kill()
    start = re.escape(f"start it with `lockd --socket {daemon.socket}`")
    with pytest.raises(ConnectionLostError, match=start):
        connect(daemon.socket)
    gone = FileNotFoundError(2, "No such file or directory")
    another = ", or name another daemon's socket with LOCKD_SOCKET or --socket"
    for usual, start in (
        (SYSTEM_SOCKET, "systemctl start lockd"),
        (user_socket(), "lockd"),
    ):
        said = str(unreachable(Address(usual), gone))
        assert said.endswith(f"start it with `{start}`{another}")
    # Who named a socket has no need to be told how.
    assert not str(unreachable(Address("/named.sock"), gone)).endswith(another)


def test_empty_path_of_the_socket_is_wrong_usage() -> None:
    for command in (("run", "-n", "job", "--", "true"), ("list",)):
        done = Lockctl("")("--socket", "", *command)
        assert (done.returncode, done.stdout) == (64, "")
        assert "the path of the socket is empty" in done.stderr


# The search.

ABSENT, FILE, LEFTOVER, LISTENS = "absent", "file", "leftover", "listens"
"""What can be where a daemon is looked for."""

ENDS = (ABSENT, FILE, LEFTOVER, LISTENS)


class Doors:
    """Where daemons are looked for: directories of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.runtime = directory / "user"
        self.own = self.runtime / "lockd" / "lockd.sock"
        self.system = directory / "system" / "lockd.sock"
        for path in (self.own, self.system):
            path.parent.mkdir(parents=True)
        self._sockets: list[socket.socket] = []

    def put(self, path: Path, what: str) -> socket.socket | None:
        """Puts something there; returns the socket if somebody listens."""
        if what == FILE:
            path.touch()
        if what not in (LEFTOVER, LISTENS):
            return None
        listener = socket.socket(socket.AF_UNIX)
        self._sockets.append(listener)
        listener.bind(str(path))
        if what == LEFTOVER:
            listener.close()
            return None
        listener.listen()
        listener.setblocking(False)
        return listener

    def close(self) -> None:
        for listener in self._sockets:
            listener.close()


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    doors = Doors(tmp_path)
    monkeypatch.delenv("LOCKD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(doors.runtime))
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", str(doors.system))
    yield doors
    doors.close()


@pytest.mark.parametrize("system", ENDS)
@pytest.mark.parametrize("own", ENDS)
def test_first_place_where_somebody_listens_is_taken(
    doors: Doors, own: str, system: str
) -> None:
    listeners = [doors.put(doors.own, own), doors.put(doors.system, system)]
    address = find_socket()
    listening = [
        str(path)
        for path, what in ((doors.own, own), (doors.system, system))
        if what == LISTENS
    ]
    if listening:
        assert [address.path, *address.others] == listening
    else:
        # Nobody is there: the sentence is about what is left, the system's first.
        leftover = doors.own if system == ABSENT != own else doors.system
        assert address.path == str(leftover)
        assert address.others == ()
    for listener in filter(None, listeners):
        with pytest.raises(BlockingIOError):  # nobody was woken by the search
            listener.accept()


def test_daemon_that_is_away_is_told_with_who_chose_its_path(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(socket: Path | None = None) -> str:
        with pytest.raises(ConnectionLostError) as caught:
            connect(socket)
        return str(caught.value)

    away = doors.runtime / "away"
    assert f"at {away}, as given (No such file or directory): " in said(away)
    assert f"at {doors.system}, the system's default (" in said()
    doors.put(doors.own, LEFTOVER)
    assert f"at {doors.own}, the user's default (" in said()
    monkeypatch.setenv("LOCKD_SOCKET", str(away))
    assert f"at {away}, from LOCKD_SOCKET (" in said()
    assert f"at {away}, as given (" in said(away)


def test_what_was_named_is_taken_whatever_is_there(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors.put(doors.own, LISTENS)
    doors.put(doors.system, LISTENS)
    named = doors.runtime / "none"
    assert find_socket(named) == Address(str(named))
    monkeypatch.setenv("LOCKD_SOCKET", str(named))
    assert find_socket().path == str(named)
    assert find_socket().others == ()
    assert find_socket(doors.own).path == str(doors.own)


def serve_at(path: Path, daemon: DaemonProcess) -> None:
    """Lets a daemon be found at another place."""
    path.hardlink_to(daemon.socket)


def lockctl_among(doors: Doors) -> str:
    """Returns a program that is lockctl, with another place for the system's daemon."""
    return (
        "import sys\nimport lockd.client.paths as paths\n"
        f"paths.SYSTEM_SOCKET = {str(doors.system)!r}\n"
        "from lockd.ctl.main import main\nsys.argv[0] = 'lockctl'\nmain()\n"
    )


def connect_blocking() -> str:
    with connect() as client:
        return client.acquire("found").resource


def connect_async(run: Callable[..., Any]) -> str:
    async def main() -> str:
        async with lockd.aio.connect() as client:
            return (await client.acquire("found")).resource

    return str(run(main))


@pytest.mark.parametrize(
    "client",
    [
        connect_blocking,
        partial(connect_async, trio.run),
        partial(connect_async, lambda main: asyncio.run(main())),
    ],
    ids=["blocking", "trio", "asyncio"],
)
def test_library_skips_what_a_killed_daemon_left(
    doors: Doors, daemon: DaemonProcess, client: Callable[[], str]
) -> None:
    doors.put(doors.own, LEFTOVER)
    serve_at(doors.system, daemon)
    assert client() == "found"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "job", "--", "true"),
        ("list",),
        ("sessions",),
        ("status",),
        ("test", "job"),
    ],
)
def test_lockctl_skips_what_a_killed_daemon_left(
    doors: Doors, daemon: DaemonProcess, words: tuple[str, ...]
) -> None:
    doors.put(doors.own, LEFTOVER)
    serve_at(doors.system, daemon)
    done = among(doors, *words)
    assert (done.returncode, done.stderr) == (0, "")


def among(doors: Doors, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", lockctl_among(doors), *words],
        env=os.environ | {"PYTHONPATH": SRC},
        capture_output=True,
        text=True,
        check=False,
    )


def test_completion_and_top_skip_what_a_killed_daemon_left(
    doors: Doors, daemon: DaemonProcess
) -> None:
    doors.put(doors.own, LEFTOVER)
    serve_at(doors.system, daemon)
    with connect() as client:
        client.acquire("telling")
        asked = {
            "_LOCKCTL_COMPLETE": "bash_complete",
            "COMP_LINE": "lockctl show tel",
            "COMP_WORDBREAKS": "",
        }
        completed = subprocess.run(
            [sys.executable, "-c", lockctl_among(doors)],
            env=os.environ | asked | {"PYTHONPATH": SRC},
            capture_output=True,
            text=True,
            check=True,
        )
        assert completed.stdout == "plain,telling\n"
        argv = (sys.executable, "-c", lockctl_among(doors), "top")
        terminal = Terminal(argv, dict(os.environ) | {"PYTHONPATH": SRC})
        terminal.wait_for("telling")
        terminal.type("q")
        assert terminal.wait() == 0


def test_status_names_its_socket_and_the_other(
    doors: Doors, daemon: DaemonProcess
) -> None:
    serve_at(doors.own, daemon)
    doors.put(doors.system, LISTENS)
    lines = among(doors, "status").stdout.splitlines()
    assert lines[0] == f"socket\t{doors.own}"
    assert lines[1] == (
        f"another daemon\t{doors.system}: choose with --socket or LOCKD_SOCKET"
    )
    told = json.loads(among(doors, "status", "--json").stdout)
    assert told["socket"] == str(doors.own)
    assert told["other_sockets"] == [str(doors.system)]
    doors.system.unlink()
    lines = among(doors, "status").stdout.splitlines()
    assert lines[0] == f"socket\t{doors.own}"
    assert lines[1].startswith("version")


def test_who_could_mean_two_daemons_is_warned_on_a_terminal_alone(
    doors: Doors, daemon: DaemonProcess
) -> None:
    serve_at(doors.own, daemon)
    doors.put(doors.system, LISTENS)
    warning = (
        f"lockctl: this command uses the daemon at {doors.own}; another daemon "
        f"listens at {doors.system}: choose with --socket or LOCKD_SOCKET"
    )
    assert among(doors, "list").stderr == ""
    env = dict(os.environ) | {"PYTHONPATH": SRC}
    argv = (sys.executable, "-c", lockctl_among(doors))
    for words, count in (
        (("list",), 1),
        (("run", "job", "--", "true"), 1),
        (("--socket", str(doors.own), "list"), 0),
    ):
        terminal = Terminal((*argv, *words), env, columns=400)
        assert terminal.wait() == 0
        assert terminal.shown.count(warning) == count


def test_watch_waits_for_its_daemon_and_takes_no_other(
    doors: Doors, start_daemon: StartDaemon
) -> None:
    own, system = start_daemon(), start_daemon()
    serve_at(doors.own, own)
    serve_at(doors.system, system)
    argv = (sys.executable, "-c", lockctl_among(doors), "watch")
    watch = Terminal(argv, dict(os.environ) | {"PYTHONPATH": SRC}, columns=400)
    watch.wait_for("Watching")
    own.kill()
    watch.wait_for("waiting for the next one")
    watch.shown = ""
    doors.own.unlink()
    own.start()
    serve_at(doors.own, own)
    watch.wait_for("Watching")
    assert "epoch 2 after 1" in watch.shown
    with connect(doors.own) as client:
        client.acquire("seen-at-the-same-place")
        watch.wait_for("seen-at-the-same-place")
    os.kill(watch.pid, signal.SIGINT)
    watch.wait()


def test_make_run_serves_where_no_client_looks_unless_told() -> None:
    plan = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "run"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (served,) = re.findall(r"exec \S+/lockd keep --socket '(\S+)'", plan)
    assert served not in (user_socket(), SYSTEM_SOCKET)
    assert f'LOCKD_SOCKET="{served}"' in plan
    assert f"{ROOT}/.run/lockd.sock" == served
    assert 'LOCKD_SOCKET="$PWD/.run/lockd.sock"' in (ROOT / "README.md").read_text()


# Root, and the daemons of others.

BY_HAND = "name the socket with --socket"


@takes_root
def test_root_follows_no_variable_to_the_daemon_of_a_user(
    doors: Doors, daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_at(doors.own, daemon)
    os.chown(doors.own, NOBODY, NOBODY)
    # The place of one's own is passed over, as nothing was said of it.
    assert find_socket() == Address(str(doors.system), origin="the system's default")
    monkeypatch.setenv("LOCKD_SOCKET", str(doors.own))
    with pytest.raises(DeniedError, match=BY_HAND) as caught:
        connect()
    assert f"{doors.own} belongs to user 'nobody'" in str(caught.value)
    with connect(doors.own) as client:
        assert client.acquire("named").held
    done = among(doors, "list")
    assert done.returncode == 77
    assert BY_HAND in done.stderr
    assert among(doors, "--socket", str(doors.own), "list").returncode == 0


@takes_root
def test_root_goes_to_the_daemon_of_the_system_user(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors.put(doors.own, LISTENS)
    os.chown(doors.own, NOBODY, NOBODY)
    monkeypatch.setattr(paths, "SYSTEM_USER", "nobody")
    assert find_socket().path == str(doors.own)


@takes_root
def test_root_looks_at_who_listens_not_only_at_the_file(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(doors.own))
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        listener.listen()
        signal.pause()
    try:
        while not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            pass
        with pytest.raises(DeniedError, match=BY_HAND):
            connect()
        monkeypatch.setenv("LOCKD_SOCKET", str(doors.own))
        with pytest.raises(DeniedError, match=BY_HAND):
            connect()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        listener.close()
