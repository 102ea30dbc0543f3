"""Records all changes of the state before any answer leaves.

The cost depends on the changes and not on the number of locks (`Ledger`, `records`,
`Pieces`). If memory is short, garbage goes first, and then the clients that leave most
unread. Nobody gets an answer that is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, Final
from zlib import crc32

import msgspec

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.peer_state import PeerState
from lockd.daemon.config.config import Config
from lockd.daemon.replies.answers import Answers
from lockd.daemon.stores.labels import (
    CONFIG,
    DAEMON,
    PEER,
    PIECES,
    POSITION,
    PROCESS,
    SPACE,
    STATE,
    key_of,
)
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.pieces import SHORT, Apart
from lockd.daemon.system.epoch import Epoch
from lockd.daemon.system.processes import Describe
from lockd.engine.effects import LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records
from lockd.lockspaces.base import Lockspace
from lockd.terms import ResourceKey

Plain = dict[str, Any]

_encode: Final = msgspec.msgpack.Encoder().encode

LATE_AT_ONCE: Final = 128
"""The most last holders to record in one step, which comes once a second. It takes a
fraction of a millisecond, and a busy daemon records few of many."""

COUNTS: Final = "counts"
LAST: Final = "last"
_COUNTS_KEY: Final = key_of(COUNTS, 0)
"""The record of the engine that almost every turn changes (`records`)."""


class _Recorded:
    """What is recorded of a session.

    Attributes:
        state_key, position_key: the keys of its state.
        apart: its pieces.
        rest: its state without the position; None if this process has not recorded it.
        check: of the record of `rest` (`Position.state`).
    """

    def __init__(self, session: int, apart: Apart) -> None:
        self.state_key = key_of(STATE, session)
        self.position_key = key_of(POSITION, session)
        self.apart = apart
        self.rest: PeerState | None = None
        self.check = 0

    def keys(self) -> Iterator[bytes]:
        """Yields the keys of all its records."""
        yield self.state_key
        yield self.position_key
        yield from self.apart.keys()


class Recorder:
    """Records the state of one daemon.

    Args:
        ledger: has the records.
        engine: has the locks; `commit` needs that it is followed (`records.follow`).
        answers: has the peers.
        life, epoch: the numbers to record.
        apart: the pieces that are recorded already, by session.

    Attributes:
        is_short: whether memory is so short that nothing may be added.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: LockEngine,
        answers: Answers,
        life: Life,
        epoch: Epoch,
        apart: Mapping[int, Apart],
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._answers = answers
        self._life = life
        self._epoch = epoch
        self.is_short = False
        self._recorded: dict[int, _Recorded] = {}
        #: The pieces of a predecessor, by session.
        self._apart = dict(apart)
        #: The last holders that are not recorded yet, by key.
        self._late: dict[ResourceKey, tuple[int, LastHolder]] = {}
        #: The owners whose processes have changed, and the function that describes
        #: them.
        self._changed: dict[int, Describe] = {}
        self._numbers = (-1, -1)
        self._config = Config()
        self._spaces: dict[str, Lockspace] = {}

    def open_peer(self, peer: Peer) -> None:
        """Records a new peer with the next `commit`."""
        self._note_session(peer.session)
        self._put(PEER, peer.session, peer.dump())
        self._put_state(peer)

    def close_peer(self, session: int) -> None:
        """Removes the records of a peer."""
        self._remove(PEER, session)
        recorded = self._recorded.pop(session, None)
        if recorded is not None:
            for key in recorded.keys():  # noqa: SIM118 - no dict
                self._ledger.remove(key)

    def _note_session(self, session: int) -> _Recorded:
        before = self._recorded.get(session)
        apart = self._apart.pop(session, None) if before is None else before.apart
        recorded = _Recorded(session, apart or Apart(session, self._ledger))
        self._recorded[session] = recorded
        return recorded

    def _put_state(self, peer: Peer) -> None:
        """Stages the position of a session, and the rest of its state if it changed."""
        recorded = self._recorded[peer.session]
        session = self._engine.sessions.get(peer.session)
        claims = 0 if session is None else session.claims
        position, rest = peer.dump_state(claims, recorded.apart)
        if rest != recorded.rest:
            encoded = _encode(rest)
            self._ledger.put(recorded.state_key, encoded)
            recorded.rest, recorded.check = rest, crc32(encoded)
        of_this = position.of(recorded.check)
        self._ledger.put(recorded.position_key, _encode(of_this))

    def commit(self, peers: Iterable[Peer]) -> None:
        """Records all changes, so that answers may leave.

        If memory is short, it disconnects the client that leaves most unread, and
        nobody may add anything. Without memory, it disconnects one after the other.

        Args:
            peers: those that the turn has read from or will send to.

        Raises:
            OSError: there is no memory, and nobody to disconnect. No answer may leave
                until a later call succeeds.
        """
        ledger = self._ledger
        for peer in peers:
            if peer.is_leaving:
                continue
            try:
                peer.collect()
                self._put_state(peer)
            except Exception as error:
                self._answers.blame(peer, error)
        for kind, name, value in records.changes(self._engine):
            key = _COUNTS_KEY if kind == COUNTS else key_of(kind, name)
            if kind == LAST:
                self._note_last(key, name, value)
            elif value is None:
                ledger.remove(key)
            else:
                ledger.put(key, _encode(value))
        self._record_noted()
        while True:
            try:
                ledger.commit()
                break
            except OSError:
                if not self._could_cut_off():
                    self.is_short = True
                    raise
        self.is_short = ledger.is_short
        if self.is_short:
            self._could_cut_off()

    def _note_last(
        self, key: bytes, name: ResourceKey, ranked: tuple[int, LastHolder] | None
    ) -> None:
        """Notes the last holder of a resource; most are recorded later (`stage_late`).

        If a hold did not end well, the next holder must hear of it, also after a crash:
        it is recorded at once. All others are for people. In their place the record of
        an earlier holder goes, in the commit that removes the grant. So a successor may
        know no last holder, but never a wrong one.

        The engine forgets the last holders beyond a limit, and says so. So no more than
        that wait here, and each is the engine's own.
        """
        # The lock that is used most waits longest: its record would soon be removed.
        self._late.pop(name, None)
        if ranked is not None and ranked[1].ended_well:
            self._late[name] = ranked
        elif ranked is not None:
            self._ledger.put(key, _encode(records.last_record(ranked)))
            return
        self._ledger.remove(key)

    def stage_late(self) -> bool:
        """Stages some of the last holders that are not recorded yet.

        Returns whether there were any. The next `commit` records them.
        """
        late = list(islice(self._late, LATE_AT_ONCE))
        for name in late:
            self._put(LAST, name, records.last_record(self._late.pop(name)))
        return bool(late)

    def _could_cut_off(self) -> bool:
        """Disconnects the client that leaves most unread.

        Returns whether one leaves much.
        """
        answers = self._answers
        peers = answers.peers.values()
        worst = max(peers, key=lambda peer: peer.outbox.unread, default=None)
        unread = 0 if worst is None else worst.outbox.unread
        if worst is None or unread <= SHORT:
            return False
        worst.cut_off(f"memory is short, and it left {unread} bytes unread")
        answers.behind.add(worst)
        self._put_state(worst)
        return True

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Records the data of a process with the next `commit`."""
        self._changed[owner_id] = describe

    def _record_noted(self) -> None:
        for owner_id, describe in self._changed.items():
            self._record_process(owner_id, describe(owner_id))
        self._changed.clear()
        self._record_daemon()

    def _record_process(self, owner_id: int, found: Plain | None) -> None:
        if found is None:
            self._remove(PROCESS, owner_id)
        else:
            del found["pidfd"]
            self._put(PROCESS, owner_id, found)

    def note_config(self, config: Config) -> None:
        """Records a configuration."""
        self._config = config
        self._put(CONFIG, 0, msgspec.to_builtins(config))

    def note_lockspace(self, space: Lockspace) -> None:
        """Records a lockspace."""
        self._spaces[space.name] = space
        self._put(SPACE, space.name, _dump_space(space))

    def _record_daemon(self) -> None:
        life, epoch = self._life, self._epoch
        if (life.last_number, epoch.reserved) != self._numbers:
            self._numbers = life.last_number, epoch.reserved
            known = life.dump() | {
                "epoch": epoch.number,
                "reserved": epoch.reserved,
                "state_dir": epoch.directory,
                "instance": epoch.instance,
            }
            self._put(DAEMON, 0, known)

    def record_anew(self) -> None:
        """Records the whole state, and removes all other records."""
        records.changes(self._engine)
        self.stage_all()
        self.commit(())

    def stage_all(self) -> None:
        """Stages the whole state, and the removal of all other records.

        It writes only the differences, so that repeated crashes need no more memory.
        """
        ledger = self._ledger
        self._late.clear()
        known = ledger.records()
        for kind, name, value in self._everything():
            key, encoded = key_of(kind, name), _encode(value)
            if known.pop(key, None) != encoded:
                ledger.put(key, encoded)
        for peer in self._answers.peers.values():
            recorded = self._note_session(peer.session)
            for key in recorded.keys():  # noqa: SIM118 - no dict
                known.pop(key, None)
            self._put_state(peer)
        for key in known:
            ledger.remove(key)
        self._numbers = (-1, -1)
        self._record_noted()

    def adopt_records(self, found: Iterable[tuple[str, Any]], owners: Set[int]) -> None:
        """Adopts the records of a predecessor. Later changes are recorded as usual.

        Call it instead of `record_anew` if nothing was damaged and the format is ours.
        The next `commit` records the changes of the engine since loading, together with
        the peers whose answers depend on them.

        Args:
            found: kind and name of each record of a peer or process.
            owners: the owners whose processes are known.
        """
        peers = self._answers.peers
        for session in peers:
            self._note_session(session)
        for kind, name in found:
            number = name[0] if kind in PIECES else name
            if number not in (owners if kind == PROCESS else peers):
                self._remove(kind, name)

    def _everything(self) -> Iterable[tuple[str, Any, Any]]:
        yield from records.everything(self._engine)
        for peer in self._answers.peers.values():
            yield PEER, peer.session, peer.dump()
        yield CONFIG, 0, msgspec.to_builtins(self._config)
        for space in self._spaces.values():
            yield SPACE, space.name, _dump_space(space)

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
