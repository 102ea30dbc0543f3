"""What a defect costs that one client meets: its connection, and nobody else anything.

An exception is raised at each place where a turn does something for a client, and
everybody else goes on. The tables name every method of the classes concerned: of a new
one it has to be said what it costs if it fails.
"""

import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.served import Served
from lockd.daemon.activity.counts import Counts
from lockd.daemon.activity.history import History
from lockd.daemon.clients.admission import Admission
from lockd.daemon.clients.gate import Gate
from lockd.daemon.clients.outbox import Outbox
from lockd.daemon.clients.peer import Peer
from lockd.daemon.replies.answers import Answers
from lockd.daemon.requests import runtime
from lockd.daemon.requests.dispatch import Dispatcher
from lockd.daemon.requests.sessions import Sessions
from lockd.daemon.server import Server
from lockd.daemon.stores.streams import KeptFlow, PlainFlow
from lockd.daemon.survival.keeping import StoredKeeping
from lockd.daemon.survival.recording import Recorder
from lockd.daemon.system.poller import Poller
from lockd.daemon.system.processes import Processes
from lockd.protocol.connection import Connection
from support.places import TESTS
from support.processes import idle
from support.wire_client import Refusal, WireClient, wait_for_sessions, wait_for_waiters


class InjectedError(Exception):
    pass


# What is done for one client: an exception there is raised below.

LIFE: Final[dict[type, str]] = {
    Poller: "watch change unwatch",
    Outbox: "add send miss_notices",
    Peer: "receive collect flush fileno _read introduce restrict "
    "claim_itself make_inheritable begin_watching close_after_answers leave "
    "send_result send_error",
    PlainFlow: "receive send settle",
    KeptFlow: "begin receive send settle _send_some _take_out",
    Connection: "receive send_result send_error send_notification send_encoded "
    "data_to_send _understand _plain_calls _receive _decoded greet",
    Answers: "add_peer remove_peer add_watcher _answer_granted _answer_completed "
    "_answer_refused _facts _tell_lost _tell_notice tell_missed tell_events",
    History: "granted ended queued refused",
    Counts: "count_granted count_ended count_queued count_refused count_overdue "
    "end_session",
    StoredKeeping: "open_flow open_peer close_peer",
    Sessions: "open close tell_missed",
    Recorder: "open_peer _put_state close_peer _note_session",
    Processes: "add_peer watch_peer unwatch_peer forget",
    Admission: "_make_peer _open_flow",
    Server: "_open _watch _serve _serve_now _receive _put_off _expect_rest "
    "_send_to _refuse_all _taker _close_peer_and_tell _close_peer",
    Dispatcher: "take _acquire _convert _release _is_of_another _cancel "
    "_break _register _restrict _hello _statistics _watch watch "
    "_create_lockspace _change_file "
    "_disconnect _audit",
}
ORPHAN: Final[dict[type, str]] = {
    Peer: "end_with_process",
    Server: "_end_with_process",
}
SILENCE: Final[dict[type, str]] = {
    Peer: "_end_requests",
    Dispatcher: "is_done_with",
}
DEATH: Final[dict[type, str]] = {
    Processes: "add_registered unregister",
    StoredKeeping: "keep_pidfd drop_pidfd",
}
FENCING: Final[dict[type, str]] = {
    Processes: "begin_fencing fence",
}

# What is done for all, or only asked, or done while nobody is served yet; what stands
# outside and does nothing but guard what is inside; and the last thing that can be
# done, which is a system call whose errors do not matter.

