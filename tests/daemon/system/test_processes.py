"""Processes that must not outlive their locks."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from trio.testing import MockClock

from conftest import StartDaemon
from daemon.conftest import StartChild, register
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.system.poller import Poller
from lockd.daemon.system.processes import Process, Processes
from support.daemon_process import DaemonProcess
from support.processes import idle
from support.rights import needs_root
from support.wire_client import (
    NOBODY,
    Refusal,
    WireClient,
    connected_as_nobody,
    wait_for_waiters,
)

Sleeper = subprocess.Popen[bytes]

KILLING = """
[lockspaces.guarded]
kind = "memory"
on_disconnect = "kill"
"""


HOLD = "c = connect()\n{register}c.acquire('a', lockspace={lockspace!r})\n"
REGISTER = "c.call('register', owner={'name': 'vm'}, on_disconnect='kill')\n"
WAYS = pytest.mark.parametrize(
    ("registers", "lockspace"),
    [(REGISTER, "default"), ("", "guarded")],
    ids=["registered", "lockspace"],
)


@contextmanager
def visitor(daemon: DaemonProcess, lockspace: str = "guarded") -> Iterator[WireClient]:
    """A client that surely has let go of `a`, or this very process would be ended."""
    with WireClient(daemon.socket) as client:
        try:
            yield client
        finally:
            for msgid in range(1, client.last_msgid + 1):
                client.call("cancel", request=msgid)
            with suppress(Refusal):
                client.call("release", resource="a", lockspace=lockspace)


def hold(registers: str, lockspace: str) -> str:
    return HOLD.format(register=registers, lockspace=lockspace)


@WAYS
def test_process_that_closes_its_connection_is_dead_before_its_lock_is_given(
    registers: str, lockspace: str, start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    script = hold(registers, lockspace) + "ready(); sys.stdin.readline(); c.close()\n"
    child = start_child(daemon, script + "while True: signal.pause()")
    pidfd = os.pidfd_open(child.pid)
    with visitor(daemon, lockspace) as client:
        waiting = client.send("acquire", resource="a", lockspace=lockspace)
        wait_for_waiters(client, "a", 1, lockspace=lockspace)
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        client.result(waiting)
        os.set_blocking(pidfd, False)
        died = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert died is not None, "the lock was given while its holder lived"
        assert died.si_status == signal.SIGTERM
        last = client.call("query", resource="a", lockspace=lockspace)["last_holder"]
        assert last["ended"] == "disconnected"
    os.close(pidfd)


@pytest.mark.slow
def test_process_that_ignores_sigterm_is_killed_and_nobody_else_waits(
    start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    child = start_child(
        daemon,
        "signal.signal(signal.SIGTERM, lambda *_: ready('term'))\n"
        + hold("", "guarded")
        + "ready(); sys.stdin.readline(); c.close()\n"
        + "while True: signal.pause()",
    )
    with visitor(daemon) as client, WireClient(daemon.socket) as other:
        waiting = client.send("acquire", resource="a", lockspace="guarded")
        wait_for_waiters(client, "a", 1, lockspace="guarded")
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "term\n"
        for n in range(50):
            other.acquire(str(n))
            busy = other.refusal(
                "acquire", resource="a", lockspace="guarded", timeout=0
            )
            assert busy.code == "busy"
        assert child.poll() is None
        client.result(waiting)
        died = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert died is not None
        assert died.si_status == signal.SIGKILL


@WAYS
def test_process_without_locks_may_go_on(
    registers: str, lockspace: str, start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    child = start_child(
        daemon,
        hold(registers, lockspace)
        + f"c.call('release', resource='a', lockspace={lockspace!r}); c.close()\n"
        + "d = connect(); d.call('statistics')\n"
        + "ready(); sys.stdin.readline(); d.call('statistics'); ready('alive')",
    )
    assert child.communicate("\n")[0] == "alive\n"
    assert child.returncode == 0


@WAYS
def test_broken_grant_ends_the_process_before_the_next_has_it(
    registers: str, lockspace: str, start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    child = start_child(
        daemon, hold(registers, lockspace) + "ready(); print(c.rest()); signal.pause()"
    )
    with visitor(daemon, lockspace) as client:
        (holder,) = client.call("query", resource="a", lockspace=lockspace)["holders"]
        waiting = client.send("acquire", resource="a", lockspace=lockspace)
        client.call("break", fencing_token=holder["fencing_token"], reason="stuck")
        client.result(waiting)
        died = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert died is not None
        assert died.si_status == signal.SIGTERM


def test_session_that_is_being_fenced_gets_no_more_locks(
    start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    child = start_child(
        daemon,
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        + hold("", "guarded")
        + "ready(); c.notification('lost')\n"
        + "ready(c.refusal('acquire', resource='b').code); sys.stdin.readline()\n"
        + "os._exit(0)",
    )
    with visitor(daemon) as client:
        query: dict[str, Any] = {"resource": "a", "lockspace": "guarded"}
        (holder,) = client.call("query", **query)["holders"]
        client.call("break", fencing_token=holder["fencing_token"], reason="stuck")
        assert child.stdout is not None
        assert child.stdout.readline() == "unavailable\n"
        assert client.call("query", **query)["holder_count"] == 1
        waiting = client.send("acquire", **query)
        child.communicate("\n")
        client.result(waiting)


def test_locks_that_nobody_may_outlive_do_not_end_their_holder_with_the_daemon(
    start_daemon: StartDaemon, start_child: StartChild
) -> None:
    daemon = start_daemon(KILLING)
    child = start_child(
        daemon,
        hold("", "guarded") + "ready(); c.rest(); ready('eof'); sys.stdin.readline()",
    )
    assert daemon.stop() == 0
    assert child.communicate("\n")[0] == "eof\n"
    assert child.returncode == 0


async def test_sigkill_that_was_refused_is_sent_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, process: Sleeper
) -> None:
    sent: list[signal.Signals] = []
    send = signal.pidfd_send_signal

    def refuse_twice(pidfd: int, number: signal.Signals) -> None:
        if number and len(sent) < 3:
            sent.append(number)
            raise PermissionError
        send(pidfd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse_twice)
    processes = Processes(Poller(), Keeping(), lambda owner_id: None)
    pidfd = os.pidfd_open(process.pid)
    found = Process(process.pid, pidfd, sender=os.getuid())
    processes.add_peer(1, found)
    processes.begin_fencing(1)
    await processes.fence(1)
    assert found.is_dead
    processes.close()
    assert sent == [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]


# Rights to end a process, and what becomes of locks where there is none.


@pytest.fixture
def program() -> Iterator[Path]:
    """A program that runs as root, whoever starts it, until its input ends."""
    place = Path(tempfile.mkdtemp(prefix="lockd-test-"))
    place.chmod(0o755)
    path = place / "cat"
    shutil.copy("/bin/cat", path)
    path.chmod(0o4755)
    yield path
    shutil.rmtree(place)


@needs_root
@pytest.mark.parametrize("asks", ["registration", "lockspace"])
def test_who_could_not_end_a_process_gets_no_lock_for_which_it_would_have_to_be(
    asks: str, start_daemon: StartDaemon, process: Sleeper
) -> None:
    daemon = start_daemon(KILLING)
    with connected_as_nobody(daemon.socket) as stranger:
        owner = {"name": "vm", "pid": process.pid}
        if asks == "registration":
            refusal = stranger.refusal("register", owner=owner, on_disconnect="kill")
        else:
            stranger.call("register", owner=owner)
            stranger.acquire("a")  # nobody is ended for that
            refusal = stranger.refusal("acquire", resource="b", lockspace="guarded")
        assert refusal.code == "denied"
        assert f"uid {NOBODY} may not kill process {process.pid}" in refusal.sentence


@pytest.mark.parametrize("pid", [1, "daemon"])
def test_nobody_locks_for_who_is_never_ended(
    pid: int | str, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(KILLING)
    with WireClient(daemon.socket) as client:
        owner = {"name": "init", "pid": daemon.pid if pid == "daemon" else pid}
        refusal = client.refusal("register", owner=owner, on_disconnect="kill")
        assert refusal.code == "denied"


@needs_root
def test_root_may_end_who_a_user_registered_once_it_registers_it_too(
    start_daemon: StartDaemon, program: Path
) -> None:
    """What is fenced is fenced for the one of them that has the right."""
    daemon = start_daemon(KILLING)
    with (
        idle(str(program), user=NOBODY) as theirs,
        WireClient(daemon.socket) as admin,
        connected_as_nobody(daemon.socket) as nobody,
    ):
        owner = {"name": "vm", "pid": theirs.pid}
        nobody.call("register", owner=owner)
        assert nobody.refusal("acquire", lockspace="guarded", resource="a").code == (
            "denied"
        )
        admin.call("register", owner=owner)
        token = admin.acquire("a", lockspace="guarded")["fencing_token"]
        with WireClient(daemon.socket) as other:
            other.call("break", fencing_token=token, reason="stuck")
        assert theirs.wait() == -signal.SIGTERM


class Climber(NamedTuple):
    """The test's end of `who_becomes_root`."""

    pid: int
    sock: socket.socket

    def call(self, method: str, **params: object) -> Any:
        """Has it ask the daemon, once; returns the result."""
        self.sock.sendall(msgpack.packb([0, 1, method, [params]]))
        _, _, error, result = msgpack.unpackb(self.sock.recv(65536))
        assert error is None
        return result

    def climb(self) -> None:
        """Has it become root's."""
        self.sock.sendall(b"!")
        self.sock.sendall(b"ready")
        assert self.sock.recv(5) == b"ready"

    @property
    def is_alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)


