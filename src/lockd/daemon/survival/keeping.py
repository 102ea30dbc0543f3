"""Keeps outside this process, all the time, what has to outlive it.

Under a service manager with a descriptor store (sd_notify(3), FDSTORE=1) nothing of
value is in this process alone: the state is in shared memory (`Ledger`, `Cells`),
descriptors are in flight (`Keeper`), and the few descriptors that this takes are the
manager's, too. `revival` goes on from there.

The order that everything hangs on: lock, keep, record, answer; unlock, record, answer.
An answer never leaves before `commit` has recorded what it promises.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from lockd.daemon.clients.peer import Peer
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
from lockd.daemon.stores.streams import KeptFlow
from lockd.daemon.survival.recording import Recorder
from lockd.daemon.system.listener import Role
from lockd.lockspaces.files import FileLockspace, has_lock
from lockd.names import quoted
from lockd.terms import ResourceKey

if TYPE_CHECKING:
    from lockd.daemon.service import Service

PAUSE: Final = 0.1
"""Seconds between two tries to record what there is no memory for."""

TIDYING: Final = 0.002
TURNS_UNTIDIED: Final = 64
"""Seconds for getting rid of what is no longer needed, and how many turns between."""

Plain = dict[str, Any]

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


class Keeping:
    """Keeps the state of one service in its stores.

    Args:
        slots: the slots of `Cells` that are taken.
        owners: those whose pidfds are kept already.
        apart: what is recorded of sessions in pieces already.
    """

    def __init__(
        self,
        service: Service,
        stores: Stores,
        slots: Iterable[int] = (),
        owners: Iterable[int] = (),
        apart: Mapping[int, Apart] | None = None,
    ) -> None:
        self._service = service
        self._stores = stores
        self._engine = service.runtime.engine
        self._last_slot = max(slots, default=0)
        self._free_slots = sorted(set(range(self._last_slot)) - set(slots))
        #: Free when it is recorded that their peers are gone.
        self._left_slots: list[int] = []
        #: The owners whose pidfds are kept.
        self._pidfds = set(owners)
        #: The descriptor that is kept for each resource, and its label.
        self._files: dict[ResourceKey, tuple[int, bytes]] = {}
        self._turns_untidied = 0
        #: Until when nothing is recorded for want of memory; 0 if there is some.
        self.stuck_until = 0.0
        #: Records what happens to the service, as `commit` says.
        self.recorder = Recorder(service, stores.ledger, apart or {})
        service.runtime.processes.keep = self._keep_pidfd
        service.runtime.processes.drop = self._drop_pidfd

    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors of all stores, by name."""
        return self._stores.descriptors()

    @property
    def in_flight(self) -> int:
        """How many descriptors are in flight, those not wanted any more included."""
        return self._stores.keeper.in_flight

    # Descriptors.

    def open_flow(self, session: int, sock: socket.socket, role: Role) -> KeptFlow:
        """Keeps a connection from now on; returns how its bytes come and go.

        Raises:
            OSError: it cannot be kept.
        """
        slot = self._new_slot()
        try:
            flow = self.flow(sock, slot)
            flow.begin()
            label = label_of(CONNECTION, session, role)
            self._stores.keeper.keep(label, sock.fileno())
        except OSError:
            self._free_slots.append(slot)
            raise
        return flow

    def flow(self, sock: socket.socket, slot: int) -> KeptFlow:
        """Returns how the bytes of a connection that is kept already come and go.

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

    def abandon_flow(self, session: int, role: Role, flow: KeptFlow) -> None:
        """Keeps a connection no longer of which nothing was recorded."""
        self._stores.keeper.drop(label_of(CONNECTION, session, role))
        self._free_slots.append(flow.slot)

    def close_flow(self, peer: Peer) -> None:
        """Keeps a connection no longer."""
        self._stores.keeper.drop(label_of(CONNECTION, peer.session, peer.role))
        self.recorder.close_peer(peer.session)
        self._left_slots.append(peer.flow.slot)

    def keep_file(self, key: ResourceKey) -> None:
        """Keeps the locked file of a resource.

        Raises:
            OSError: it cannot be kept.
        """
        space = self._service.runtime.lockspaces[key.lockspace]
        assert isinstance(space, FileLockspace)
        fd, made, _ = space.dump_file(key.resource)
        before = self._files.get(key)
        if before is not None and before[0] == fd:
            return  # it was opened before, and changed its mode
        label = label_of(FILE, *key, made)
        self._stores.keeper.keep(label, fd)
        if before is not None and before[1] != label:
            self._stores.keeper.drop(before[1])
        self._files[key] = fd, label

    def drop_file(self, key: ResourceKey) -> None:
        """Keeps the file of a resource no longer."""
        kept = self._files.pop(key, None)
        if kept is not None:
            self._stores.keeper.drop(kept[1])

    def commit(self, peers: Iterable[Peer]) -> bool:
        """Records everything that changed; tells whether answers may leave.

        Where there is no memory for it they wait: whoever is started in our place would
        have no more of it.

        Args:
            peers: those that something was read from, or is to be sent to.
        """
        if self.stuck_until and trio.current_time() < self.stuck_until:
            return False
        try:
            self.recorder.commit(peers)
        except OSError as error:
            logger.error("nothing can be recorded, nobody is answered: %s", error)
            self.stuck_until = trio.current_time() + PAUSE
            return False
        self.stuck_until = 0.0
        if self._left_slots:
            self._free_slots += self._left_slots
            self._left_slots.clear()
        return True

    def _keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        # Those of peers are found through their sockets, until they are fenced.
        if owner_id not in self._pidfds:
            self._stores.keeper.keep(label_of(PIDFD, owner_id), pidfd)
            self._pidfds.add(owner_id)

    def _drop_pidfd(self, owner_id: int) -> None:
        if owner_id in self._pidfds:
            self._pidfds.remove(owner_id)
            self._stores.keeper.drop(label_of(PIDFD, owner_id))

    def unlocked(self) -> list[ResourceKey]:
        """Returns the resources that are held by the records, and by no open file."""
        lockspaces = self._service.runtime.lockspaces
        return [
            key
            for key, resource in self._engine.resources.items()
            if resource.anchor is not None
            and key not in self._files
            and lockspaces[key.lockspace].anchored
        ]

    def hold_stuck(self, found: dict[bytes, int]) -> None:
        """Keeps the files locked for good that are locked and that nobody holds.

        To be called before anything is recorded anew, where records were damaged: a
        next start might find nothing wrong.

        Args:
            found: the descriptors that a predecessor kept and nobody took up, by label.

        Raises:
            OSError: one of them cannot be kept so; all are locked, as they were.
        """
        keeper = self._stores.keeper
        left = {x: fd for x, fd in found.items() if parts_of(x)[0] == FILE}
        for label, fd in (left | self._disown_files()).items():
            _, lockspace, resource, made = parts_of(label)
            status = os.fstat(fd)
            if (made and not status.st_nlink) or not has_lock(fd):
                continue  # it was let go: what was dropped is in flight for a while
            key = lockspace, resource, status.st_dev, status.st_ino
            keeper.keep(label_of(STUCK, *key), fd)
            keeper.drop(label)

    def _disown_files(self) -> dict[bytes, int]:
        """Takes the files that nobody holds from their lockspaces, locked as they are.

        Else they would be let go, or be given to whoever asks next.
        """
        found = {}
        for key, (fd, label) in list(self._files.items()):
            if not self._engine.needs_anchor(key):
                space = self._service.runtime.lockspaces[key.lockspace]
                assert isinstance(space, FileLockspace)
                space.disown_file(key.resource)
                del self._files[key]
                found[label] = fd
        return found

    def forget_the_rest(
        self, found: dict[bytes, int], *, at_once: bool = False
    ) -> list[str]:
        """Keeps no longer what a predecessor kept and nobody took up; closes it.

        Args:
            found: the descriptors that nobody else closes, by label.
            at_once: whether nobody may find any of it again. Whoever found a stuck file
                by its old label would let go of it.

        Returns:
            What stays locked although nobody holds it.

        Raises:
            OSError: there is no room to do it at once.
        """
        keeper = self._stores.keeper
        wanted = {label for _, label in self._files.values()}
        for peer in self._service.answers.peers.values():
            wanted.add(label_of(CONNECTION, peer.session, peer.role))
        for owner_id in self._service.runtime.processes.owners():
            wanted.add(label_of(PIDFD, owner_id))
        left = []
        for label in list(keeper.labels):
            if label in wanted:
                continue
            kind, *parts = parts_of(label)
            if kind == STUCK:
                left.append(quoted(str(ResourceKey(*parts[:2]))))
            elif kind == UNREADABLE:
                left.append(f"what is kept as {label!r}")
            else:
                keeper.drop(label)
                if label in found:
                    os.close(found[label])
        if at_once:
            keeper.tidy(inf, thoroughly=True)
            if keeper.in_flight > len(list(keeper.labels)):
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return left

    def note_files(self) -> None:
        """Notes the files that a predecessor kept and that are held on."""
        for space in self._service.runtime.lockspaces.values():
            if isinstance(space, FileLockspace):
                for resource in space.open_resources():
                    key = ResourceKey(space.name, resource)
                    fd, made, _ = space.dump_file(resource)
                    self._files[key] = fd, label_of(FILE, *key, made)

    def tidy(self, seconds: float = TIDYING) -> None:
        """Gets rid of what is no longer needed, for about so long, now and then."""
        self._turns_untidied += 1
        if self._turns_untidied < TURNS_UNTIDIED and self._stores.ledger.debt <= 0:
            return
        with suppress(OSError):  # there is no room to make room: later, perhaps
            self._stores.ledger.tidy(seconds)
            if self._turns_untidied >= TURNS_UNTIDIED:
                self._turns_untidied = 0
                self._stores.keeper.tidy(seconds)

    def write_anew(self) -> None:
        """Has what is kept contain nothing that was damaged, at once."""
        self._stores.cells.forget_sending()
        with suppress(OSError):  # later, then; until then it is told again
            self._stores.ledger.tidy(inf)

    def tidy_thoroughly(self) -> None:
        """Lets go of all that is not wanted: else it would keep file systems busy."""
        with suppress(OSError):
            self._stores.keeper.tidy(TIDYING, thoroughly=True)
            self._stores.ledger.tidy_at_leisure(TIDYING)
