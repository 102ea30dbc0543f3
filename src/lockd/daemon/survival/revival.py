"""Restores the state after a crash: converts the kept data into that of a live upgrade.

The kernel knows what is locked; the records say who holds it. They may differ by the
last actions of the predecessor. An anchor without a recorded grant is closed. A
recorded lock needs no action, because the kept open file has it. If records are
damaged, nothing is unlocked that they may have described: a file without a known holder
stays locked for good. A session that has lost a record is closed, so that no client
relies on a lock that is lost. Everything readable continues.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from lockd import __version__
from lockd.daemon.clients.peer import has_hung_up, shut_down
from lockd.daemon.clients.peer_state import PeerState
from lockd.daemon.stores.labels import (
    CONFIG,
    CONNECTION,
    DAEMON,
    FILE,
    PARTIAL,
    PEER,
    PIDFD,
    PIECES,
    PROCESS,
    SPACE,
    STATE,
    UNREADABLE,
    UNSENT,
    parts_of,
)
from lockd.daemon.stores.ledger import Ledger, LedgerError
from lockd.daemon.stores.pieces import Apart
from lockd.daemon.stores.stores import Stores
from lockd.daemon.survival.handover import (
    READABLE_FROM,
    VERSION,
    Handover,
    LockspaceRecord,
)
from lockd.daemon.system import fdstore
from lockd.daemon.system.credentials import SO_PEERPIDFD
from lockd.daemon.system.fdstore import PREFIX
from lockd.daemon.system.listener import Role
from lockd.engine import records, snapshot
from lockd.engine.lock_engine import LockEngine
from lockd.errors import ConfigError
from lockd.terms import Mode
from lockd.text import counted

Plain = dict[str, Any]

PATIENCE: Final = 10.0
PAUSE: Final = 0.01
"""Seconds to wait for a busy service manager, and between two attempts: its socket
holds few messages."""

_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode
_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in records.TYPES.items()
}

_OURS: Final = (CONFIG, DAEMON, PEER, PROCESS, SPACE, STATE, *PIECES)

_NUMBERED: Final = ("owner", "session")
"""The engine's records that are named by a number of `Life.new_number`."""


class Stranger(NamedTuple):
    """A kept connection without records."""

    fd: int
    role: Role


class Revived(NamedTuple):
    """The data of a predecessor.

    Attributes:
        state: its state; without a `state_dir` if that is unknown.
        strangers: connections without records.
        owners: the owners whose pidfds are kept.
        unclaimed: the descriptors that belong to neither the state nor a stranger, by
            label.
        recorded: kind and name of each record of a peer or process.
        apart: the pieces of each session.
        problems: what could not be read.
    """

    state: Handover
    strangers: list[Stranger]
    owners: list[int]
    unclaimed: dict[bytes, int]
    recorded: list[tuple[str, Any]]
    apart: dict[int, Apart]
    problems: list[str]

    @property
    def is_as_written(self) -> bool:
        """Whether the records have our format."""
        return bool(self.state.engine["version"] == snapshot.VERSION)


class _Found:
    """The records and descriptors of a predecessor, sorted."""

    def __init__(self, stores: Stores) -> None:
        self.problems = list(stores.ledger.problems)
        self.engine: list[records.Record] = []
        self.ours: dict[str, dict[Any, Any]] = {kind: {} for kind in _OURS}
        self.fds: dict[str, dict[Any, tuple[int, tuple[Any, ...]]]] = {
            kind: {} for kind in (CONNECTION, FILE, PIDFD)
        }
        for key, value in stores.ledger.records().items():
            try:
                kind, name = _decode(key)
                if kind in PIECES:
                    self.ours[kind][tuple(name)] = value
                elif kind in self.ours:
                    self.ours[kind][_hashable(name)] = _decode(value)
                else:
                    self.engine.append((kind, name, _value_of(kind, value)))
            except Exception as error:
                self.problems.append(f"the record {key!r}: {error}")
        self.apart: dict[int, Apart] = {}
        self._put_together(stores.ledger)
        self.kept = stores.in_flight.recover()
        self.problems += stores.in_flight.problems
        for label, fd in self.kept:
            kind, *parts = parts_of(label)
            if kind == FILE:
                self.fds[FILE][tuple(parts[:2])] = fd, tuple(parts[2:])
            elif kind in self.fds:
                self.fds[kind][parts[0]] = fd, tuple(parts[1:])
            elif kind == UNREADABLE:
                self.problems.append(f"the kept descriptor {label!r} is unknown")
                _shut_down(fd)

    def _put_together(self, ledger: Ledger) -> None:
        """Adds the pieces to the states of the sessions."""
        unsent: dict[int, dict[int, bytes]] = {}
        partial: dict[int, dict[int, bytes]] = {}
        for kind, found in ((UNSENT, unsent), (PARTIAL, partial)):
            for (session, begin), piece in self.ours[kind].items():
                found.setdefault(session, {})[begin] = piece
        for session, raw in list(self.ours[STATE].items()):
            apart = self.apart[session] = Apart(session, ledger)
            try:
                state = msgspec.convert(raw, PeerState)
                self.ours[STATE][session] = whole(
                    state, apart, unsent.get(session, {}), partial.get(session, {})
                )
            except Exception as error:
                del self.ours[STATE][session]
                self.problems.append(f"the state of session {session}: {error}")

    def daemon(self) -> Plain:
        """Returns the record of the daemon itself, or safe values without one.

        No number may be given twice, so it takes the greatest of all records.
        """
        found = self.ours[DAEMON].get(0)
        if found is None:
            self.problems.append("the previous daemon has no record")
            started = time.monotonic()
            found = {"started": started, "upgrades": 0, "epoch": 0, "reserved": 0}
            found |= {"last_number": 0, "state_dir": ""}
        numbers = [found["last_number"], *self.fds[CONNECTION], *self.fds[PIDFD]]
        numbers += [*self.ours[PEER], *self.ours[PROCESS]]
        numbers += [name for kind, name, _ in self.engine if kind in _NUMBERED]
        return found | {"last_number": max(numbers)}


