"""What a defect costs: the request that met it, or, in the lock table, everything."""

import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgpack
import pytest

from lockd.daemon.activity.counts import Counts
from lockd.daemon.activity.health import Health
from lockd.daemon.activity.life import Life
from lockd.daemon.clients.access import Access, rights_of
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import Limits, LockspaceConfig, make_lockspace
from lockd.daemon.replies import statistics
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.reader import Reader
from lockd.daemon.requests.dispatch import Dispatcher
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.requests.sessions import Sessions
from lockd.daemon.system.credentials import Credentials, Identity
from lockd.daemon.system.epoch import LAST_TOKEN
from lockd.daemon.system.poller import Poller
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import LockFile, Lockspace
from lockd.lockspaces.memory import MemoryLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.rights import User
from lockd.terms import Create, Kind, Mode, OnDisconnect


class DefectError(Exception):
    pass


class DefectiveLockspace(Lockspace):
    kind = "directory"

    def open_anchor(
        self,
        resource: str,
        mode: Mode,
        *,
        create: Create,
        in_use: bool,
        user: User | None = None,
        only_byte: bool = False,
        whole: bool = False,
    ) -> LockFile:
        raise DefectError

    def close_anchor(self, resource: str) -> None:
        raise AssertionError("nothing was opened")

    def create_resource(self, resource: str) -> None:
        raise DefectError


class Scene:
    """A daemon without its loop, and one client of it."""

    def __init__(self) -> None:
        self.poller = Poller()
        access = Access()
        answers = Answers(access, Counts())
        self.engine = LockEngine()
        self.runtime = Runtime(
            self.engine,
            answers,
            self.poller,
            Keeping(),
            checks=True,
        )
        self.runtime.add_lockspace(MemoryLockspace("default"))
        self.runtime.add_lockspace(DefectiveLockspace("defective"))
        self.files = OpenFiles()

        def make(
            name: str,
            kind: Kind,
            path: str | None,
            *,
            on_disconnect: OnDisconnect = "release",
        ) -> Lockspace:
            return make_lockspace(name, "memory", path, self.files)

        for name in self.runtime.lockspaces:
            access.set_rights(name, rights_of(LockspaceConfig("memory")))
        tokens = SimpleNamespace(reserved=LAST_TOKEN)
        late = answers.late_by_user
        limiter = Limiter(self.engine, Limits(), late, tokens, Keeping(), bool)
        spaces = self.runtime.lockspaces
        finder = Finder(self.engine, access, spaces)
        history, redaction = self.runtime.history, answers.redaction
        reader = Reader(self.engine, history, spaces, answers, finder, redaction)
        self.dispatcher = Dispatcher(
            self.runtime,
            answers,
            access,
            limiter,
            reader,
            finder,
            Keeping(),
            Life(0.0),
            1,
            "0" * 32,
            make,
            Health(),
        )
        sessions = Sessions(self.runtime, answers, reader, limiter, Keeping())
        self.ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(10)
        identity = Identity(Credentials(0, 0, 0), frozenset([0]), None, False, 0)
        self.peer = Peer(
            1, self.ours, identity, 0.0, lambda events: None, is_admin=True
        )
        sessions.open(self.peer, "test", None)

    def ask(self, method: str, **params: object) -> list[object]:
        self.theirs.sendall(msgpack.packb([0, 1, method, [params]]))
        self.peer.receive(self.dispatcher.take)
        while self.peer.has_more:  # it took longer than a turn may take
            self.peer.receive(self.dispatcher.take)
        self.peer.flush()
        answer: list[object] = msgpack.unpackb(self.theirs.recv(65_536))
        return answer[2:]

    def say(self, data: bytes) -> None:
        self.theirs.sendall(data)
        self.peer.receive(self.dispatcher.take)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        self.files.mounts.close()
        self.poller.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


INTERNAL = [
    1,
    "internal: this is a defect of lockd: report it with the lines that follow in "
    "its log",
]


@pytest.mark.interpreted
async def test_nothing_is_read_of_a_conversation_that_has_ended(scene: Scene) -> None:
    half = msgpack.packb([0, 1, "query", [{"resource": "a"}]])[:-3]
    scene.say(half)
    assert scene.peer.dump_state()[1].connection["partial"] == half
    scene.say(b"\xc1" * 10)
    assert scene.peer.is_closing
    done = scene.peer.dump_state()[0].done
    # Its sender goes on, and the socket is still looked at in this turn.
    scene.say(half)
    position, rest = scene.peer.dump_state()
    assert (position.done, rest.connection["partial"]) == (done, b"")


@pytest.mark.interpreted
async def test_defect_of_a_lockspace_refuses_the_request(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.ask("acquire", resource="a")
    error, result = scene.ask("acquire", lockspace="defective", resource="b")
    assert isinstance(error, list)
    assert error[1].startswith("internal: this is a defect of lockd")
    assert result is None
    assert "DefectError" in caplog.text
    assert scene.ask("create_resource", lockspace="defective", resource="b") == [
        INTERNAL,
        None,
    ]
    assert scene.engine.held == 1


@pytest.mark.interpreted
async def test_defect_of_an_inquiry_refuses_the_request(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engine: LockEngine) -> None:
        raise DefectError

    scene.ask("acquire", resource="a")
    monkeypatch.setattr(statistics, "counts", broken)
    assert scene.ask("statistics") == [INTERNAL, None]
    assert scene.engine.held == 1


@pytest.mark.interpreted
async def test_defect_of_the_lock_table_ends_the_daemon(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DefectError

    monkeypatch.setattr(scene.engine, "handle", broken)
    with pytest.raises(DefectError):
        scene.ask("acquire", resource="a")
