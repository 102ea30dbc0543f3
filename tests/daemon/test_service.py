"""The daemon as a service: reloading, idle exit, and what systemd is told."""

import errno
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from conftest import StartDaemon
from lockd.daemon.config.config import Config, LockspaceConfig
from lockd.daemon.service import CLEARING, HOUSEKEEPING, Options, Service
from lockd.daemon.start.serve import begin_empty
from lockd.daemon.stores.stores import Stores
from lockd.daemon.system.epoch import open_epoch
from support.daemon_process import DaemonProcess
from support.places import TESTS
from support.wire_client import PATIENCE, WireClient


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
        manager.wait_for("STATUS=1 held, 0 waiting, 1 session")
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
    served = "lockd serves [lockspaces.new] until you stop it"
    assert any(served in x for x in lockd.said)
    with WireClient(lockd.socket) as client:
        client.acquire("a", lockspace="new")
        assert client.call("statistics")["problems"] == [served]


Change = Callable[[DaemonProcess, WireClient], None]


def by_reload(daemon: DaemonProcess, client: WireClient) -> None:
    daemon.reload()


def by_upgrade(daemon: DaemonProcess, client: WireClient) -> None:
    daemon.upgrade()


def by_method(daemon: DaemonProcess, client: WireClient) -> None:
    client.call("reload")


