"""Restores what a predecessor left, after a crash and after a live upgrade alike.

The kernel knows what is locked; the records say who holds it. After a crash they may
differ by the last actions of the predecessor. An anchor without a recorded grant is
closed. A recorded lock needs no action, because the open file has it. If records are
damaged, nothing is unlocked that they may have described: a file without a known holder
stays locked for good. A session that has lost a record is closed, so that no client
relies on a lock that is lost. Everything readable continues.
"""

import os
import socket
import struct
from typing import Any, NamedTuple

import msgspec

from lockd.daemon.clients.peer import has_hung_up
from lockd.daemon.clients.peer_state import PeerState
from lockd.daemon.config.config import Config
from lockd.daemon.stores.labels import (
    CONFIG,
    CONNECTION,
    DAEMON,
    FILE,
    PEER,
    PIDFD,
    PIECES,
    POSITION,
    PROCESS,
    STATE,
)
from lockd.daemon.stores.ledger import LedgerError
from lockd.daemon.stores.pieces import Apart
from lockd.daemon.stores.stores import Stores, ledger_of
from lockd.daemon.survival.handover import Handover
from lockd.daemon.survival.remains import Remains, end_connection
from lockd.daemon.system import fdstore
from lockd.daemon.system.credentials import SO_PEERPIDFD
from lockd.daemon.system.fdstore import PREFIX
from lockd.daemon.system.listener import Role
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.errors import ConfigError
from lockd.terms import Kind, Mode, OnDisconnect
from lockd.text import counted

Plain = dict[str, Any]


class Stranger(NamedTuple):
    """A kept connection without records."""

    fd: int
    role: Role


class LockspaceRecord(NamedTuple):
    """A lockspace and its open anchors: resource, descriptor, made by us, mode."""

    name: str
    kind: Kind
    path: str | None
    on_disconnect: OnDisconnect
    files: list[tuple[str, int, bool, Mode | None]]


class Revived(NamedTuple):
    """The data of a predecessor.

    Attributes:
        daemon: the record of the daemon itself; without a `state_dir` if that is
            unknown.
        config: its configuration, as plain data.
        engine: the lock table, for `snapshot.load`.
        lockspaces: each with its open files.
        processes: each with its pidfd.
        peers: each with its state and its socket.
        strangers: connections without records.
        owners: the owners whose pidfds are kept.
        unclaimed: the descriptors that belong to neither the state nor a stranger, by
            label.
        recorded: kind and name of each record of a peer or process.
        apart: the pieces of each session.
        problems: what could not be read.
    """

    daemon: Plain
    config: Plain
    engine: Plain
    lockspaces: list[LockspaceRecord]
    processes: list[Plain]
    peers: list[Plain]
    strangers: list[Stranger]
    owners: list[int]
    unclaimed: dict[bytes, int]
    recorded: list[tuple[str, Any]]
    apart: dict[int, Apart]
    problems: list[str]

    @property
    def is_as_written(self) -> bool:
        """Whether the records have our format."""
        return bool(self.engine["version"] == snapshot.VERSION)


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
        fdstore.store_patiently(PREFIX + name, fd)
    return stores


def revive(stores: Stores) -> Revived | None:
    """Returns the data of a predecessor that was kept outside its process.

    Returns:
        None without a predecessor, or if it had served nobody.

    Raises:
        ConfigError: the data is unusable.
    """
    stores.cells.finish_sending(stores.pipe)
    found = Remains(stores.ledger, stores.in_flight.recover())
    found.problems += stores.in_flight.problems
    if stores.cells.is_unsure:
        found.problems.append("the receiver of the last answer is unknown")
    return _revived(found)


def revive_handed_over(left: Handover) -> Revived | None:
    """Returns the data of a predecessor that nobody kept; raises as `revive`."""
    try:
        ledger = ledger_of(left.stores)
    except (LookupError, LedgerError, OSError) as error:
        raise ConfigError(f"the kept state cannot be read: {error!r}") from None
    found = Remains(ledger, left.opened.items())
    ledger.close()
    return _revived(found)


def _revived(found: Remains) -> Revived | None:
    if not found.ours[DAEMON] and not found.problems:
        return None
    try:
        return _put_together(found)
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"the kept state cannot be read: {error!r}") from None


def _put_together(found: Remains) -> Revived:
    daemon = found.daemon()
    is_damaged = bool(found.problems)
    engine = records.assemble(found.engine)
    peers = _peers(found, is_damaged)
    lockspaces = _lockspaces(found, engine, found.spaces(engine))
    processes = _processes(found)
    strangers = _strangers(found, peers)
    if is_damaged:
        # A new connection looks the same as one whose records are lost.
        for stranger in strangers:
            end_connection(stranger.fd)
        if strangers:
            lost = counted(len(strangers), "connection")
            found.problems.append(f"{lost} without records: ended")
            strangers = []
    claimed = {x.fd for x in strangers} | {x["fd"] for x in peers}
    claimed |= {x["pidfd"] for x in processes}
    claimed |= {file[1] for space in lockspaces for file in space.files}
    unclaimed = {label: fd for label, fd in found.kept if fd not in claimed}
    owners = [x["owner_id"] for x in processes]
    owners = [owner_id for owner_id in owners if owner_id in found.fds[PIDFD]]
    recorded = [
        (kind, name)
        for kind in (PEER, STATE, POSITION, *PIECES, PROCESS)
        for name in found.ours[kind]
    ]
    return Revived(
        daemon,
        found.ours[CONFIG].get(0, {}),
        engine,
        lockspaces,
        processes,
        peers,
        strangers,
        owners,
        unclaimed,
        recorded,
        found.apart,
        found.problems,
    )


def _peers(found: Remains, is_damaged: bool) -> list[Plain]:
    peers = []
    for session, record in found.peers().items():
        kept = found.fds[CONNECTION].get(session)
        if kept is None or (is_damaged and has_hung_up(kept[0])):
            continue  # its end may be recorded, and its slot reused
        peers.append(record | {"fd": kept[0]})
    return peers


def _strangers(found: Remains, peers: list[Plain]) -> list[Stranger]:
    """Returns the connections without records, each once.

    An admitted stranger is kept again under another number, and a dropped descriptor
    stays in flight for a while. So one socket may have several labels.
    """
    taken = {peer["fd"] for peer in peers}
    others = [x for x in found.fds[CONNECTION].values() if x[0] not in taken]
    known = {os.fstat(fd).st_ino for fd in taken} if others else set()
    strangers = []
    for fd, (role,) in others:
        if (socket_number := os.fstat(fd).st_ino) not in known and not has_hung_up(fd):
            known.add(socket_number)
            strangers.append(Stranger(fd, role))
    return strangers


def _processes(found: Remains) -> list[Plain]:
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


def _lockspaces(
    found: Remains, engine: Plain, spaces: dict[str, Plain]
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


def config_of(revived: Revived) -> Config | None:
    """Returns the predecessor's configuration; None if it is unreadable here."""
    try:
        return msgspec.convert(revived.config, Config)
    except msgspec.ValidationError:
        return None


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
