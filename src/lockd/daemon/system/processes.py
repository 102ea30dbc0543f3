"""The processes behind the owners: watched until they die, ended when that is asked.

Every signal goes through a pidfd, so it never hits another process that got the pid.
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
"""Seconds between SIGTERM and SIGKILL, if nothing else is configured."""

LAST_BREATH: Final = 0.05
"""Seconds in which a process has ended that was about to: the kernel closes its sockets
before it tells that it is dead (do_exit)."""

AGAIN: Final = 5.0
"""Seconds between one SIGKILL and the next, for the case that it was refused."""

Plain = dict[str, Any]


class Process:
    """The process of an owner.

    Attributes:
        pidfd: refers to it for ever; closed with the owner.
        sender: the uid of who named it, for whom it is signalled; None if it is to be
            signalled for nobody.
        claimant: the uid of who registered it without a right to it; None for others.
    """

    __slots__ = ("claimant", "fencing", "kill_at", "pid", "pidfd", "sender")

    def __init__(self, pid: int, pidfd: int, *, sender: int | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.sender = sender
        self.claimant: int | None = None
        self.fencing = False
        #: When it is sent SIGKILL; None until it was sent SIGTERM.
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
        """Whether it may be signalled just now: by who named it (kill(2)), and by us.

        We lend nobody a right that he does not have: a process becomes another user's
        when it runs a set-user-ID program. Between this and a signal it still can, for
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
        # If it is there still, all of that was said of it, and not of another process.
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return True

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing if it has ended, or may not be signalled."""
        if self.can_be_ended:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, number)


Describe = Callable[[int], "Plain | None"]
"""Returns the process of an owner as plain data; None if there is none."""


class KeepsProcesses(Protocol):
    """Keeps what a successor has to know of processes (`Keeping`)."""

    def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        """Keeps a pidfd before that counts; may raise OSError."""

    def drop_pidfd(self, owner_id: int) -> None:
        """Drops it before it is closed."""

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Knows that something about a process has changed."""


class Processes:
    """The processes of all owners by their number.

    Args:
        poller: where the deaths of registered processes are watched for.
        keeping: keeps what is to outlive this process.
        on_death: called with the number of a registered owner whose process died.
    """

    def __init__(
        self,
        poller: Poller,
        keeping: KeepsProcesses,
        on_death: Callable[[int], None],
    ) -> None:
        #: Seconds between SIGTERM and SIGKILL.
        self.kill_grace = KILL_GRACE
        #: How many were told to end, how many of them were killed, how many are dead.
        self.begun = self.killed = self.fenced = 0
        self._poller = poller
        self._on_death = on_death
        self._by_owner: dict[int, Process] = {}
        self._keeping = keeping
        #: By pid and claimant.
        self._owner_by_pid: dict[tuple[int, int | None], int] = {}

    def configure(self, kill_grace: float) -> None:
        """Has a process have so many seconds from SIGTERM to SIGKILL."""
        self.kill_grace = kill_grace

    def add_peer(self, owner_id: int, process: Process) -> None:
        """Takes in the process at the other end of a new session."""
        self._by_owner[owner_id] = process
        self._mark(owner_id)

    def add_registered(self, owner_id: int, process: Process) -> None:
        """Takes in a process for which a session says that it acts.

        Raises:
            OSError: it cannot be kept or watched; nothing has changed.
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
        # Whoever is fencing it will tell.
        if not self._by_owner[owner_id].fencing:
            self._on_death(owner_id)

    def registered(self, pid: int, claimant: int | None = None) -> int | None:
        """Returns the number of the owner that is a process, if it is registered."""
        return self._owner_by_pid.get((pid, claimant))

    def owners(self) -> list[int]:
        """Returns the owners whose processes are known."""
        return list(self._by_owner)

    def of(self, owner_id: int) -> Process | None:
        """Returns the process of an owner, if there is one to be found."""
        return self._by_owner.get(owner_id)

    def can_end(self, owner_id: int) -> bool:
        """Tells whether the process of an owner may be ended as things are now."""
        process = self._by_owner.get(owner_id)
        return process is not None and process.can_be_ended

    def empower(self, owner_id: int) -> None:
        """Signals the process of an owner for root from now on, who named it, too."""
        self._by_owner[owner_id].sender = 0
        self._mark(owner_id)

    def unregister(self, owner_id: int) -> None:
        """Stops finding an owner by its pid: its end is known."""
        process = self._by_owner[owner_id]
        self._poller.unwatch(process.pidfd)
        key = process.pid, process.claimant
        if self._owner_by_pid.get(key) == owner_id:
            del self._owner_by_pid[key]
            self._mark(owner_id)

    def forget(self, owner_id: int) -> None:
        """Closes the pidfd of an owner, unless its process is just being fenced."""
        process = self._by_owner.get(owner_id)
        if process is not None and not process.fencing:
            self.unregister(owner_id)
            self._keeping.drop_pidfd(owner_id)
            del self._by_owner[owner_id]
            process.close()
            self._mark(owner_id)

    def watch_peer(self, owner_id: int, on_death: Callable[[], None]) -> None:
        """Has the end of a session's process told, if there is one to be found.

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
        """Has it told no longer: the session has ended."""
        process = self._by_owner.get(owner_id)
        if process is not None:
            self._poller.unwatch(process.pidfd)

    def begin_fencing(self, owner_id: int) -> None:
        """Tells the process of an owner to end; `fence` waits until it is dead."""
        process = self._by_owner[owner_id]
        process.fencing = True
        self.begun += 1
        self._mark(owner_id)
        # Its connection may be gone, by which it would be found after a crash.
        with suppress(OSError):
            self._keeping.keep_pidfd(owner_id, process.pidfd)
        if process.kill_at is None:
            process.kill_at = trio.current_time() + self.kill_grace
            process.send_signal(signal.SIGTERM)

    def is_fencing(self, owner_id: int) -> bool:
        """Tells whether the process of an owner is just being ended."""
        process = self._by_owner.get(owner_id)
        return process is not None and process.fencing

    def doomed(self) -> list[int]:
        """Returns the owners whose processes a predecessor told to end."""
        found = self._by_owner.items()
        return [x for x, process in found if process.kill_at and not process.fencing]

    async def fence(self, owner_id: int) -> None:
        """Waits for the end of a process, and makes sure of it; then it is dead.

        One that may not be signalled is waited for: its locks stay until it is dead.
        """
        process = self._by_owner[owner_id]
        assert process.kill_at is not None
        soon = min(trio.current_time() + LAST_BREATH, process.kill_at)
        with trio.move_on_at(soon):
            await trio.lowlevel.wait_readable(process.pidfd)
        if not process.is_dead:
            logger.warning(
                "ending process %d (%s), which disconnected or lost a lock that it "
                "must not outlive"
                if process.can_be_ended
                else "process %d (%s) disconnected or lost a lock that it must not "
                "outlive, and lockd has no right to end it: nobody gets its locks "
                "before it ends or they are broken",
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

    def dump(self, keep: Callable[[int], int]) -> list[Plain]:
        """Returns all processes as plain data (`handover`)."""
        found = [self.dump_one(owner_id) for owner_id in self._by_owner]
        return [x | {"pidfd": keep(x["pidfd"])} for x in found if x is not None]

    def dump_one(self, owner_id: int) -> Plain | None:
        """Returns one process as plain data; None if there is none."""
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
        """Takes up a process that `dump` described."""
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
    """Returns for whom a process is signalled that an older daemon recorded."""
    uids = uids_of(data["pid"]) if data["may_signal"] else None
    return None if uids is None else uids.effective