@pytest.mark.parametrize("change", [by_reload, by_upgrade, by_method])
def test_what_holders_rely_on_counts_as_soon_as_nothing_is_held(
    change: Change, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon("[lockspaces.x]\nkind = 'memory'\n")
    with WireClient(daemon.socket) as client:
        client.acquire("a", lockspace="x")
        daemon.config.write_text(
            f"[lockspaces.x]\nkind = 'directory'\npath = '{tmp_path}/x'\n"
            "on_disconnect = 'kill'\n"
        )
        change(daemon, client)
        spaces = client.call("list_lockspaces")["lockspaces"]
        (before,) = [x for x in spaces if x["name"] == "x"]
        assert (before["kind"], before["on_disconnect"]) == ("memory", "release")
        assert client.call("statistics")["problems"] == [
            '[lockspaces.x] cannot change "kind" and "path" and "on_disconnect" while '
            "somebody holds or waits for a lock there: reload again later"
        ]
        client.call("release", resource="a", lockspace="x")
        change(daemon, client)
        spaces = client.call("list_lockspaces")["lockspaces"]
        (after,) = [x for x in spaces if x["name"] == "x"]
        assert (after["kind"], after["on_disconnect"]) == ("directory", "kill")
        assert client.call("statistics")["problems"] == []
        client.acquire("a", lockspace="x")
        assert os.listdir(tmp_path / "x") == ["a"]
        # Else its end would be ours.
        client.call("release", resource="a", lockspace="x")


# A reload that goes wrong costs nothing.


class LoopsOwn(dict[str, Any]):
    """What only the thread of the loop may look at: the others may meet a change."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._thread = threading.current_thread()

    def _look(self) -> None:
        assert threading.current_thread() is self._thread

    def __iter__(self) -> Iterator[str]:
        self._look()
        return super().__iter__()

    def __contains__(self, key: object) -> bool:
        self._look()
        return super().__contains__(key)

    def items(self) -> Any:
        self._look()
        return super().items()


async def test_thread_that_reads_the_configuration_looks_at_nothing_of_the_loop(
    tmp_path: Path,
) -> None:
    config = tmp_path / "lockd.toml"
    config.write_text(
        "[lockspaces.a]\nkind = 'memory'\n[lockspaces.b]\nkind = 'memory'"
    )
    with service_in_this_process(tmp_path, config) as service:
        service.parts.runtime.lockspaces = LoopsOwn(service.parts.runtime.lockspaces)
        service.configure(Config())
        await service.reload()
        assert service.parts.health.problems == []
        assert {"a", "b"} <= set(service.parts.runtime.lockspaces)


@pytest.mark.parametrize(
    "error", [RuntimeError("changed"), MemoryError(), OSError(5, "Input/output error")]
)
@pytest.mark.parametrize("step", ["read_config", "effective"])
async def test_reload_that_meets_a_defect_is_a_problem_and_changes_nothing(
    error: Exception, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    config = tmp_path / "lockd.toml"
    config.write_text("kill_grace = 7.0\n")
    with service_in_this_process(tmp_path, config) as service:
        before = service.config
        with monkeypatch.context() as patch:
            patch.setattr(f"lockd.daemon.service.{step}", fail)
            await service.reload()
            service.read_configuration()
        assert service.config is before
        (problem,) = service.parts.health.problems
        assert problem.startswith(
            "cannot reload the configuration, the old one stays: this is a"
        )
        await service.reload()
        assert service.parts.health.problems == []
        assert service.config.kill_grace == 7.0


# What is to be mended.


def test_each_problem_stays_until_it_is_mended(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    metrics = f"[metrics]\ntextfile = '{tmp_path}/no/such/file'\n"
    daemon = start_daemon(metrics + "textfile_interval = 0.05\n")
    with WireClient(daemon.socket) as client:

        def problems() -> list[str]:
            found: list[str] = client.call("statistics")["problems"]
            return found

        while not problems():
            pass
        daemon.config.write_text("kill_grace = 0\n")
        daemon.reload()
        textfile, configuration = problems()
        assert "no metrics in" in textfile
        assert "kill_grace" in configuration
        (tmp_path / "no" / "such").mkdir(parents=True)
        while len(problems()) > 1:
            pass
        assert problems() == [configuration]
        daemon.config.write_text("")
        daemon.reload()
        assert problems() == []


def test_reload_changes_log_level_and_patience(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon(f"kill_grace = {20 * PATIENCE}")
    daemon.config.write_text(
        "log_level = 'error'\nkill_grace = 0.1\n"
        "[lockspaces.killed]\nkind = 'memory'\non_disconnect = 'kill'\n"
    )
    os.kill(daemon.pid, signal.SIGHUP)
    with WireClient(daemon.socket) as client:
        # Of all that is said until it ends nothing but the error is heard.
        while "killed" not in str(client.call("list_lockspaces")):
            pass
        daemon.config.write_text("kill_grace = 0\n")
        os.kill(daemon.pid, signal.SIGHUP)
        assert "kill_grace" in daemon.wait_for_line("the configuration")
        script = (
            "import signal, sys; from support.wire_client import WireClient\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "with WireClient(sys.argv[1]) as client:\n"
            "    client.acquire('a', lockspace='killed')\n"
            "print(flush=True)\n"
            "signal.pause()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(daemon.socket)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        ) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            client.acquire("a", lockspace="killed", timeout=PATIENCE)
        assert owner.returncode == -signal.SIGKILL
        client.call("release", lockspace="killed", resource="a")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"x = {'[' * 9999}", "is nested too deeply"),
        ("colour = 1\n", 'there is no key "colour"'),
        (
            "[lockspaces.good]\nkind = 'memory'\n"
            "[lockspaces.bad]\nkind = 'directory'\npath = '/dev/null/such'\n",
            "is not a directory",
        ),
    ],
)
def test_bad_configuration_changes_nothing(
    manager: Manager, start_daemon: StartDaemon, text: str, why: str
) -> None:
    daemon = start_daemon("[limits]\nlocks_per_session = 1\n")
    daemon.config.write_text(text)
    os.kill(daemon.pid, signal.SIGHUP)
    assert why in daemon.wait_for_line("cannot reload the configuration")
    manager.wait_for("cannot reload the configuration")
    with WireClient(daemon.socket) as client:
        client.acquire("a")
        assert client.refusal("acquire", resource="b").code == "limit"
        names = [x["name"] for x in client.call("list_lockspaces")["lockspaces"]]
        assert names == ["default", "direct"]


def test_status_is_one_line_whatever_is_wrong(
    manager: Manager, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    wrong = "".join(f"colour{i} = 1\n" for i in range(200))
    daemon.config.write_text("socket = 1\nwrong = 2\n" + wrong)
    os.kill(daemon.pid, signal.SIGHUP)
    told = manager.wait_for("cannot reload the configuration")
    status, *others = told.splitlines()
    assert others == []
    assert "socket: must be" in status
    assert "; " + str(daemon.config) + ': there is no key "wrong"' in status
    # The manager takes no more than 4096 bytes (sd_notify(3)).
    assert len(status) < 1000
    daemon.config.write_text("")
    os.kill(daemon.pid, signal.SIGHUP)
    assert manager.wait_for("STATUS") == "STATUS=0 held, 0 waiting, 0 sessions"


def test_idle_daemon_ends_and_a_busy_one_does_not(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    process = subprocess.Popen(
        [*daemon.command, "--timeout=2"], stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert "serves at" in process.stderr.readline()
        with WireClient(daemon.socket) as client:
            client.acquire("a")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
            client.call("release", resource="a")
        assert process.wait(PATIENCE) == 0
        assert "no client and no lock" in process.stderr.read()
    assert not daemon.socket.exists()


def test_client_that_comes_when_it_ends_is_left_to_the_next_one(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.socket))
        listener.listen()
        with ExitStack() as stack:
            process = stack.enter_context(activated(daemon, listener))
            os.kill(process.pid, signal.SIGSTOP)
            client = stack.enter_context(WireClient(daemon.socket))
            # By now it should have ended, and has somebody at the door.
            waiting = select.select([client.socket], [], [], 2 * HOUSEKEEPING)
            assert waiting == ([], [], [])
            msgid = client.send("acquire", resource="a")
            os.kill(process.pid, signal.SIGCONT)
            # Either it stays for the client, or it leaves it alone.
            if not answers_before_it_ends(process, client):
                assert process.wait() == 0
                process = stack.enter_context(activated(daemon, listener))
            assert client.result(msgid)["grant"]["resource"] == "a"
            client.call("release", resource="a")
            client.close()
            assert process.wait(PATIENCE) == 0


def answers_before_it_ends(
    process: subprocess.Popen[bytes], client: WireClient
) -> bool:
    pidfd = os.pidfd_open(process.pid)
    ready: list[socket.socket | int] = [client.socket, pidfd]
    found = select.select(ready, [], [], PATIENCE)[0]
    os.close(pidfd)
    return client.socket in found


@pytest.mark.parametrize("wrong", ["configuration", "state"])
def test_nobody_waits_for_a_daemon_that_cannot_start(
    wrong: str, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path, "colour = 1" if wrong == "configuration" else "")
    if wrong == "state":
        daemon.state_dir.write_text("no directory")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.socket))
        listener.listen()
        with WireClient(daemon.socket) as one, WireClient(daemon.socket) as other:
            one.send("statistics")
            with pytest.raises(AssertionError):
                activated(daemon, listener)
            sentence = "unavailable: lockd cannot start: see its log for the reason"
            told = [[1, None, [1, sentence], None]]
            assert one.rest() == told
            assert other.rest() == told


@contextmanager
def service_in_this_process(
    tmp_path: Path, config: Path = Path(os.devnull), stores: Stores | None = None
) -> Iterator[Service]:
    epoch = open_epoch(str(tmp_path))
    level = logging.getLogger().level
    service = begin_empty(Options(str(config)), Config(), epoch, {}, stores)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "sock"))
    listener.listen()
    service.parts.server.listen(listener)
    yield service
    logging.getLogger().setLevel(level)
    service.parts.close()
    epoch.close()


def test_nobody_is_taken_in_any_more_once_the_end_is_decided(tmp_path: Path) -> None:
    async def check() -> None:
        with service_in_this_process(tmp_path) as service:
            sessions = service.parts.runtime.engine.sessions
            with WireClient(tmp_path / "sock"), WireClient(tmp_path / "sock"):
                while len(sessions) < 2:
                    service.parts.server.take_turn()
                service.parts.server.stop_accepting()
                with WireClient(tmp_path / "sock"):
                    assert not service.parts.server.take_turn()
                    assert len(sessions) == 2

    trio.run(check)


def test_memory_of_records_is_returned_soon_when_nobody_asks_for_anything(
    tmp_path: Path,
) -> None:
    seconds, keys = 2.0, 4_000

    async def check() -> None:
        stores = Stores()
        ledger = stores.ledger
        for change in (lambda key: ledger.put(key, bytes(300)), ledger.remove):
            for number in range(keys):
                change(b"%d" % number)
            ledger.commit()
        full = ledger.memory_bytes
        with service_in_this_process(tmp_path, stores=stores) as service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service._clear_away)
                await trio.sleep(seconds)
                nursery.cancel_scope.cancel()
        assert ledger.memory_bytes < full / 2
        for store in (stores.in_flight, ledger, stores.cells, stores.pipe):
            store.close()

    # Each step removes 16 keys at least, on the slowest machine too.
    assert keys / 16 < seconds / CLEARING
    trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))


def refuse(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.interpreted(run=False)  # it would leave its service behind
@pytest.mark.parametrize("what", ["kept", "watched"])
def test_client_that_cannot_be_taken_in_leaves_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        stores = Stores()
        with ExitStack() as stack:
            service = stack.enter_context(
                service_in_this_process(tmp_path, stores=stores)
            )
            for store in (stores.in_flight, stores.ledger, stores.cells, stores.pipe):
                stack.callback(store.close)
            before = os.listdir("/proc/self/fd")
            with WireClient(tmp_path / "sock") as client:
                with monkeypatch.context() as patched:
                    if what == "kept":
                        patched.setattr(stores.in_flight, "keep", refuse)
                    else:
                        patched.setattr(service.parts.poller, "watch", refuse)
                    service.parts.server.take_turn()
                assert client.rest() == []
            assert os.listdir("/proc/self/fd") == before
            assert not service.parts.runtime.engine.sessions
            assert not service.parts.answers.peers
            assert not service.parts.runtime.processes.owners()
            assert not list(stores.in_flight.labels)
            service.parts.keeping.commit(())
            assert not [x for x in stores.ledger.records() if b"peer" in x]

    trio.run(check)


def test_nobody_waits_for_a_directory_that_a_reload_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    new = {"new": LockspaceConfig("directory", str(tmp_path))}

    def read_slowly(path: str | None) -> Config:
        assert answers.wait(PATIENCE)
        return Config(log_level="error", lockspaces=Config().lockspaces | new)

    monkeypatch.setattr("lockd.daemon.service.read_config", read_slowly)
    (place := tmp_path / "state").mkdir()
    tmp_path.chmod(0o755)

    async def check() -> None:
        with service_in_this_process(place) as service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.reload)
                nursery.start_soon(service.reload)
                await trio.testing.wait_all_tasks_blocked()
                with WireClient(place / "sock"):
                    service.parts.server.take_turn()
                    assert len(service.parts.runtime.engine.sessions) == 1
                assert "new" not in service.parts.runtime.lockspaces
                answers.set()
            assert service.parts.runtime.lockspaces["new"].path == str(tmp_path)
            assert service.config.log_level == "error"

    trio.run(check)


def test_directory_that_never_answers_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def read_slowly(path: str | None) -> Config:
        assert answers.wait(PATIENCE)
        return Config(kill_grace=1.0)

    monkeypatch.setattr("lockd.daemon.service.read_config", read_slowly)
    monkeypatch.setattr("lockd.daemon.survival.handover.PATIENCE", 0.01)

    async def check() -> None:
        with service_in_this_process(tmp_path) as service:
            await service.reload()
            assert service.config == Config()
            assert service.parts.health.problems == [
                "cannot reload the configuration, the old one stays: it did not end "
                "within 0.01 s"
            ]
            answers.set()

    trio.run(check)


def activated(
    daemon: DaemonProcess, listener: socket.socket
) -> subprocess.Popen[bytes]:
    """Starts a daemon as systemd does, to end when idle; waits until it serves."""
    script = f'LISTEN_PID=$$ exec "$@" 3<&{listener.fileno()}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *daemon.command, "--timeout=0.5"],
        pass_fds=[listener.fileno()],
        env=os.environ | {"LISTEN_FDS": "1"},
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    if b"serves at" not in process.stderr.readline():
        process.communicate()
        raise AssertionError("it did not start")
    return process


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
