"""Anchors on file systems that may hang are opened in a thread and stall nobody."""

import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lockd.daemon.activity.counts import Counts
from lockd.daemon.clients.access import Access
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.config.config import Config
from lockd.daemon.replies.answers import Answers
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.survival import handover
from lockd.daemon.system.poller import Poller
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.commands import Owner
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_table import TRY_PATIENCE
from lockd.errors import AnchorError, CodedError, ConfigError
from lockd.lockspaces.base import LockFile, Lockspace
from lockd.lockspaces.memory import MemoryLockspace
from lockd.lockspaces.rights import User
from lockd.terms import EXCLUSIVE, Create, Mode, ResourceKey

pytestmark = pytest.mark.interpreted

LIMIT = 30
HUNG = ResourceKey("hung", "web1")
OTHER_HUNG = ResourceKey("hung", "web2")
LOCAL = ResourceKey("local", "web1")
MEMORY = ResourceKey("default", "backup")


class ServedLockspace(Lockspace):
    """Writes down what it is told to do, and where it was told so."""

    kind = "directory"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, str]] = []
        self.threads: set[threading.Thread] = set()

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
        self._note("open", resource)
        return LockFile(-1, (0, 0), made=False)

    def close_anchor(self, resource: str) -> None:
        self._note("close", resource)

    def _note(self, verb: str, resource: str) -> None:
        self.threads.add(threading.current_thread())
        self.calls.append((verb, resource))