@contextmanager
def who_becomes_root(daemon: DaemonProcess, program: Path) -> Iterator["Climber"]:
    """A process of nobody, with a connection, that becomes root's when it is told."""
    daemon.socket.chmod(0o666)
    daemon.socket.parent.chmod(0o755)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(daemon.socket.parent)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(daemon.socket.name)
                sock.set_inheritable(True)
                theirs.sendall(b"nobody")
                sock.sendall(theirs.recv(65536))
                theirs.sendall(sock.recv(65536))
                theirs.recv(1)
                os.dup2(theirs.fileno(), 0)
                os.dup2(theirs.fileno(), 1)
                os.execv(program, [str(program)])
        finally:
            os._exit(1)
    theirs.close()
    try:
        assert ours.recv(6) == b"nobody"
        yield Climber(pid, ours)
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@needs_root
@pytest.mark.parametrize("upgrades", [False, True])
def test_who_became_root_is_not_ended_for_a_user_and_keeps_its_lock_until_a_break(
    upgrades: bool, start_daemon: StartDaemon, program: Path
) -> None:
    daemon = start_daemon(KILLING)
    where = {"lockspace": "guarded", "resource": "a"}
    with (
        who_becomes_root(daemon, program) as climber,
        WireClient(daemon.socket) as admin,
        WireClient(daemon.socket) as other,
    ):
        token = climber.call("acquire", **where)["grant"]["fencing_token"]
        climber.climb()
        (holder,) = admin.call("query", **where)["holders"]
        admin.call("disconnect", session=holder["session"], reason="test")
        assert "may not kill" in daemon.wait_for_line(f"process {climber.pid} ")
        if upgrades:
            daemon.upgrade()
        assert admin.call("query", **where)["holder_count"] == 1
        waiting = admin.send("acquire", **where)
        wait_for_waiters(other, "a", 1, lockspace="guarded")
        other.call("break", fencing_token=token, reason="it hangs")
        assert admin.result(waiting)["grant"]["fencing_token"] > token
        assert climber.is_alive
        admin.call("release", **where)