def open_stores(kept: list[tuple[str, int]]) -> Stores | None:
    """Opens or creates the stores that outlive this process.

    Args:
        kept: the descriptors that the service manager kept for a predecessor.

    Returns:
        The stores; None without a service manager that stores descriptors.

    Raises:
        ConfigError: the kept data has another version.
    """
    found = {name.removeprefix(PREFIX): fd for name, fd in kept}
    if found.keys() >= Stores.NAMES:
        try:
            return Stores(found)
        except LedgerError as error:
            raise ConfigError(str(error)) from None
    # The predecessor was killed before it had stored everything, and so before it
    # served.
    for name, fd in kept:
        fdstore.remove(name)
        os.close(fd)
    if fdstore.is_offered() < len(Stores.NAMES):
        return None
    stores = Stores()
    for name, fd in stores.descriptors().items():
        _store(PREFIX + name, fd)
    return stores


def _store(name: str, fd: int) -> None:
    """Stores a descriptor; waits up to `PATIENCE` seconds for a busy manager."""
    deadline = time.monotonic() + PATIENCE
    while not fdstore.store(name, fd):
        if time.monotonic() > deadline:
            raise ConfigError("the service manager does not store descriptors")
        time.sleep(PAUSE)


def revive(stores: Stores) -> Revived | None:
    """Returns the data of a predecessor in the form of a live upgrade.

    Returns:
        None without a predecessor, or if it had served nobody.

    Raises:
        ConfigError: the data is unusable.
    """
    stores.cells.finish_sending(stores.pipe)
    found = _Found(stores)
    if stores.cells.is_unsure:
        found.problems.append("the receiver of the last answer is unknown")
    if not found.ours[DAEMON] and not found.problems:
        return None
    try:
        return _revived(found)
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"the kept state cannot be read: {error!r}") from None


def _revived(found: _Found) -> Revived:
    daemon = found.daemon()
    is_damaged = bool(found.problems)
    engine = records.assemble(found.engine)
    peers = _peers(found, is_damaged)
    spaces = _spaces(found, engine)
    state = Handover(
        VERSION,
        READABLE_FROM,
        __version__,
        found.ours[CONFIG].get(0, {}),
        engine,
        [daemon["epoch"], daemon["reserved"]],
        daemon["state_dir"],
        {},
        _lockspaces(found, engine, spaces),
        _processes(found),
        peers,
        daemon["last_number"],
        daemon["started"],
        daemon["upgrades"],
        daemon.get("revivals", 0),
    )
    strangers = _strangers(found, peers)
    if is_damaged:
        # A new connection looks the same as one whose records are lost.
        for stranger in strangers:
            _shut_down(stranger.fd)
        if strangers:
            lost = counted(len(strangers), "connection")
            found.problems.append(f"{lost} without records: ended")
            strangers = []
    claimed = {x.fd for x in strangers} | {x["fd"] for x in peers}
    claimed |= {x["pidfd"] for x in state.processes}
    claimed |= {file[1] for space in state.lockspaces for file in space.files}
    unclaimed = {label: fd for label, fd in found.kept if fd not in claimed}
    owners = [x["owner_id"] for x in state.processes]
    owners = [owner_id for owner_id in owners if owner_id in found.fds[PIDFD]]
    recorded = [
        (kind, name)
        for kind in (PEER, STATE, *PIECES, PROCESS)
        for name in found.ours[kind]
    ]
    return Revived(
        state, strangers, owners, unclaimed, recorded, found.apart, found.problems
    )


