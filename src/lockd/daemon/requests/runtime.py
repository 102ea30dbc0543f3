"""Drives the engine: the only caller of `LockEngine.handle`.

It carries out every command completely. It opens fast files at once, and gives the
result to the engine in the same turn. It leaves slow files to threads: one file at a
time for each lockspace, in order.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio
from msgspec.structs import replace

from lockd.daemon.activity.history import History
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.sentences import why_overdue
from lockd.daemon.requests.anchors import Outcome, try_to_change, try_to_open
from lockd.daemon.system.defects import attempt, defect
from lockd.daemon.system.jobs import undisturbed
from lockd.daemon.system.poller import Poller
from lockd.daemon.system.processes import AGAIN, Processes
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine import invariants
from lockd.engine.lock_engine import LockEngine
from lockd.errors import CodedError, InternalError
from lockd.lockspaces.base import Lockspace
from lockd.lockspaces.rights import STRANGER, User
from lockd.names import quoted
from lockd.terms import OutsideHolder, ResourceKey, key_of

logger = logging.getLogger(__name__)

SLOW_QUEUE: Final = math.inf
"""How many anchors may wait for a slow file system: no limit."""


class Runtime:
    """The engine with its surroundings: time, files, processes.

    Args:
        engine: only this object changes it, through `handle`.
        answers: sends answers to the peers.
        poller: watches processes.
        keeping: keeps the state for a successor.
        checks: whether to check all laws after every command, which is slow.
    """

    def __init__(
        self,
        engine: LockEngine,
        answers: Answers,
        poller: Poller,
        keeping: Keeping,
        *,
        checks: bool = False,
    ) -> None:
        self.engine = engine
        self.lockspaces: dict[str, Lockspace] = {}
        self.history = History(engine.sessions)
        self.processes = Processes(poller, keeping, self._owner_died)
        self._keeping = keeping
        self._answers = answers
        self._counts = answers.counts
        # Like `trio.current_time`, which looks the clock up each time.
        self._current_time = trio.lowlevel.current_clock().current_time
        self._checks = checks
        self._commands: deque[c.Command] = deque()
        self._busy = False
        #: Whether the lock table may be wrong; then the daemon must end.
        self.is_broken = False
        self._file_lockspaces: list[Lockspace] = []
        self._slow: dict[str, trio.MemorySendChannel[Callable[[], None]]] = {}
        #: How many files a thread is creating or deleting.
        self.changes = 0
        self._nursery: trio.Nursery | None = None
        self._on_turn: Callable[[], None] = lambda: None
        self._alarm = trio.CancelScope()
        #: Its deadline, which trio is slow to tell; None for infinity.
        self._alarm_at: float | None = None
        #: The functions for effects on which the lock table depends.
        self._perform: dict[type, Callable[[Any], None]] = {
            e.OpenAnchor: self._open_anchor,
            e.CloseAnchor: self._close_anchor,
            e.Fence: self._fence,
            e.ForgetOwner: self._forget_owner,
            e.BreakOverdue: self._break_overdue,
        }
        #: The functions for all other effects.
        self._tell: dict[type, tuple[Callable[[Any, float], None], ...]] = {}
        for hears in self.history.hears, self._counts.hears, answers.carriers:
            for kind, action in hears.items():
                self._tell[kind] = (*self._tell.get(kind, ()), action)

    def add_lockspace(self, lockspace: Lockspace) -> None:
        """Serves a lockspace, which may replace an unused one."""
        before = self.lockspaces.get(lockspace.name)
        if before is not None and before.anchored:
            before.retire()
            self._file_lockspaces.remove(before)
        self.lockspaces[lockspace.name] = lockspace
        self._keeping.note_lockspace(lockspace)
        self._counts.space(lockspace.name)
        if lockspace.anchored:
            self._file_lockspaces.append(lockspace)
        name, fate = lockspace.name, lockspace.on_disconnect
        known = self.engine.lockspaces.get(name) or c.AddLockspace(name, anchored=False)
        self.carry_out(replace(known, anchored=lockspace.anchored, on_disconnect=fate))

    def change_lockspace(self, changed: c.AddLockspace) -> None:
        """Tells the lock table what is configured for a lockspace now."""
        self.carry_out(changed)
        self._on_turn()

    def is_unused(self, name: str) -> bool:
        """Returns whether a lockspace has no holders, waiters or open anchors."""
        space = self.lockspaces.get(name)
        if space is None:
            return True
        at_work = self.changes or (
            space in self._file_lockspaces and any(space.open_resources())
        )
        return not at_work and all(x.lockspace != name for x in self.engine.resources)

    def carry_out(self, command: c.Command) -> None:
        """Carries out a command and everything that follows from it.

        A command that arrives meanwhile, from an effect, is carried out afterwards.
        """
        commands = self._commands
        if self._busy:
            commands.append(command)
            return
        self._busy = True
        now = self._current_time()
        try:
            self._carry_out_one(command, now)
            while commands:
                self._carry_out_one(commands.popleft(), now)
        except BaseException:
            self.is_broken = True
            raise
        self._busy = False

    def _carry_out_one(self, command: c.Command, now: float) -> None:
        effects = self.engine.handle(command, now=now)
        if self._checks:
            self._check(command, effects)
        for effect in effects:
            told = self._tell.get(type(effect))
            if told is None:
                self._perform[type(effect)](effect)
                continue
            for action in told:
                # A failure here leaves the lock table correct.
                try:
                    action(effect, now)
                except Exception as error:
                    self._answers.blame_for(effect, error)
        if self._answers.feed.is_watched:
            self._answers.tell_watchers(effects, self.engine.sessions)

    def _check(self, command: c.Command, effects: list[e.Effect]) -> None:
        logger.debug("< %s\n> %s", command, effects)
        try:
            invariants.check(self.engine)
        except invariants.BrokenLawError as error:
            raise InternalError(f"after {command}: {error}") from error

    def stop_telling(self) -> None:
        """Ends every wait and hold for those who follow them, and tells nothing later.

        The daemon ends, and closes one session after another. A lock may still move to
        a session that is closed next, and never hears of it. No log, number, history or
        watcher may get such a grant.
        """
        attempt(self._counts.end_all, self._current_time())
        self._tell = dict.fromkeys(self._tell, ())
        self._answers.feed.close()

    # Time.

    def _set_alarm(self) -> None:
        """Sets the alarm to the next deadline of the engine."""
        when = self.engine.next_deadline()
        if when != self._alarm_at:
            self._alarm_at = when
            self._alarm.deadline = math.inf if when is None else when

    async def run(
        self,
        on_turn: Callable[[], None],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs everything that takes time: deadlines, slow files, fencing.

        Args:
            on_turn: called after a command from here, to send the answers.
            task_status: started when commands are carried out.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                self._on_turn = on_turn
                self._resume()
                task_status.started()
                while True:
                    with self._alarm:
                        await trio.sleep_forever()
                    self._alarm, self._alarm_at = trio.CancelScope(), None
                    self.carry_out(c.Tick())
                    on_turn()
        finally:
            self._nursery = None

    def _resume(self) -> None:
        """Continues the unfinished work of a predecessor."""
        for lockspace in self._file_lockspaces:
            for resource in lockspace.open_resources():
                key = key_of((lockspace.name, resource))
                if not self.engine.needs_anchor(key):
                    self._close_anchor(e.CloseAnchor(key))
        for owner_id in self.processes.doomed():
            self._end_process(owner_id)
        self.carry_out(c.Resume())
        self._on_turn()

    def end_turn(self) -> None:
        """Does the work that was deferred until after the answers."""
        for lockspace in self._file_lockspaces:
            lockspace.finish()
        self._set_alarm()

    def close(self) -> None:
        """Closes files and processes."""
        for lockspace in self._file_lockspaces:
            lockspace.retire()
        self.processes.close()

    # Anchors.

    def _open_anchor(self, effect: e.OpenAnchor) -> None:
        lockspace = self.lockspaces[effect.key.lockspace]
        job = partial(try_to_open, lockspace, effect, *self._asker_of(effect.key))
        if lockspace.anchor_is_slow(effect.key.resource):
            self._later(lockspace, partial(self._open_slowly, job))
            self.carry_out(c.AnchorDelayed(effect.key))
        else:
            self.carry_out(self._kept(job()))

    def _kept(self, outcome: Outcome) -> c.AnchorOpened | c.AnchorRefused:
        """Keeps a new anchor for a successor, before anybody hears of it."""
        if isinstance(outcome, c.AnchorRefused):
            return self._named(outcome)
        key, file = outcome
        try:
            self._keeping.keep_file(key, file)
        except OSError as error:
            if self.lockspaces[key.lockspace].make_room():
                return self._kept(outcome)
            self._close_anchor(e.CloseAnchor(key))
            why = f"its file cannot be recorded: {os.strerror(error.errno or 0)}"
            return c.AnchorRefused(key, "unavailable", why)
        return c.AnchorOpened(key)

    def _named(self, refused: c.AnchorRefused) -> c.AnchorRefused:
        """Adds the holder of a file that is locked under another name."""
        outside = refused.outside
        if outside is None or outside.key is None:
            return refused
        for grant in self.engine.holders(outside.key):
            owner = grant.owner
            named = OutsideHolder(grant.mode, owner.pid, owner.name, outside.key)
            return replace(refused, outside=named)
        return refused

    def _close_anchor(self, effect: e.CloseAnchor) -> None:
        resource, lockspace = effect.key.resource, self.lockspaces[effect.key.lockspace]
        is_slow = lockspace.anchor_is_slow(resource)
        if not is_slow and lockspace.put_aside(resource):
            return  # it stays kept, too
        self._keeping.drop_file(effect.key)
        if is_slow:
            self._later(lockspace, partial(lockspace.close_anchor, resource))
        else:
            lockspace.close_anchor(resource)

    def _asker_of(self, key: ResourceKey) -> tuple[User | None, bool]:
        """Returns for whom an anchor is opened.

        Returns:
            The user whose rights to the file count, and whether it is libvirt. libvirt
            asks when the QEMU of its guest has locked the file already: after a pause
            and at the end of a migration.
        """
        session = self.engine.opens_for(key)
        if session is None:
            return None, False  # nobody gets a lock by it
        peer = self._answers.peers.get(session)
        if peer is None:
            return STRANGER, False
        return peer.file_user, peer.is_libvirt

    def _open_slowly(self, job: Callable[[], Outcome]) -> None:
        trio.from_thread.run_sync(self._opened_slowly, job())

    def _opened_slowly(self, outcome: Outcome) -> None:
        self.carry_out(self._kept(outcome))
        self._on_turn()

    def change_file(
        self,
        lockspace: Lockspace,
        resource: str,
        change: Callable[[str], None],
        done: Callable[[CodedError | None], None],
    ) -> None:
        """Creates or deletes the file of a resource, in a thread if that may take long.

        Args:
            lockspace: the lockspace of the resource.
            resource: its name.
            change: `create_resource` or `delete_resource` of the lockspace.
            done: called after success with None, or with the error.
        """
        if lockspace.anchor_is_slow(resource):
            self.changes += 1
            job = partial(self._change_slowly, resource, change, done)
            self._later(lockspace, job)
        else:
            done(try_to_change(change, resource))

    def _change_slowly(
        self,
        resource: str,
        change: Callable[[str], None],
        done: Callable[[CodedError | None], None],
    ) -> None:
        outcome = try_to_change(change, resource)
        trio.from_thread.run_sync(self._changed, outcome, done)

    def _changed(
        self, outcome: CodedError | None, done: Callable[[CodedError | None], None]
    ) -> None:
        self.changes -= 1
        done(outcome)
        self._on_turn()

    def _later(self, lockspace: Lockspace, job: Callable[[], None]) -> None:
        if self._nursery is None:
            return  # the daemon ends, and the kernel closes its files
        jobs = self._slow.get(lockspace.name)
        if jobs is None:
            jobs, to_do = trio.open_memory_channel[Callable[[], None]](SLOW_QUEUE)
            self._slow[lockspace.name] = jobs
            self._nursery.start_soon(self._do_one_after_another, to_do)
        jobs.send_nowait(job)

    async def _do_one_after_another(
        self, jobs: trio.MemoryReceiveChannel[Callable[[], None]]
    ) -> None:
        async for job in jobs:
            # Abandoned at the end: a server that hangs must not keep the daemon alive.
            await trio.to_thread.run_sync(undisturbed, job, abandon_on_cancel=True)

    # Processes.

    def _fence(self, effect: e.Fence) -> None:
        # Without a nursery, the daemon is ending and will give the lock to nobody; or
        # it is starting, and the engine will ask again.
        if self._nursery is None or self.processes.is_fencing(effect.owner_id):
            return
        if self.processes.of(effect.owner_id) is None:
            logger.error("cannot find the process of %s", quoted(effect.owner.name))
            return
        self._end_process(effect.owner_id)

    def _end_process(self, owner_id: int) -> None:
        assert self._nursery is not None
        attempt(self.processes.begin_fencing, owner_id)
        self._nursery.start_soon(self._wait_fenced, owner_id)

    async def _wait_fenced(self, owner_id: int) -> None:
        """Waits until a process is dead, despite any defect. Then tells the engine."""
        while True:
            try:
                await self.processes.fence(owner_id)
                break
            except Exception as error:
                # Other requests wait for this.
                defect(error)
                await trio.sleep(AGAIN)
                attempt(self.processes.begin_fencing, owner_id)
        self.carry_out(c.OwnerFenced(owner_id))
        if owner_id not in self.engine.owners:
            attempt(self.processes.forget, owner_id)
        self._on_turn()

    def _break_overdue(self, effect: e.BreakOverdue) -> None:
        grant, rules = effect.grant, self.engine.lockspaces
        why, fence = why_overdue(grant, rules), self.processes.can_end(grant.owner_id)
        self.carry_out(c.BreakGrant(0, 0, grant.fencing_token, why, fence))

    def _owner_died(self, owner_id: int) -> None:
        self.carry_out(c.EndOwner(owner_id))

    def _forget_owner(self, effect: e.ForgetOwner) -> None:
        attempt(self.processes.forget, effect.owner_id)