@needs_root
def test_break_frees_what_is_held_for_a_process_that_became_root(
    start_daemon: StartDaemon, program: Path
) -> None:
    daemon = start_daemon(KILLING)
    with (
        who_becomes_root(daemon, program) as climber,
        connected_as_nobody(daemon.socket) as nobody,
        WireClient(daemon.socket) as admin,
    ):
        register(nobody, climber.pid, on_disconnect="kill")
        token = nobody.acquire("a")["fencing_token"]
        climber.call("statistics")
        climber.climb()
        admin.call("break", fencing_token=token, reason="it hangs")
        assert nobody.notification("lost")["cause"] == "broken"
        assert admin.call("query", resource="a")["holder_count"] == 0
        assert climber.is_alive


@pytest.mark.interpreted
def test_process_that_cannot_be_watched_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, process: Sleeper
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Noted(Keeping):
        def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
            kept[owner_id] = pidfd

        def drop_pidfd(self, owner_id: int) -> None:
            del kept[owner_id]

    kept: dict[int, int] = {}
    poller = Poller()
    processes = Processes(poller, Noted(), lambda owner_id: None)
    found = Process(process.pid, os.pidfd_open(process.pid), sender=os.getuid())
    with monkeypatch.context() as patched:
        patched.setattr(poller, "watch", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            processes.add_registered(7, found)
    assert (kept, processes.owners(), processes.registered(found.pid)) == ({}, [], None)
    processes.add_registered(7, found)
    assert (kept, processes.registered(found.pid)) == ({7: found.pidfd}, 7)
    processes.close()
    poller.close()