def _shut_down(fd: int) -> None:
    """Shuts a descriptor down if it is a connection."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        shut_down(sock)


def _peers(found: _Found, is_damaged: bool) -> list[Plain]:
    peers = []
    for session, record in found.ours[PEER].items():
        kept, state = found.fds[CONNECTION].get(session), found.ours[STATE].get(session)
        if kept is not None and is_damaged and has_hung_up(kept[0]):
            continue  # its end may be recorded, and its slot reused
        if kept is not None and state is not None:
            peers.append(record | {"state": state, "fd": kept[0]})
    return peers


def _strangers(found: _Found, peers: list[Plain]) -> list[Stranger]:
    """Returns the connections without records, each once.

    An admitted stranger is kept again under another number, and a dropped descriptor
    stays in flight for a while. So one socket may have several labels.
    """
    known = {os.fstat(peer["fd"]).st_ino for peer in peers}
    strangers = []
    for fd, (role,) in found.fds[CONNECTION].values():
        if (socket_number := os.fstat(fd).st_ino) not in known and not has_hung_up(fd):
            known.add(socket_number)
            strangers.append(Stranger(fd, role))
    return strangers


def _processes(found: _Found) -> list[Plain]:
    fd_of = {session: fd for session, (fd, _) in found.fds[CONNECTION].items()}
    processes = []
    for owner_id, record in found.ours[PROCESS].items():
        if owner_id in found.fds[PIDFD]:
            pidfd: int | None = found.fds[PIDFD][owner_id][0]
        else:
            pidfd = _pidfd_of_peer(fd_of.get(owner_id))
        if pidfd is not None:
            processes.append(record | {"pidfd": pidfd})
        else:
            found.problems.append(f"the process {record['pid']} cannot be found")
    return processes


def _pidfd_of_peer(fd: int | None) -> int | None:
    """Returns the pidfd of the process that connected, even if it is dead."""
    if fd is None:
        return None
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        except OSError:
            return None
    pidfd: int = struct.unpack("i", raw)[0]
    return pidfd


def _spaces(found: _Found, engine: Plain) -> dict[str, Plain]:
    """Returns the lockspaces by name. One of two records of a lockspace is enough.

    It removes unknown lockspaces from the engine's data.
    """
    spaces = dict(found.ours[SPACE])
    configured = found.ours[CONFIG].get(0, {}).get("lockspaces", {})
    known = {x["name"]: x for x in engine["lockspaces"]}
    for name, space in known.items():
        if name not in spaces and not space["anchored"]:
            spaces[name] = {"kind": "memory", "path": None} | space
        elif name not in spaces and name in configured:
            spaces[name] = configured[name] | space
    for name, space in spaces.items():
        if name not in known:
            is_anchored = space["kind"] != "memory"
            known[name] = {
                "name": name,
                "anchored": is_anchored,
                "on_disconnect": space["on_disconnect"],
            }
    engine["lockspaces"] = [known[name] for name in spaces]
    return spaces


def _lockspaces(
    found: _Found, engine: Plain, spaces: dict[str, Plain]
) -> list[LockspaceRecord]:
    modes = {x.key: x.anchor for x in engine["resources"]}
    files: dict[str, list[tuple[str, int, bool, Mode | None]]] = {}
    for (lockspace, resource), (fd, (made,)) in found.fds[FILE].items():
        file = resource, fd, made, modes.get((lockspace, resource))
        files.setdefault(lockspace, []).append(file)
    return [
        LockspaceRecord(
            name,
            record["kind"],
            record["path"],
            record["on_disconnect"],
            files.get(name, []),
        )
        for name, record in spaces.items()
    ]


def _value_of(kind: str, value: bytes) -> Any:
    """Returns the value of a record of the engine; decodes frequent kinds directly."""
    try:
        return _DECODERS.get(kind, _decode)(value)
    except msgspec.ValidationError:
        return _decode(value)  # `assemble` reports what is wrong with it


def missing_claims(engine: LockEngine, peers: list[Plain]) -> list[int]:
    """Returns the sessions whose locks and requests differ from their recorded claims.

    Grants and requests have their own records. If one is lost, nothing else shows that.
    """
    missing = []
    for peer in peers:
        session = engine.sessions.get(peer["session"])
        claims = msgspec.convert(peer["state"], PeerState).claims
        if session is not None and claims not in (None, session.claims):
            missing.append(session.session_id)
    return missing


def whole(
    state: PeerState,
    apart: Apart,
    unsent: Mapping[int, bytes],
    partial: Mapping[int, bytes],
) -> PeerState:
    """Returns a state together with its pieces.

    Args:
        state: the recorded state.
        apart: takes over the pieces.
        unsent: the pieces of unsent bytes by their position in the stream.
        partial: the pieces of an incomplete message.

    Raises:
        ValueError: some of them are missing.
    """
    said, begun = state.unsent, state.connection["partial"]
    start = state.done - len(begun) - state.partial_apart
    said = apart.unsent.take_up(unsent, state.sent, state.unsent_apart) + said
    begun = apart.partial.take_up(partial, start, state.partial_apart) + begun
    connection = state.connection | {"partial": begun}
    return replace(state, unsent=said, connection=connection)


def _hashable(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name
