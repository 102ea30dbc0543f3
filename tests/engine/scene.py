"""The cast and the props of the engine's stories."""

from typing import Any

from lockd.engine.commands import (
    Acquire,
    AddLockspace,
    Convert,
    OpenSession,
    Owner,
    Release,
)
from lockd.engine.effects import (
    Effect,
    Grant,
    Granted,
    LastHolder,
    Queued,
    Refused,
)
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, Mode, ResourceKey

ALICE, BOB, CAROL, DAVE = 1, 2, 3, 4
CAST = {ALICE: "alice", BOB: "bob", CAROL: "carol", DAVE: "dave"}

DISK = ResourceKey("memory", "disk")
TAPE = ResourceKey("memory", "tape")
CARD = ResourceKey("memory", "card")
FILE = ResourceKey("files", "file")
OTHER_FILE = ResourceKey("files", "other")
GUARDED = ResourceKey("guarded", "image")


def owner(name: str, pid: int) -> Owner:
    return Owner(name, pid, 1000)


def new_engine() -> LockEngine:
    engine = LockEngine()
    engine.handle(AddLockspace("memory", anchored=False), now=0.0)
    engine.handle(AddLockspace("files", anchored=True), now=0.0)
    engine.handle(AddLockspace("guarded", False, on_disconnect="kill"), now=0.0)
    for session, name in CAST.items():
        engine.handle(OpenSession(session, owner(name, session)), now=0.0)
    return engine


def grant(
    key: ResourceKey,
    session: int,
    fencing_token: int,
    mode: Mode = EXCLUSIVE,
    since: float = 0.0,
    **more: Any,
) -> Grant:
    who = owner(CAST[session], session)
    return Grant(key, session, who, session, mode, fencing_token, since, **more)


def acquire(
    engine: LockEngine,
    session: int,
    request: int,
    *keys: ResourceKey,
    mode: Mode = EXCLUSIVE,
    timeout: float | None = None,
    now: float = 0.0,
    **more: Any,
) -> list[Effect]:
    command = Acquire(session, request, keys, mode, timeout, **more)
    return engine.handle(command, now=now)


def release(
    engine: LockEngine,
    session: int,
    request: int,
    *keys: ResourceKey,
    now: float = 0.0,
) -> list[Effect]:
    return engine.handle(Release(session, request, keys), now=now)


def convert(
    engine: LockEngine,
    session: int,
    request: int,
    key: ResourceKey,
    mode: Mode,
    timeout: float | None = None,
    now: float = 0.0,
) -> list[Effect]:
    return engine.handle(Convert(session, request, key, mode, timeout), now=now)


def granted(
    session: int,
    request: int,
    *grants: Grant,
    waited: float = 0.0,
    after: LastHolder | None = None,
) -> Granted:
    previous = () if after is None else (after,)
    return Granted(session, request, grants, waited, previous=previous)


def converted(session: int, request: int, grant: Grant, waited: float = 0.0) -> Granted:
    return Granted(session, request, (grant,), waited, converted=True)


def queued(
    session: int, request: int, *keys: ResourceKey, mode: Mode = EXCLUSIVE
) -> Queued:
    return Queued(session, request, keys, mode)


def refusal(effects: list[Effect]) -> Refused:
    """Returns the only effect, which must be a refusal."""
    (effect,) = effects
    assert isinstance(effect, Refused)
    return effect
