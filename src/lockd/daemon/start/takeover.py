"""Restores the state of another daemon (`revival`).

An unreadable part affects only the clients it belongs to.
"""

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio

from lockd.daemon.assembly import Parts
from lockd.daemon.clients.access import rights_of
from lockd.daemon.clients.peer import Peer, shut_down
from lockd.daemon.clients.peer_state import PeerState
from lockd.daemon.config.config import (
    Config,
    Limits,
    LockspaceConfig,
    make_lockspace,
)
from lockd.daemon.stores.labels import PROCESS
from lockd.daemon.stores.stores import ledger_of
from lockd.daemon.stores.streams import Flow
from lockd.daemon.survival.handover import Handover
from lockd.daemon.survival.keeping import StoredKeeping
from lockd.daemon.survival.remains import Remains
from lockd.daemon.survival.revival import LockspaceRecord, Revived
from lockd.daemon.system.credentials import Credentials, Identity
from lockd.engine import commands as c
from lockd.engine import invariants
from lockd.engine.recovery import records, snapshot
from lockd.engine.recovery.shapes import Loaded
from lockd.errors import ConfigError, RequestError
from lockd.lockspaces.files import FileLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.places import check_directory
from lockd.names import quoted
from lockd.terms import ResourceKey

Plain = dict[str, Any]


def check(left: Handover) -> None:
    """Does everything that can be done with a copy of the records.

    Raises:
        ConfigError: a part of it cannot be read.
    """
    open_files = OpenFiles()
    try:
        remains = Remains(ledger_of(left.stores))
        remains.daemon()
        engine = records.assemble(remains.engine)
        for name, space in remains.spaces(engine).items():
            kind, path = space["kind"], space["path"]
            make_lockspace(name, kind, path, open_files, settle=check_directory)
        loaded = snapshot.load(engine)
        invariants.check(loaded.engine)
        problems = [*remains.problems, *loaded.problems]
        for record in remains.peers().values():
            with socket.socket(socket.AF_UNIX) as sock:
                load_peer(record, sock, lambda events: None, Limits())
        for record in remains.ours[PROCESS].values():
            int(record["pid"]), int(record["owner_id"]), bool(record["registered"])
    except ConfigError:
        raise
    except Exception as error:
        problems = [repr(error)]
    finally:
        open_files.mounts.close()
    if problems:
        raise ConfigError(f"the state of the previous daemon: {problems[0]}")


def take_over(parts: Parts, config: Config, revived: Revived, loaded: Loaded) -> None:
    """Restores the state of a predecessor.

    An unreadable part is logged, and affects only the clients it belongs to.

    Args:
        parts: this daemon, with the loaded lock table.
        config: the predecessor's configuration.
        revived: the data of the predecessor.
        loaded: the result of loading the lock table.
    """
    problems = [*revived.problems, *loaded.problems]
    lost: dict[ResourceKey, str] = {}
    for space in revived.lockspaces:
        lost |= _take_lockspace(parts, space)
        _take_rights(parts, config, space, problems)
    problems += lost.values()
    if isinstance(parts.keeping, StoredKeeping):
        parts.keeping.note_files()
    for record in revived.processes:
        try:
            parts.runtime.processes.load(record)
        except Exception as error:
            problems.append(f"a process: {error!r}")
    for record in revived.peers:
        _take_peer(parts, record, problems)
    # The peers exist now and can hear of it.
    for key, reason in lost.items():
        lose(parts, key, reason)
    _end_what_is_left(parts, loaded)
    for problem in problems:
        parts.health.report(f"lost {problem}", f"not taken over: {problem}")