class HungLockspace(ServedLockspace):
    """Opens no anchor before the file system answers again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.answers = threading.Event()
        self.fails = False

    def anchor_is_slow(self, resource: str) -> bool:
        return True

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
        assert self.answers.wait(LIMIT)
        file = super().open_anchor(resource, mode, create=create, in_use=in_use)
        if self.fails:
            raise AnchorError("the file cannot be locked: Input/output error")
        return file


class RecordedAnswers(Answers):
    """Keeps what each request is answered with."""

    def __init__(self) -> None:
        super().__init__(Access(), Counts())
        self.given: dict[tuple[int, int], e.Effect] = {}
        self._news = trio.Event()
        self.carriers = dict.fromkeys((e.Granted, e.Refused, e.Completed), self._keep)

    def _keep(self, effect: e.Granted | e.Refused | e.Completed, now: float) -> None:
        self.given[effect.session, effect.request] = effect
        self._news.set()
        self._news = trio.Event()

    async def wait_given(self, session: int, request: int) -> e.Effect:
        while (session, request) not in self.given:
            await self._news.wait()
        return self.given[session, request]


class Scene:
    """A runtime that runs, with two sessions and three lockspaces."""

    def __init__(self) -> None:
        self.answers = RecordedAnswers()
        self.poller = Poller()
        self.runtime = Runtime(
            LockEngine(),
            self.answers,
            self.poller,
            Keeping(),
            checks=True,
        )
        self.hung, self.local = HungLockspace("hung"), ServedLockspace("local")
        for lockspace in (self.hung, self.local, MemoryLockspace("default")):
            self.runtime.add_lockspace(lockspace)
        for session in (1, 2):
            owner = Owner(f"client {session}", pid=session, uid=0)
            self.runtime.carry_out(c.OpenSession(session, owner))
        self.requests = 0

    def acquire(
        self, session: int, key: ResourceKey, timeout: float | None = None
    ) -> int:
        """Begins a request; returns its number."""
        self.requests += 1
        self.runtime.carry_out(
            c.Acquire(session, self.requests, (key,), EXCLUSIVE, timeout)
        )
        self.runtime.end_turn()
        return self.requests

    def release(self, session: int, key: ResourceKey) -> None:
        self.requests += 1
        self.runtime.carry_out(c.Release(session, self.requests, (key,)))
        self.runtime.end_turn()

    def is_granted(self, session: int, request: int) -> bool:
        return isinstance(self.answers.given.get((session, request)), e.Granted)

    async def refusal(self, session: int, request: int) -> str:
        refused = await self.answers.wait_given(session, request)
        assert isinstance(refused, e.Refused)
        return refused.code


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.runtime.run, scene.runtime.end_turn)
        try:
            yield scene
        finally:
            scene.hung.answers.set()
            nursery.cancel_scope.cancel()
    scene.runtime.close()
    scene.poller.close()


async def test_others_are_served_while_a_file_system_hangs(scene: Scene) -> None:
    hung = scene.acquire(1, HUNG)
    assert scene.is_granted(1, scene.acquire(1, LOCAL))
    assert scene.is_granted(1, scene.acquire(1, MEMORY))
    assert scene.is_granted(2, scene.acquire(2, ResourceKey("default", "other")))
    assert (1, hung) not in scene.answers.given


async def test_lock_is_granted_when_the_file_system_answers(scene: Scene) -> None:
    request = scene.acquire(1, HUNG)
    scene.hung.answers.set()
    assert isinstance(await scene.answers.wait_given(1, request), e.Granted)
    assert threading.current_thread() not in scene.hung.threads


async def test_failure_of_the_file_system_refuses_the_request(scene: Scene) -> None:
    scene.hung.fails = True
    request = scene.acquire(1, HUNG)
    scene.hung.answers.set()
    assert await scene.refusal(1, request) == "io"


async def test_fast_anchors_are_opened_in_the_loop(scene: Scene) -> None:
    scene.acquire(1, LOCAL)
    scene.release(1, LOCAL)
    assert scene.local.threads == {threading.current_thread()}
    assert scene.local.calls == [("open", "web1"), ("close", "web1")]


async def test_cancel_is_answered_at_once(scene: Scene) -> None:
    request = scene.acquire(1, HUNG)
    scene.runtime.carry_out(c.Cancel(1, 99, request))
    refused = scene.answers.given[1, request]
    assert isinstance(refused, e.Refused)
    assert refused.code == "cancelled"
    assert isinstance(scene.answers.given[1, 99], e.Completed)


async def test_timeout_is_answered_in_time(
    scene: Scene, autojump_clock: MockClock
) -> None:
    started = trio.current_time()
    request = scene.acquire(1, HUNG, timeout=3)
    assert await scene.refusal(1, request) == "timeout"
    assert trio.current_time() == pytest.approx(started + 3)


async def test_try_gives_up_after_its_patience(
    scene: Scene, autojump_clock: MockClock
) -> None:
    started = trio.current_time()
    request = scene.acquire(1, HUNG, timeout=0)
    assert await scene.refusal(1, request) == "timeout"
    assert trio.current_time() == pytest.approx(started + TRY_PATIENCE)


async def test_lock_that_comes_too_late_is_given_back(scene: Scene) -> None:
    request = scene.acquire(1, HUNG)
    scene.runtime.carry_out(c.Cancel(1, 99, request))
    scene.hung.answers.set()
    # The next one's turn comes when the late anchor has been closed.
    following = scene.acquire(2, HUNG)
    assert isinstance(await scene.answers.wait_given(2, following), e.Granted)
    assert not scene.is_granted(1, request)
    scene.release(2, HUNG)
    after = scene.acquire(1, HUNG)
    assert isinstance(await scene.answers.wait_given(1, after), e.Granted)
    assert scene.runtime.engine.held == 1


async def test_disconnect_is_not_held_up(scene: Scene) -> None:
    scene.acquire(1, HUNG)
    other = scene.acquire(1, MEMORY)
    waiter = scene.acquire(2, MEMORY)
    scene.runtime.carry_out(c.CloseSession(1))
    assert scene.is_granted(1, other)
    assert scene.is_granted(2, waiter)


async def test_anchors_are_opened_and_closed_in_the_order_of_requests(
    scene: Scene,
) -> None:
    first = scene.acquire(1, HUNG)
    scene.acquire(1, OTHER_HUNG)
    scene.hung.answers.set()
    await scene.answers.wait_given(1, first)
    scene.release(1, HUNG)
    again = scene.acquire(2, HUNG)
    await scene.answers.wait_given(2, again)
    of_web1 = [verb for verb, resource in scene.hung.calls if resource == "web1"]
    assert of_web1 == ["open", "close", "open"]
    assert scene.hung.calls[:2] == [("open", "web1"), ("open", "web2")]


async def test_hung_file_system_does_not_hold_up_the_end() -> None:
    scene = Scene()
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.runtime.run, scene.runtime.end_turn)
        scene.acquire(1, HUNG)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not scene.hung.answers.is_set()
    scene.hung.answers.set()
    scene.runtime.close()
    scene.poller.close()


async def test_upgrade_waits_for_who_was_promised_an_answer(scene: Scene) -> None:
    told: list[CodedError | None] = []
    done = trio.Event()

    def conclude(outcome: CodedError | None) -> None:
        told.append(outcome)
        done.set()

    def make(name: str) -> None:
        scene.hung.answers.wait(LIMIT)

    scene.runtime.change_file(scene.hung, "web1", make, conclude)
    server = SimpleNamespace(finish_turn=lambda: None)
    runtime = scene.runtime
    files = SimpleNamespace(spares=SimpleNamespace(remove_all=bool))
    parts: Any = SimpleNamespace(
        server=server, runtime=runtime, keeping=Keeping(), open_files=files
    )
    with pytest.raises(ConfigError, match="slow file system"):
        handover.give_way(handover.Leaving(parts, Config(), {}))
    scene.hung.answers.set()
    await done.wait()
    assert told == [None]
    assert scene.runtime.changes == 0
