"""Keeps the state of the daemon outside the process at all times.

With a service manager that stores descriptors (sd_notify(3), FDSTORE=1), nothing of
value is in this process alone. The state is in shared memory (`Ledger`, `Cells`),
descriptors are in flight (`InFlight`), and the service manager stores the few
descriptors of these. `revival` restores the state.

The order is essential: lock, keep, record, answer; and unlock, record, answer. No
answer leaves before `commit` has recorded what it promises.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from math import inf
from typing import Any, Final

import trio

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import Config
from lockd.daemon.replies.answers import Answers
from lockd.daemon.stores.labels import (
    CONNECTION,
    FILE,
    PIDFD,
    STUCK,
    UNREADABLE,
    label_of,
    parts_of,
)
from lockd.daemon.stores.pieces import Apart
from lockd.daemon.stores.stores import Stores
from lockd.daemon.stores.streams import Flow, KeptFlow
from lockd.daemon.survival.recording import Recorder
from lockd.daemon.system import fdstore
from lockd.daemon.system.epoch import Epoch
from lockd.daemon.system.listener import Role
from lockd.daemon.system.processes import Describe
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records
from lockd.lockspaces.base import LockFile, Lockspace
from lockd.lockspaces.files import FileLockspace
from lockd.lockspaces.kernel import has_lock
from lockd.names import quoted
from lockd.terms import ResourceKey, key_of

PAUSE: Final = 0.1
"""Seconds between two attempts to record when there is no memory."""

TIDYING: Final = 0.0005
TURNS_UNTIDIED: Final = 64
"""Seconds to spend on removing garbage, and how many turns to wait in between."""

Plain = dict[str, Any]

logger = logging.getLogger(__name__)


class StoredKeeping(Keeping):
    """Keeps the state of one daemon in stores.

    Args:
        stores: outlive this process.
        engine: has the locks.
        answers: has the peers.
        life, epoch: the numbers to record.
        slots: the used slots of `Cells`.
        owners: the owners whose pidfds are kept already.
        apart: the pieces that are recorded already, by session.
    """

    def __init__(
        self,
        stores: Stores,
        engine: LockEngine,
        answers: Answers,
        life: Life,
        epoch: Epoch,
        slots: Iterable[int] = (),
        owners: Iterable[int] = (),
        apart: Mapping[int, Apart] | None = None,
    ) -> None:
        self._stores = stores
        self._engine = engine
        self._answers = answers
        self._last_slot = max(slots, default=0)
        self._free_slots = sorted(set(range(self._last_slot)) - set(slots))
        #: The slots of peers whose end is not yet recorded.
        self._left_slots: list[int] = []
        #: The owners whose pidfds are kept.
        self._pidfds = set(owners)
        #: The kept descriptor of each resource, and its label.
        self._files: dict[ResourceKey, tuple[int, bytes]] = {}
        self._lockspaces: dict[str, Lockspace] = {}
        self._turns_untidied = 0
        #: Until when not to record, because there was no memory; 0 if there was.
        self._stuck_until = 0.0
        records.follow(engine)
        self._recorder = Recorder(
            stores.ledger, engine, answers, life, epoch, apart or {}
        )

    @property
    def by(self) -> str | None:
        """Who keeps what is stored; None if it has ended."""
        return fdstore.manager()

    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors of all stores by name."""
        return self._stores.descriptors()

    @property
    def in_flight(self) -> int:
        """How many descriptors are in flight, wanted or not."""
        return self._stores.in_flight.count

    @property
    def record_bytes(self) -> int:
        """How many bytes the valid records have."""
        return self._stores.ledger.live_bytes

    @property
    def memory_bytes(self) -> int:
        """How many bytes of shared memory the records take, garbage included."""
        return self._stores.ledger.memory_bytes

    @property
    def is_short(self) -> bool:
        """Whether memory is so short that nothing may be added."""
        return self._recorder.is_short

    @property
    def is_stuck(self) -> bool:
        """Whether no answer may leave: there is no memory to record it."""
        return self._stuck_until > 0

    # Descriptors.

    def open_flow(self, session: int, sock: socket.socket, role: Role) -> KeptFlow:
        """Keeps a connection from now on. Returns the flow of its bytes.

        Raises:
            OSError: it cannot be kept.
        """
        slot = self._new_slot()
        try:
            flow = self.take_up_flow(sock, slot)
            flow.begin()
            label = label_of(CONNECTION, session, role)
            self._stores.in_flight.keep(label, sock.fileno())
        except OSError:
            self._free_slots.append(slot)
            raise
        return flow

    def take_up_flow(self, sock: socket.socket, slot: int) -> KeptFlow:
        """Returns the flow of a connection that is already kept.

        Raises:
            OSError: there is no memory for its positions.
        """
        self._stores.cells.reserve(slot)
        return KeptFlow(sock, slot, self._stores.cells, self._stores.pipe)

    def _new_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._last_slot += 1
        return self._last_slot

    def abandon_flow(self, session: int, role: Role, flow: Flow) -> None:
        """Stops keeping a connection that has no records."""
        self._stores.in_flight.drop(label_of(CONNECTION, session, role))
        self._free_slots.append(flow.slot)

    def open_peer(self, peer: Peer) -> None:
        """Records a new peer with the next `commit`."""
        self._recorder.open_peer(peer)

    def close_peer(self, peer: Peer) -> None:
        """Stops keeping a connection, and removes its records."""
        self._stores.in_flight.drop(label_of(CONNECTION, peer.session, peer.role))
        self._recorder.close_peer(peer.session)
        self._left_slots.append(peer.flow.slot)

    def keep_file(self, key: ResourceKey, file: LockFile) -> None:
        """Keeps the locked file of a resource.

        Raises:
            OSError: it cannot be kept.
        """
        fd = file.fd
        before = self._files.get(key)
        if before is not None and before[0] == fd:
            return  # it was open before, and has changed its mode
        label = label_of(FILE, *key, file.made)
        self._stores.in_flight.keep(label, fd)
        if before is not None and before[1] != label:
            self._stores.in_flight.drop(before[1])
        self._files[key] = fd, label

    def drop_file(self, key: ResourceKey) -> None:
        """Stops keeping the file of a resource."""
        kept = self._files.pop(key, None)
        if kept is not None:
            self._stores.in_flight.drop(kept[1])

    def commit(self, peers: Iterable[Peer]) -> bool:
        """Records all changes. Returns whether the answers may be sent.

        Without memory they wait: a new process would have no more memory.

        Args:
            peers: those that the turn has read from or will send to.
        """
        if self._stuck_until and trio.current_time() < self._stuck_until:
            return False
        try:
            self._recorder.commit(peers)
        except OSError as error:
            logger.error("cannot write records, so no request is answered: %s", error)
            self._stuck_until = trio.current_time() + PAUSE
            return False
        self._stuck_until = 0.0
        if self._left_slots:
            self._free_slots += self._left_slots
            self._left_slots.clear()
        return True

    def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        """Keeps the pidfd of an owner. Call it before the registration takes effect.

        Raises:
            OSError: it cannot be kept.
        """
        # The pidfd of a peer can be found through its socket, until it is fenced.
        if owner_id not in self._pidfds:
            self._stores.in_flight.keep(label_of(PIDFD, owner_id), pidfd)
            self._pidfds.add(owner_id)

    def drop_pidfd(self, owner_id: int) -> None:
        """Stops keeping the pidfd of an owner. Call it before closing it."""
        if owner_id in self._pidfds:
            self._pidfds.remove(owner_id)
            self._stores.in_flight.drop(label_of(PIDFD, owner_id))

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Records the data of a process with the next `commit`."""
        self._recorder.note_process(owner_id, describe)

    def note_lockspace(self, lockspace: Lockspace) -> None:
        """Records a new or changed lockspace."""
        self._lockspaces[lockspace.name] = lockspace
        self._recorder.note_lockspace(lockspace)

    def note_config(self, config: Config) -> None:
        """Records the configuration in effect."""
        self._stores.ledger.limit(config.limits.record_bytes)
        self._recorder.note_config(config)

    # After a revival.

    def unlocked(self) -> list[ResourceKey]:
        """Returns the resources with recorded holders but without an open file."""
        return [
            key
            for key, resource in self._engine.resources.items()
            if resource.anchor is not None
            and key not in self._files
            and self._lockspaces[key.lockspace].anchored
        ]

    def hold_stuck(self, found: dict[bytes, int]) -> None:
        """Keeps all locked files without a known holder locked for good.

        If records were damaged, call it before recording anything. The next start might
        not see the damage.

        Args:
            found: the kept descriptors that nobody has claimed, by label.

        Raises:
            OSError: one of them cannot be kept so. All are still locked.
        """
        in_flight = self._stores.in_flight
        left = {x: fd for x, fd in found.items() if parts_of(x)[0] == FILE}
        for label, fd in (left | self._disown_files()).items():
            _, lockspace, resource, made = parts_of(label)
            status = os.fstat(fd)
            if (made and not status.st_nlink) or not has_lock(fd):
                continue  # it is unlocked, and was dropped
            key = lockspace, resource, status.st_dev, status.st_ino
            in_flight.keep(label_of(STUCK, *key), fd)
            in_flight.drop(label)

    def _disown_files(self) -> dict[bytes, int]:
        """Removes the locked files without a holder from their lockspaces.

        Otherwise the lockspaces would unlock them, or give them to the next request. A
        file that nobody has locked is a spare one, or was just released: it goes.
        """
        found = {}
        for key, (fd, label) in list(self._files.items()):
            if not self._engine.needs_anchor(key) and has_lock(fd):
                space = self._lockspaces[key.lockspace]
                assert isinstance(space, FileLockspace)
                space.disown_file(key.resource)
                del self._files[key]
                found[label] = fd
        return found

    def forget_the_rest(
        self, found: dict[bytes, int], owners: Iterable[int], *, at_once: bool = False
    ) -> list[str]:
        """Stops keeping what nobody has claimed, and closes it.

        Args:
            found: the descriptors that nobody else closes, by label.
            owners: the owners whose processes are known.
            at_once: whether to remove all of it now. A successor that found a stuck
                file under its old label would unlock it.

        Returns:
            What stays locked without a holder.

        Raises:
            OSError: there is no room to remove it now.
        """
        in_flight = self._stores.in_flight
        wanted = {label for _, label in self._files.values()}
        for peer in self._answers.peers.values():
            wanted.add(label_of(CONNECTION, peer.session, peer.role))
        for owner_id in owners:
            wanted.add(label_of(PIDFD, owner_id))
        left = []
        for label in list(in_flight.labels):
            if label in wanted:
                continue
            kind, *parts = parts_of(label)
            if kind == STUCK:
                left.append(quoted(str(ResourceKey(*parts[:2]))))
            elif kind == UNREADABLE:
                left.append(f"the kept descriptor {label!r}")
            else:
                in_flight.drop(label)
                if label in found:
                    os.close(found[label])
        if at_once:
            in_flight.tidy(inf, thoroughly=True)
            if in_flight.count > len(list(in_flight.labels)):
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return left

    def note_files(self) -> None:
        """Notes the kept files that are still held."""
        for key, fd, label in files_of(self._lockspaces.values()):
            self._files[key] = fd, label

    def record_anew(self) -> None:
        """Records the whole state, and removes all other records."""
        self._recorder.record_anew()

    def adopt_records(self, found: Iterable[tuple[str, Any]], owners: Set[int]) -> None:
        """Adopts the records of a predecessor (`Recorder.adopt_records`)."""
        self._recorder.adopt_records(found, owners)

    def write_anew(self) -> None:
        """Rewrites all records without the damaged ones, at once."""
        self._stores.cells.forget_sending()
        with suppress(OSError):  # later, then; until then the problems are found again
            self._stores.ledger.tidy(inf)

    # Deferred work.

    def tidy(self) -> None:
        """Removes unneeded data, now and then at the end of a turn."""
        self._turns_untidied += 1
        if self._turns_untidied < TURNS_UNTIDIED and self._stores.ledger.debt <= 0:
            return
        with suppress(OSError):  # there is no room to make room: try later
            self._stores.ledger.tidy(TIDYING)
            if self._turns_untidied >= TURNS_UNTIDIED:
                self._turns_untidied = 0
                self._stores.in_flight.tidy(TIDYING)

    def tidy_thoroughly(self) -> None:
        """Removes all unwanted descriptors, because they keep file systems busy."""
        with suppress(OSError):
            self._stores.in_flight.tidy(TIDYING, thoroughly=True)

    def stage_late(self) -> bool:
        """Stages records that wait until there is time (`Recorder.stage_late`)."""
        # Without memory, more important ones come first.
        return not self.is_short and self._recorder.stage_late()

    def compact(self) -> bool:
        """Removes some garbage from the records. Returns whether there is more."""
        with suppress(OSError):
            return self._stores.ledger.tidy_at_leisure(TIDYING)
        return False


def files_of(
    lockspaces: Iterable[Lockspace],
) -> Iterator[tuple[ResourceKey, int, bytes]]:
    """Yields resource, descriptor and label of each open lock file."""
    for space in lockspaces:
        if isinstance(space, FileLockspace):
            for resource in space.open_resources():
                key = key_of((space.name, resource))
                fd, made = space.dump_file(resource)
                yield key, fd, label_of(FILE, *key, made)
