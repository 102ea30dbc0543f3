"""The records of an engine: kept as a daemon keeps them, damaged, and mended."""

from random import Random
from typing import Any

import msgspec.msgpack

from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    FILE,
    GUARDED,
    TAPE,
    acquire,
    convert,
    release,
)
from engine.snapshots import dump
from lockd.engine import commands as c
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.engine.recovery.records import Record
from lockd.engine.recovery.shapes import Loaded
from lockd.terms import EXCLUSIVE, SHARED

Plain = dict[str, Any]


class Ledger:
    """Follows an engine by its changes, all as bytes; compares after every command."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        #: What each record was before, None where there was none.
        self.before: dict[bytes, list[bytes | None]] = {}

    def begin(self, engine: LockEngine) -> None:
        """Takes down everything."""
        records.follow(engine)
        self.values = {}
        self._write(records.everything(engine))

    def follow(self, engine: LockEngine) -> None:
        """Takes down what changed; now the records say what the engine knows."""
        self._write(records.changes(engine))
        assert records.changes(engine) == []
        loaded = self.recover()
        assert loaded.problems == []
        said, known = dump(loaded.engine), dump(engine)
        assert said == known or _sorted(said) == _sorted(known)

    def recover(self) -> Loaded:
        """Loads what the records say."""
        return snapshot.load(records.assemble(_decoded(self.values)))

    def damage(self, share: int, seed: int) -> str:
        """Loses a share of the records, in tenths, or puts old ones in their places.

        The laws hold again when those are ended whom it concerns.
        """
        random, values = Random(seed), dict(self.values)
        is_old = seed % 2 == 0
        for key, earlier in self.before.items() if is_old else ():
            old = random.choice(earlier) if random.random() * 10 < share else None
            if old is not None:
                values[key] = old
        for key in list(values):
            if random.random() * 10 < share:
                del values[key]
        self._load_damaged(values, ["some are old"] if is_old else [])
        for key in self.values:
            # Who converts what it has lost is rare where much else is lost, too.
            if msgspec.msgpack.decode(key)[0] == "grant":
                others = {x: value for x, value in self.values.items() if x != key}
                self._load_damaged(others, [])
        return "loaded old records" if is_old else "loaded without some records"

    def _load_damaged(self, values: dict[bytes, bytes], problems: list[str]) -> None:
        loaded = snapshot.load(records.assemble(_decoded(values), problems))
        end_what_is_damaged(loaded)
        check(loaded.engine)

    def _write(self, changes: list[records.Record]) -> None:
        for kind, name, value in changes:
            key = _encode((kind, name))
            self.before.setdefault(key, []).append(self.values.get(key))
            if value is None:
                # What came and went at once was perhaps never there.
                self.values.pop(key, None)
            elif kind == "last":
                self.values[key] = _encode(records.last_record(value))
            else:
                self.values[key] = _encode(value)


def end_what_is_damaged(loaded: Loaded) -> None:
    """Ends what is damaged, as whoever loads has to."""
    engine = loaded.engine
    for session in loaded.damaged:
        if session in engine.sessions:
            engine.handle(c.CloseSession(session), now=0.0)
    for owner_id in loaded.orphans:
        if owner_id in engine.owners:
            engine.handle(c.DisconnectOwner(owner_id), now=0.0)


def _encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def _decoded(values: dict[bytes, bytes]) -> list[records.Record]:
    decode = msgspec.msgpack.decode
    return [(*decode(key), decode(value)) for key, value in values.items()]


def _sorted(data: Plain) -> Plain:
    """Puts in one order what may stand in any."""
    order: Plain = {
        "lockspaces": lambda x: x["name"],
        "owners": lambda x: x["owner_id"],
        "sessions": lambda x: x[0],
    }
    return data | {name: sorted(data[name], key=key) for name, key in order.items()}


def busy(engine: LockEngine) -> None:
    """Holders, waiters, a convert, a request for several, an anchor being opened."""
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, CAROL, 2, DISK)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    acquire(engine, BOB, 3, TAPE)
    acquire(engine, BOB, 4, FILE)
    acquire(engine, DAVE, 1, GUARDED)
    release(engine, DAVE, 2, GUARDED)
    acquire(engine, DAVE, 3, GUARDED)
    check(engine)


def decoded(engine: LockEngine) -> list[Record]:
    """Returns all records as they are read again."""
    return [
        tuple(msgspec.msgpack.decode(msgspec.msgpack.encode(record)))
        for record in records.everything(engine)
    ]


def mended(records_left: list[Record], *problems: str) -> Loaded:
    loaded = snapshot.load(records.assemble(records_left, problems))
    end_what_is_damaged(loaded)
    check(loaded.engine)
    return loaded


def spoiled(value: Any) -> list[Any]:
    """Returns what a value may have become."""
    if isinstance(value, dict):
        changed = [value | {name: [[]]} for name in value]
        missing = [{k: v for k, v in value.items() if k != name} for name in value]
        return [7, *changed, *missing]
    return [7, value[:-1], [*value[:-1], {}], [{}, *value[1:]]]


def without(engine: LockEngine, kind: str, name: Any) -> list[Record]:
    """Returns all records but one."""
    whole = decoded(engine)
    left = [record for record in whole if (record[0], record[1]) != (kind, name)]
    assert len(left) == len(whole) - 1
    return left
