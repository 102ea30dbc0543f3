"""The processes of the owners: watches them, and ends them on request.

It sends every signal through a pidfd, so it never hits another process with the same
pid.
"""

import logging
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

import trio

from lockd.daemon.system.defects import attempt
from lockd.daemon.system.poller import Poller
from lockd.names import plain
from lockd.procs import name_of, uids_of

logger = logging.getLogger(__name__)

KILL_GRACE: Final = 5.0
"""The default seconds between SIGTERM and SIGKILL."""

LAST_BREATH: Final = 0.05
"""Seconds in which a dying process has died: the kernel closes its sockets before it
reports its death (do_exit)."""

AGAIN: Final = 5.0
"""Seconds until the next SIGKILL, in case one was refused."""

Plain = dict[str, Any]


class Process:
    """The process of an owner.

    Attributes:
        pid: its pid.
        pidfd: refers to it; closed with the owner.
        sender: the uid of the user who named it, whose rights limit its signals; None:
            send no signals.
        claimant: the uid of a user who registered it without a right to it; None for
            others.
        fencing: whether a task is waiting for its end.
    """

    __slots__ = ("claimant", "fencing", "kill_at", "pid", "pidfd", "sender")

    def __init__(self, pid: int, pidfd: int, *, sender: int | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.sender = sender
        self.claimant: int | None = None
        self.fencing = False
        #: When to send SIGKILL; None before SIGTERM.
        self.kill_at: float | None = None

    def close(self) -> None:
        """Closes the pidfd."""
        os.close(self.pidfd)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended (pidfd_open(2): then the pidfd is readable)."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def can_be_ended(self) -> bool:
        """Whether the user who named it may signal it (kill(2)), and we may too.

        lockd lends no user a right of its own. A process becomes another user's when it
        runs a set-user-ID program. It can still do so between this check and a signal:
        the kernel does not do both at once.
        """
        if self.sender is None or self.pid in (0, 1, os.getpid()):
            return False
        if self.sender != 0:
            uids = uids_of(self.pid)
            if uids is None or uids.effective != self.sender:
                return self.is_dead
            if self.sender not in (uids.real, uids.saved):
                return False
        # If it still exists, all of the above was about it and not about another
        # process.
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return True

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal. Does nothing if it has ended, or must not be signalled."""
        if self.can_be_ended:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, number)


Describe = Callable[[int], "Plain | None"]
"""Returns the process of an owner as plain data; None without one."""


class KeepsProcesses(Protocol):
    """Keeps the data of processes for a successor (`Keeping`)."""

    def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        """Keeps a pidfd. Call it before the registration takes effect.

        Raises:
            OSError: it cannot be kept.
        """

    def drop_pidfd(self, owner_id: int) -> None:
        """Drops a pidfd. Call it before closing it."""

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Notes that the data of a process has changed."""


class Processes:
    """The processes of all owners by owner number.

    Args:
        poller: watches the deaths of registered processes.
        keeping: keeps the data for a successor.
        on_death: called with the number of a registered owner whose process has died.
    """

    def __init__(
        self,
        poller: Poller,
        keeping: KeepsProcesses,
        on_death: Callable[[int], None],
    ) -> None:
        #: Seconds between SIGTERM and SIGKILL.
        self.kill_grace = KILL_GRACE
        #: How many were told to end, how many were killed, how many have died of it.
        self.begun = self.killed = self.fenced = 0
        self._poller = poller
        self._on_death = on_death
        self._by_owner: dict[int, Process] = {}
        self._keeping = keeping
        #: By pid and claimant.
        self._owner_by_pid: dict[tuple[int, int | None], int] = {}

    def configure(self, kill_grace: float) -> None:
        """Sets the seconds between SIGTERM and SIGKILL."""
        self.kill_grace = kill_grace

    def add_peer(self, owner_id: int, process: Process) -> None:
        """Adds the process of a new session."""
        self._by_owner[owner_id] = process
        self._mark(owner_id)

    def add_registered(self, owner_id: int, process: Process) -> None:
        """Adds the process that a session has registered.

        Raises:
            OSError: it cannot be kept or watched. Nothing has changed.
        """
        self._keeping.keep_pidfd(owner_id, process.pidfd)
        action = partial(self._died, owner_id)
        try:
            self._poller.watch(process.pidfd, select.EPOLLIN, action)
        except OSError:
            self._keeping.drop_pidfd(owner_id)
            raise
        self._by_owner[owner_id] = process
        self._mark(owner_id)
        self._owner_by_pid[process.pid, process.claimant] = owner_id

    def _mark(self, owner_id: int) -> None:
        self._keeping.note_process(owner_id, self.dump_one)

    def _died(self, owner_id: int, events: int) -> None:
        attempt(self.unregister, owner_id)
        # `fence` reports the death of a process that is being fenced.
        if not self._by_owner[owner_id].fencing:
            self._on_death(owner_id)

    def registered(self, pid: int, claimant: int | None = None) -> int | None:
        """Returns the owner number of a registered process; None without one."""
        return self._owner_by_pid.get((pid, claimant))

    def owners(self) -> list[int]:
        """Returns the owners with a known process."""
        return list(self._by_owner)

    def of(self, owner_id: int) -> Process | None:
        """Returns the process of an owner; None without one."""
        return self._by_owner.get(owner_id)

    def can_end(self, owner_id: int) -> bool:
        """Returns whether the process of an owner may be ended at present."""
        process = self._by_owner.get(owner_id)
        return process is not None and process.can_be_ended

    def empower(self, owner_id: int) -> None:
        """Gives root's rights to the signals for the process of an owner."""
        self._by_owner[owner_id].sender = 0
        self._mark(owner_id)

    def unregister(self, owner_id: int) -> None:
        """Makes an owner unfindable by its pid: its end is known."""
        process = self._by_owner[owner_id]
        self._poller.unwatch(process.pidfd)
        key = process.pid, process.claimant
        if self._owner_by_pid.get(key) == owner_id:
            del self._owner_by_pid[key]
            self._mark(owner_id)

    def forget(self, owner_id: int) -> None:
        """Closes the pidfd of an owner, unless its process is being fenced."""
        process = self._by_owner.get(owner_id)
        if process is not None and not process.fencing:
            self.unregister(owner_id)
            self._keeping.drop_pidfd(owner_id)
            del self._by_owner[owner_id]
            process.close()
            self._mark(owner_id)

    def watch_peer(self, owner_id: int, on_death: Callable[[], None]) -> None:
        """Watches for the death of a session's process, if it has one.

        Raises:
            OSError: it cannot be watched.
        """
        process = self._by_owner.get(owner_id)
        if process is not None:

            def died(events: int) -> None:
                self._poller.unwatch(process.pidfd)
                on_death()

            self._poller.watch(process.pidfd, select.EPOLLIN, died)

    def unwatch_peer(self, owner_id: int) -> None:
        """Stops watching: the session has ended."""
        process = self._by_owner.get(owner_id)
        if process is not None:
            self._poller.unwatch(process.pidfd)

    def begin_fencing(self, owner_id: int) -> None:
        """Sends SIGTERM to the process of an owner. `fence` waits for its death."""
        process = self._by_owner[owner_id]
        process.fencing = True
        self.begun += 1
        self._mark(owner_id)
        # Its connection, by which a successor would find it, may be gone.
        with suppress(OSError):
            self._keeping.keep_pidfd(owner_id, process.pidfd)
        if process.kill_at is None:
            process.kill_at = trio.current_time() + self.kill_grace
            process.send_signal(signal.SIGTERM)

    def is_fencing(self, owner_id: int) -> bool:
        """Returns whether the process of an owner is being fenced."""
        process = self._by_owner.get(owner_id)
        return process is not None and process.fencing

    def doomed(self) -> list[int]:
        """Returns the owners whose processes a predecessor has told to end."""
        found = self._by_owner.items()
        return [x for x, process in found if process.kill_at and not process.fencing]

    async def fence(self, owner_id: int) -> None:
        """Waits until a process is dead; kills it when its time is over.

        It also waits for a process that may not be signalled: its locks stay until its
        death.
        """
        process = self._by_owner[owner_id]
        assert process.kill_at is not None
        soon = min(trio.current_time() + LAST_BREATH, process.kill_at)
        with trio.move_on_at(soon):
            await trio.lowlevel.wait_readable(process.pidfd)
        if not process.is_dead:
            logger.warning(
                "killing process %d (%s), as on_disconnect says: it disconnected with "
                "a lock, or lost one"
                if process.can_be_ended
                else "lockd may not kill process %d (%s), as on_disconnect says: its "
                "locks stay until it ends or an admin breaks them",
                process.pid,
                plain(name_of(process.pid)),
            )
            with trio.move_on_at(process.kill_at):
                await trio.lowlevel.wait_readable(process.pidfd)
        self.killed += not process.is_dead
        while not process.is_dead:
            process.send_signal(signal.SIGKILL)
            with trio.move_on_after(AGAIN):
                await trio.lowlevel.wait_readable(process.pidfd)
        self.fenced += 1
        process.fencing = False
        process.kill_at = None
        self._mark(owner_id)

    def pidfds(self) -> list[tuple[int, int]]:
        """Returns the number and the pidfd of each owner with a known process."""
        return [(owner_id, x.pidfd) for owner_id, x in self._by_owner.items()]

    def dump_one(self, owner_id: int) -> Plain | None:
        """Returns one process as plain data; None without one."""
        process = self._by_owner.get(owner_id)
        if process is None:
            return None
        key = process.pid, process.claimant
        return {
            "owner_id": owner_id,
            "pid": process.pid,
            "pidfd": process.pidfd,
            "may_signal": process.sender is not None,
            "sender": process.sender,
            "claimant": process.claimant,
            "kill_at": process.kill_at,
            "registered": self._owner_by_pid.get(key) == owner_id,
        }

    def load(self, data: Plain) -> None:
        """Restores a process from plain data."""
        sender = data["sender"] if "sender" in data else _sender_of_old(data)
        process = Process(data["pid"], data["pidfd"], sender=sender)
        process.claimant = data["claimant"]
        process.kill_at = data["kill_at"]
        if data["registered"]:
            self.add_registered(data["owner_id"], process)
        else:
            self.add_peer(data["owner_id"], process)

    def close(self) -> None:
        """Closes all pidfds."""
        for process in self._by_owner.values():
            process.close()
        self._by_owner.clear()


def _sender_of_old(data: Plain) -> int | None:
    """Returns the sender of a process that an older daemon recorded."""
    uids = uids_of(data["pid"]) if data["may_signal"] else None
    return None if uids is None else uids.effective
