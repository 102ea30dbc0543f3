"""What is recorded of a service, and when: all that changed, before any answer leaves.

A record costs what changed, not what is held (`Ledger`, `records`, `Pieces`). Where
there is no memory for it, garbage goes first, then those who leave most unread; nobody
is answered what is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from lockd.daemon.clients.peer import Peer
from lockd.daemon.stores.labels import (
    CONFIG,
    DAEMON,
    PEER,
    PIECES,
    PROCESS,
    SPACE,
    STATE,
    key_of,
)
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.pieces import SHORT, Apart
from lockd.engine import records
from lockd.lockspaces.base import Lockspace

if TYPE_CHECKING:
    from lockd.daemon.service import Service

Plain = dict[str, Any]

_encode = msgspec.msgpack.Encoder().encode


class Recorder:
    """Records the state of one service.

    Args:
        apart: what is recorded of sessions in pieces already.
    """

    def __init__(
        self, service: Service, ledger: Ledger, apart: Mapping[int, Apart]
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._engine = service.runtime.engine
        #: By session: the key of its state, and what is recorded apart from that.
        self._state_keys: dict[int, bytes] = {}
        self._apart = dict(apart)
        self._numbers = (-1, -1)
        self._config: object = None
        self._spaces: dict[str, Lockspace] = {}
        records.follow(self._engine)
        service.runtime.processes.changed = set()

    @property
    def record_bytes(self) -> int:
        """How many bytes the records have that count."""
        return self._ledger.live_bytes

    @property
    def memory_bytes(self) -> int:
        """How much shared memory the records take, garbage and reserves included."""
        return self._ledger.memory_bytes

    def open_peer(self, peer: Peer) -> None:
        """Records who a new peer is, with the next `commit`."""
        self._note_session(peer.session)
        self._put(PEER, peer.session, peer.dump())
        self._ledger.put(self._state_keys[peer.session], self._state(peer))

    def close_peer(self, session: int) -> None:
        """Records a peer no longer."""
        self._remove(PEER, session)
        state_key = self._state_keys.pop(session, None)
        if state_key is not None:
            self._ledger.remove(state_key)
            for key in self._apart.pop(session).keys():  # noqa: SIM118 - no dict
                self._ledger.remove(key)

    def _note_session(self, session: int) -> None:
        self._state_keys[session] = key_of(STATE, session)
        if session not in self._apart:
            self._apart[session] = Apart(session, self._ledger)

    def _state(self, peer: Peer) -> bytes:
        session = self._engine.sessions.get(peer.session)
        claims = 0 if session is None else session.claims
        return _encode(peer.dump_state(claims, self._apart[peer.session]))

    def commit(self, peers: Iterable[Peer]) -> None:
        """Records everything that changed, so that answers may leave.

        Where memory is short, whoever leaves most unread is cut off, and nobody may add
        anything; where there is none, one after the other is.

        Args:
            peers: those that something was read from, or is to be sent to.

        Raises:
            OSError: there is no memory for it, and nobody to cut off. Nothing may be
                answered then, until it is recorded by a call that comes later.
        """
        ledger = self._ledger
        put = ledger.put
        for peer in peers:
            if peer.is_leaving:
                continue
            try:
                peer.collect()
                state = self._state(peer)
            except Exception as error:
                self._service.answers.blame(peer, error)
            else:
                put(self._state_keys[peer.session], state)
        for kind, name, value in records.changes(self._engine):
            key = _encode((kind, name))
            if value is None:
                ledger.remove(key)
            else:
                put(key, _encode(value))
        if self._service.runtime.processes.changed:
            self._record_processes()
        self._record_daemon()
        while True:
            try:
                ledger.commit()
                break
            except OSError:
                if not self._could_cut_off():
                    self._service.keeper.is_short = True
                    raise
        if ledger.is_short or self._service.keeper.is_short:
            self._service.keeper.is_short = ledger.is_short
            if ledger.is_short:
                self._could_cut_off()

    def _could_cut_off(self) -> bool:
        """Cuts off who leaves most unread; tells whether anybody leaves much."""
        answers = self._service.answers
        worst = max(answers.peers.values(), key=attrgetter("unread"), default=None)
        if worst is None or worst.unread <= SHORT:
            return False
        worst.cut_off(f"memory is short, and it left {worst.unread} bytes unread")
        answers.behind.add(worst)
        self._ledger.put(self._state_keys[worst.session], self._state(worst))
        return True

    def _record_processes(self) -> None:
        processes = self._service.runtime.processes
        assert processes.changed is not None
        for owner_id in processes.changed:
            record = processes.dump_one(owner_id)
            if record is None:
                self._remove(PROCESS, owner_id)
                continue
            del record["pidfd"]
            self._put(PROCESS, owner_id, record)
        processes.changed.clear()

    def _record_daemon(self) -> None:
        service = self._service
        dispatcher, epoch = service.dispatcher, service.epoch
        if (dispatcher.last_number, epoch.reserved) != self._numbers:
            self._numbers = dispatcher.last_number, epoch.reserved
            daemon = {
                "last_number": dispatcher.last_number,
                "started": dispatcher.started,
                "upgrades": dispatcher.upgrades,
                "revivals": service.answers.counts.revivals,
                "epoch": epoch.number,
                "reserved": epoch.reserved,
                "state_dir": epoch.directory,
            }
            self._put(DAEMON, 0, daemon)
        if service.config is not self._config:
            self._config = service.config
            self._put(CONFIG, 0, msgspec.to_builtins(service.config))
        lockspaces = service.runtime.lockspaces
        if lockspaces != self._spaces:
            for name, space in lockspaces.items():
                if self._spaces.get(name) is not space:
                    self._put(SPACE, name, _dump_space(space))
            self._spaces = dict(lockspaces)

    def record_anew(self) -> None:
        """Records all there is, and nothing else, whatever a predecessor left.

        Only what differs is written: whoever is killed again and again leaves no more.
        """
        ledger = self._ledger
        known = ledger.records()
        records.changes(self._engine)
        for kind, name, value in self._everything():
            key, encoded = key_of(kind, name), _encode(value)
            if known.pop(key, None) != encoded:
                ledger.put(key, encoded)
        for peer in self._service.answers.peers.values():
            self._note_session(peer.session)
            for key in self._apart[peer.session].keys():  # noqa: SIM118 - no dict
                known.pop(key, None)
            key = self._state_keys[peer.session]
            known.pop(key, None)
            ledger.put(key, self._state(peer))
        for key in known:
            ledger.remove(key)
        self._numbers, self._config = (-1, -1), None
        self._spaces = {}
        self.commit(())

    def adopt_records(self, found: Iterable[tuple[str, Any]]) -> None:
        """Lets all that a predecessor recorded count; what changes is recorded next.

        To be called instead of `record_anew` where nothing was damaged, and all is
        written as we would write it. The next `commit` has what the engine did since it
        was loaded, and the peers whose answers it is about: it comes before them.

        Args:
            found: kind and name of each record of a peer and of a process.
        """
        peers = self._service.answers.peers
        owners = set(self._service.runtime.processes.owners())
        for session in peers:
            self._note_session(session)
        for kind, name in found:
            number = name[0] if kind in PIECES else name
            if number not in (owners if kind == PROCESS else peers):
                self._remove(kind, name)

    def _everything(self) -> Iterable[tuple[str, Any, Any]]:
        yield from records.everything(self._engine)
        for peer in self._service.answers.peers.values():
            yield PEER, peer.session, peer.dump()

    def limit(self, record_bytes: int) -> None:
        """Lets the records take so much memory from now on."""
        self._ledger.limit(record_bytes)

    def _put(self, kind: str, name: Any, value: Any) -> None:
        self._ledger.put(key_of(kind, name), _encode(value))

    def _remove(self, kind: str, name: Any) -> None:
        self._ledger.remove(key_of(kind, name))


def _dump_space(space: Lockspace) -> Plain:
    return {
        "name": space.name,
        "kind": space.kind,
        "path": space.path,
        "on_disconnect": space.on_disconnect,
    }