OTHERS: Final[dict[type, str]] = {
    Poller: "__init__ fileno stay_awake act _ignore close",
    Peer: "__init__ __repr__ shut_down close dump dump_state load_state "
    "finish_receiving abandon cut_off tell_resumed",
    Outbox: "__init__ __len__ forget dump load",
    PlainFlow: "__init__",
    KeptFlow: "__init__ resume",
    Connection: "__init__ dump load",
    Answers: "__init__ conclude blame blame_for tell_watchers expect",
    History: "__init__ _add of",
    Counts: "__init__ space adopt set_thresholds _watch_holds count_turned_away "
    "count_refusal _wait _end_wait _end end_all",
    StoredKeeping: "__init__ descriptors take_up_flow _new_slot abandon_flow keep_file "
    "drop_file commit unlocked hold_stuck _disown_files forget_the_rest note_files "
    "tidy write_anew tidy_thoroughly compact stage_late note_process note_lockspace "
    "note_config record_anew adopt_records",
    Recorder: "__init__ commit _could_cut_off _record_process _record_daemon "
    "record_anew stage_all _record_noted adopt_records _everything note_process "
    "note_config note_lockspace _put _remove _note_last stage_late",
    Processes: "__init__ configure _died _mark registered owners of is_fencing doomed "
    "pidfds dump_one load close can_end empower",
    Server: "__init__ listen adopt _go_on stop_accepting finish_turn run "
    "_finish_receiving _guarded _blame _serve_guarded _has_work _next_deadline "
    "_keep_deadlines _take_turns take_turn _give_turns end_turn _end_turn close "
    "_send_answers "
    "take_in _users_who_wait _let_in let_all_in _tell_watchers _tell",
    Admission: "__init__ arrive admit _remove close _dismiss",
    Dispatcher: "__init__ has_registered owner_pid add_handler _check_file",
    Sessions: "__init__ adopt",
    Gate: "__init__ listen stop close keep_deadlines complain _watch _accept_all "
    "_turn_away _pause",
}

SCENARIOS: Final = [LIFE, ORPHAN, SILENCE, DEATH, FENCING]


def names(table: dict[type, str], owner: type) -> list[str]:
    return table.get(owner, "").split()


@pytest.mark.interpreted
@pytest.mark.parametrize("owner", OTHERS)
def test_of_every_method_it_is_said_what_it_costs(owner: type) -> None:
    said = [x for table in (*SCENARIOS, OTHERS) for x in names(table, owner)]
    there = [name for name, x in vars(owner).items() if inspect.isfunction(x)]
    assert sorted(said) == sorted(there)


# Breaking it.

planted = pytest.mark.interpreted(run=False)
"""Compiled callers call a compiled method itself, whatever replaces it."""


class Plan:
    """Where the victim meets a defect, once.

    Args:
        owner: the class.
        name: of its method.
    """

    def __init__(self, owner: type, name: str) -> None:
        self.hits = 0
        self._owner = owner
        self._name = name
        #: The victim: its session, its socket here.
        self._session: int | None = None
        self._fd: int | None = None
        self._served: Served

    def arm(self, served: Served) -> None:
        """Makes the next client the victim."""
        self._served = served
        self._session = served.service.parts.life.last_number + 1

    def install(self, patch: pytest.MonkeyPatch) -> None:
        take_in = Server.take_in

        def note(server: Server, sock: Any, role: Any) -> None:
            if self._session == server._admission._life.last_number + 1:
                self._fd = sock.fileno()
            take_in(server, sock, role)

        patch.setattr(Server, "take_in", note)
        original = vars(self._owner)[self._name]

        @wraps(original)
        def broken(this: Any, *args: Any, **options: Any) -> Any:
            if self._session is not None and self._is_victim(this, args):
                self.hits += 1
                if self.hits == 1:
                    raise InjectedError
            return original(this, *args, **options)

        patch.setattr(self._owner, self._name, broken)

    def takes_all(self) -> bool:
        """Tells whether the victim has been sent all there is for it until now."""
        peer = self._served.service.parts.answers.peers.get(self._session or 0)
        return peer is not None and not peer.outbox.is_behind and not self.hits

    def _is_victim(self, this: Any, args: tuple[Any, ...]) -> bool:
        if self._owner is Poller:
            return args[0] in (self._fd, self._pidfd())
        if self._owner is Outbox:
            return bool(this._flow._sock.fileno() == self._fd)
        if self._owner in (PlainFlow, KeptFlow):
            return bool(this._sock.fileno() == self._fd)
        if self._owner is Connection:
            peer = self._served.service.parts.answers.peers.get(self._session or 0)
            return peer is not None and peer.connection is this
        return any(map(self._is_of_victim, (this, *args)))

    def _is_of_victim(self, thing: Any) -> bool:
        thing = getattr(thing, "grant", thing)
        session = self._session or 0
        numbers = (thing, getattr(thing, "session", None))
        # A process that it registered is the next owner after it.
        is_owner = self._owner in (Processes, StoredKeeping) and session + 1 in numbers
        return session in numbers or is_owner

    def _pidfd(self) -> int:
        process = self._served.service.parts.runtime.processes.of(self._session or 0)
        return -1 if process is None else process.pidfd