def _take_lockspace(parts: Parts, record: LockspaceRecord) -> dict[ResourceKey, str]:
    """Serves a lockspace. Returns the resources that are no longer locked, and why."""
    space = make_lockspace(
        record.name,
        record.kind,
        record.path,
        parts.open_files,
        record.on_disconnect,
        # Some locks are held there, so its directory is not checked.
        settle=str,
    )
    parts.runtime.add_lockspace(space)
    lost = {}
    for resource, fd, made, mode in record.files:
        assert isinstance(space, FileLockspace)
        try:
            space.adopt_file(resource, fd, made=made, mode=mode)
        except (OSError, RequestError) as error:
            lost[ResourceKey(space.name, resource)] = str(error)
    return lost


def _take_rights(
    parts: Parts, config: Config, record: LockspaceRecord, problems: list[str]
) -> None:
    """Sets the rights in a lockspace by the old configuration.

    Reading the new configuration replaces them.
    """
    found = config.lockspaces.get(record.name, LockspaceConfig(record.kind))
    try:
        rights = rights_of(found)
    except ConfigError as error:  # a user has been deleted
        problems.append(f"rights in lockspace {quoted(record.name)}: {error}")
        rights = rights_of(LockspaceConfig("direct"))  # for admins only
    parts.access.set_rights(record.name, rights)


def lose(parts: Parts, key: ResourceKey, reason: str) -> None:
    """Takes a resource from its holders, because its file is no longer locked."""
    for grant in parts.engine.holders(key):
        # Session 0 does not exist: the answer goes nowhere.
        command = c.BreakGrant(0, 0, grant.fencing_token, reason)
        parts.runtime.carry_out(command)


def load_peer(
    record: Plain,
    sock: socket.socket,
    watch: Callable[[int], None],
    limits: Limits,
    flow: Flow | None = None,
    on_error: Callable[[str], None] = lambda code: None,
) -> Peer:
    """Returns a peer in the state that `Peer.dump` and `Peer.dump_state` described.

    Raises:
        OSError: the connection is broken.
        ValueError: the positions in its streams are unknown.
    """
    identity = Identity(
        Credentials(*record["credentials"]),
        frozenset(record["groups"]),
        None,
        record["is_foreign"],
        # Older daemons did not record it.
        record.get("user", record["credentials"][1]),
    )
    peer = Peer(
        record["session"],
        sock,
        identity,
        record["since"],
        watch,
        role=record["role"],
        is_admin=record["is_admin"],
        limits=limits,
        flow=flow,
        on_error=on_error,
    )
    peer.load_state(msgspec.convert(record["state"], PeerState))
    return peer


def _take_peer(parts: Parts, record: Plain, problems: list[str]) -> None:
    try:
        sock = socket.socket(fileno=record["fd"])
    except (LookupError, TypeError, OSError) as error:
        problems.append(f"a connection: {error!r}")
        return
    try:
        sock.setblocking(False)
        watch = partial(parts.poller.change, sock.fileno())
        flow = parts.keeping.take_up_flow(sock, record["slot"])
        limits, count = parts.limits.limits, parts.answers.counts.count_refusal
        peer = load_peer(record, sock, watch, limits, flow, count)
        if peer.session not in parts.engine.sessions:
            raise ValueError("its session could not be read")
    except Exception as error:
        # Any error: otherwise every start would fail on it.
        problems.append(f"session {record.get('session')} is ended: {error}")
        shut_down(sock)
        sock.close()
        return
    parts.server.adopt(peer)


def _end_what_is_left(parts: Parts, loaded: Loaded) -> None:
    peers, engine = parts.answers.peers, parts.engine
    for session in loaded.damaged:
        if session in peers:
            # Before another owner gets its lock.
            peers[session].shut_down()
            peers[session].close_after_answers()
            parts.answers.behind.add(peers[session])
    for session in [x for x in engine.sessions if x not in peers]:
        parts.answers.counts.end_session(session, trio.current_time())
        parts.runtime.carry_out(c.CloseSession(session))
        if session not in engine.owners:
            # Otherwise the next start would miss it, and take that for damage.
            parts.runtime.processes.forget(session)
    for owner_id in loaded.orphans:
        if owner_id in engine.owners:
            parts.runtime.carry_out(c.DisconnectOwner(owner_id))
