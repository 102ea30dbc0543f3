"""The records and descriptors that remain of a predecessor, read as far as possible.

`revival` restores the state from them; a trial (`handover`) only checks the records.
"""

import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final
from zlib import crc32

import msgspec
from msgspec.structs import replace

from lockd.daemon.clients.peer import shut_down
from lockd.daemon.clients.peer_state import PeerState, Position
from lockd.daemon.stores.labels import (
    CONFIG,
    CONNECTION,
    DAEMON,
    FILE,
    PARTIAL,
    PEER,
    PIDFD,
    PIECES,
    POSITION,
    PROCESS,
    SPACE,
    STATE,
    UNREADABLE,
    UNSENT,
    parts_of,
)
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.pieces import Apart
from lockd.engine.recovery import records

Plain = dict[str, Any]

_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode
_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in records.TYPES.items()
}

_OURS: Final[tuple[str, ...]] = (
    *(CONFIG, DAEMON, PEER, PROCESS, SPACE),
    *(STATE, POSITION, *PIECES),
)

_NUMBERED: Final = ("owner", "session")
"""The engine's records that are named by a number of `Life.new_number`."""


class Remains:
    """The records and descriptors of a predecessor, sorted.

    Args:
        ledger: has the records.
        kept: the descriptors with their labels; none to read only the records.

    Attributes:
        problems: what could not be read.
    """

    def __init__(
        self, ledger: Ledger, kept: Collection[tuple[bytes, int]] = ()
    ) -> None:
        self.problems = list(ledger.problems)
        self.engine: list[records.Record] = []
        self.ours: dict[str, dict[Any, Any]] = {kind: {} for kind in _OURS}
        checks: dict[int, int] = {}
        for key, value in ledger.records().items():
            try:
                kind, name = _decode(key)
                if kind in PIECES:
                    self.ours[kind][tuple(name)] = value
                elif kind in self.ours:
                    self.ours[kind][_hashable(name)] = _decode(value)
                    if kind == STATE:
                        checks[name] = crc32(value)
                else:
                    self.engine.append((kind, name, _value_of(kind, value)))
            except Exception as error:
                self.problems.append(f"the record {key!r}: {error}")
        self.apart: dict[int, Apart] = {}
        self._put_together(ledger, checks)
        self.kept = kept
        self.fds: dict[str, dict[Any, tuple[int, tuple[Any, ...]]]] = {
            kind: {} for kind in (CONNECTION, FILE, PIDFD)
        }
        for label, fd in kept:
            kind, *parts = parts_of(label)
            if kind == FILE:
                self.fds[FILE][tuple(parts[:2])] = fd, tuple(parts[2:])
            elif kind in self.fds:
                self.fds[kind][parts[0]] = fd, tuple(parts[1:])
            elif kind == UNREADABLE:
                self.problems.append(f"the kept descriptor {label!r} is unknown")
                end_connection(fd)

    def _put_together(self, ledger: Ledger, checks: Mapping[int, int]) -> None:
        """Adds the positions and the pieces to the states of the sessions.

        Args:
            ledger: has the records.
            checks: the CRC-32 of each record of a state, by session.
        """
        unsent: dict[int, dict[int, bytes]] = {}
        partial: dict[int, dict[int, bytes]] = {}
        for kind, found in ((UNSENT, unsent), (PARTIAL, partial)):
            for (session, begin), piece in self.ours[kind].items():
                found.setdefault(session, {})[begin] = piece
        for session, raw in list(self.ours[STATE].items()):
            apart = self.apart[session] = Apart(session, ledger)
            try:
                state = msgspec.convert(raw, PeerState)
                if state.position_apart:
                    if session not in self.ours[POSITION]:
                        raise ValueError("its position is missing")
                    raw_position = self.ours[POSITION][session]
                    position = msgspec.convert(raw_position, Position)
                    if position.state != checks[session]:
                        raise ValueError("its record is not the one that counts")
                    state = state.at(position)
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
            found |= {"last_number": 0, "state_dir": "", "instance": ""}
        numbers = [found["last_number"], *self.fds[CONNECTION], *self.fds[PIDFD]]
        numbers += [*self.ours[PEER], *self.ours[PROCESS]]
        numbers += [name for kind, name, _ in self.engine if kind in _NUMBERED]
        return found | {"last_number": max(numbers)}

    def peers(self) -> dict[int, Plain]:
        """Returns each peer with its state, by session."""
        states = self.ours[STATE]
        found = self.ours[PEER].items()
        return {y: x | {"state": states[y]} for y, x in found if y in states}

    def spaces(self, engine: Plain) -> dict[str, Plain]:
        """Returns the lockspaces by name. One of two records of a lockspace is enough.

        It removes unknown lockspaces from the engine's data.
        """
        spaces = dict(self.ours[SPACE])
        configured = self.ours[CONFIG].get(0, {}).get("lockspaces", {})
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


def end_connection(fd: int) -> None:
    """Shuts a descriptor down if it is a connection."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        shut_down(sock)


def _value_of(kind: str, value: bytes) -> Any:
    """Returns the value of a record of the engine; decodes frequent kinds directly."""
    try:
        return _DECODERS.get(kind, _decode)(value)
    except msgspec.ValidationError:
        return _decode(value)  # `assemble` reports what is wrong with it


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
    if not (unsent or partial or state.unsent_apart or state.partial_apart):
        return state  # as almost always
    said, begun = state.unsent, state.connection["partial"]
    start = state.done - len(begun) - state.partial_apart
    said = apart.unsent.take_up(unsent, state.sent, state.unsent_apart) + said
    begun = apart.partial.take_up(partial, start, state.partial_apart) + begun
    connection = state.connection | {"partial": begun}
    return replace(state, unsent=said, connection=connection)


def _hashable(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name