def cases(table: dict[type, str]) -> Callable[[Any], Any]:
    found = [(owner, name) for owner in table for name in names(table, owner)]
    return pytest.mark.parametrize(
        ("owner", "name"), found, ids=[f"{x.__name__}.{name}" for x, name in found]
    )


KEPT_ONLY: Final = (StoredKeeping, KeptFlow, Recorder)


@pytest.fixture(params=["plain", "kept"])
def kept(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "kept")


class Scene:
    """Some honest clients, and a victim to come."""

    def __init__(self, served: Served, plan: Plan) -> None:
        self.served = served
        self.plan = plan
        self.honest = WireClient(served.socket)
        self.waiter = WireClient(served.socket)
        self.watcher = WireClient(served.socket)
        self.watcher.call("watch")
        self.honest.acquire("h")
        self.waiting = self.waiter.send("acquire", resource="h")
        wait_for_waiters(self.honest, "h", 1)
        self.honest.acquire("w")
        plan.arm(served)

    def all_is_well(self) -> None:
        """Checks that nobody else has lost anything, and nothing is left behind."""
        wait_for_sessions(self.honest, 3)
        for name in ("v", "p", "q", "s"):
            self.honest.acquire(name, timeout=20)
        self.honest.call("release", resource="h")
        assert self.waiter.result(self.waiting)["grant"]["resource"] == "h"
        waiting = self.honest.send("acquire", resource="h")
        self.waiter.call("release", resource="h")
        token = self.honest.result(waiting)["grant"]["fencing_token"]
        while self.watcher.notification("event").get("fencing_token") != token:
            pass
        new = WireClient(self.served.socket)
        new.acquire("new")
        new.close()
        wait_for_sessions(self.honest, 3)
        assert self.honest.call("statistics")["waiting"] == 0

    def close(self) -> None:
        for client in (self.honest, self.waiter, self.watcher):
            client.close()


@pytest.fixture
def scene(
    kept: bool,
    owner: type,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    others = (PlainFlow,) if kept else (*KEPT_ONLY, Peer.collect)
    if owner in others or getattr(owner, name) in others:
        pytest.skip("this daemon does not use it")
    plan = Plan(owner, name)
    plan.install(monkeypatch)
    with Served(tmp_path, kept=kept) as served:
        scene = Scene(served, plan)
        yield scene
        scene.close()


Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start_victim(scene: Scene) -> Iterator[Start]:
    """Starts a process that is the victim; tells when it holds the lock v."""
    with ExitStack() as stack:

        def start(script: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", VICTIM + script, str(scene.served.socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(TESTS)},
                process_group=0,
            )
            stack.enter_context(process)
            stack.callback(end_group, process.pid)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield start


VICTIM = """
import os, signal, sys
from support.wire_client import WireClient
victim = WireClient(sys.argv[1])
try:
    victim.call("register", owner={"name": "victim"}, on_disconnect="kill")
    victim.acquire("v")
except Exception:
    pass
"""


def end_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def logged(caplog: pytest.LogCaptureFixture) -> list[type[BaseException]]:
    return [
        x.exc_info[0]
        for x in caplog.records
        if x.exc_info and x.exc_info[0] and "defect" in x.getMessage()
    ]


@planted
@cases(LIFE)
def test_defect_in_what_is_done_for_a_client_costs_its_connection(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    victim = WireClient(scene.served.socket)
    try:
        live(victim, scene)
    except Refusal as refusal:
        if refusal.code != "internal":
            raise
    except (OSError, AssertionError):
        assert victim.rest() is not None
    victim.close()
    scene.all_is_well()
    assert scene.plan.hits
    assert InjectedError in logged(caplog)


@planted
@cases(ORPHAN)
def test_defect_at_the_death_of_its_process_costs_a_client_no_more_than_its_session(
    scene: Scene, start_victim: Start, caplog: pytest.LogCaptureFixture
) -> None:
    start_victim("if os.fork(): print(flush=True); os._exit(0)\nsignal.pause()").wait()
    scene.all_is_well()
    assert scene.plan.hits
    assert InjectedError in logged(caplog)


@planted
@cases(FENCING)
def test_defect_in_ending_a_process_leaves_nobody_waiting_for_its_locks(
    scene: Scene,
    start_victim: Start,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "AGAIN", 0.01)
    victim = start_victim("victim.close(); print(flush=True); signal.pause()")
    scene.all_is_well()
    assert victim.wait() == -signal.SIGTERM
    assert scene.plan.hits
    assert InjectedError in logged(caplog)


@planted
@cases(SILENCE)
def test_defect_after_a_client_has_said_all_costs_its_connection(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with WireClient(scene.served.socket) as victim:
        victim.acquire("v")
        victim.socket.shutdown(socket.SHUT_WR)
        assert victim.rest() == []
    scene.all_is_well()
    assert scene.plan.hits
    assert InjectedError in logged(caplog)


@planted
@cases(DEATH)
def test_defect_about_a_registered_process_costs_only_who_registered_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        WireClient(scene.served.socket) as victim,
        idle() as process,
    ):
        with suppress(Refusal):
            victim.call("register", owner={"name": "victim", "pid": process.pid})
        victim.acquire("v")
        process.kill()
        victim.call("query", resource="v")
    scene.all_is_well()
    assert scene.plan.hits
    assert InjectedError in logged(caplog)


def live(victim: WireClient, scene: Scene) -> None:
    """Does everything that a client can do, and leaves half a message at the end."""
    honest = scene.honest
    victim.call("hello", protocol=1, client="victim")
    victim.call(
        "register", owner={"name": "victim", "pid": os.getpid()}, inheritable=True
    )
    victim.call("watch")
    victim.acquire("v")
    _, lost = victim.call("acquire", resources=["q", "p"])["grants"]
    honest.call("break", fencing_token=lost["fencing_token"], reason="x")
    victim.notification("lost")
    victim.acquire("s", mode="shared")
    victim.call("convert", resource="s", mode="exclusive")
    must_refuse(victim, "acquire", resource="w", timeout=0)
    given_up = victim.send("acquire", resource="h")
    victim.call("cancel", request=given_up)
    with suppress(Refusal):
        victim.result(given_up)
    waiting = victim.send("acquire", resource="w")
    victim.call("query", resource="w")
    honest.call("release", resource="w")
    victim.result(waiting)
    victim.acquire("u", wanted=True, max_hold=0.01)
    victim.notification("notice")
    victim.call("release", resource="q")
    token = victim.acquire("q")["fencing_token"]
    victim.call("release", fencing_token=token)
    must_refuse(victim, "break", fencing_token=2**40, reason="x")
    must_refuse(victim, "disconnect", session=999, reason="x")
    token = honest.acquire("broken")["fencing_token"]
    victim.call("break", fencing_token=token, reason="x")
    victim.call("create_lockspace", name="made", kind="memory")
    for method in ("create_resource", "delete_resource"):
        must_refuse(victim, method, lockspace="made", resource="x")
    # More answers than the socket takes, and more requests than a turn has time for.
    asked = [victim.send("metrics") for _ in range(30)]
    while scene.plan.takes_all():
        honest.call("query", resource="v")
    wanted = honest.send("acquire", resource="u")
    honest.call("cancel", request=wanted)
    with suppress(Refusal):
        honest.result(wanted)
    for msgid in asked:
        victim.result(msgid)
    victim.call("statistics")
    victim.call("restrict")
    victim.send_bytes(b"\x94\x00")
    victim.rest()


def must_refuse(victim: WireClient, method: str, **params: object) -> None:
    try:
        victim.call(method, **params)
    except Refusal as refusal:
        if refusal.code == "internal":
            raise
