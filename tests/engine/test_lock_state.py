"""What the state remembers and counts."""

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from engine.scene import ALICE, BOB, CAROL, DISK, TAPE, acquire, grant, release
from lockd.engine.commands import (
    BreakGrant,
    CloseSession,
    Command,
    EnterGrants,
    ReleaseForOwner,
)
from lockd.engine.effects import LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import MAX_LAST_HOLDERS
from lockd.engine.session import OwnerState
from lockd.terms import ResourceKey


def test_last_holder_is_remembered_with_how_it_ended(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    engine.handle(CloseSession(ALICE), now=7.0)
    assert engine.last_holders[DISK] == LastHolder(
        grant(DISK, ALICE, 1), 7.0, "disconnected"
    )


def test_memory_of_last_holders_is_bounded(engine: LockEngine) -> None:
    keys = [ResourceKey("memory", f"r{i}") for i in range(MAX_LAST_HOLDERS + 10)]
    for request, key in enumerate([*keys, keys[20]]):
        acquire(engine, ALICE, 2 * request, key)
        release(engine, ALICE, 2 * request + 1, key)
    remembered = list(engine.last_holders)
    assert len(remembered) == MAX_LAST_HOLDERS
    assert remembered[0] == keys[10]
    assert remembered[-1] == keys[20]


def test_counts_tell_what_happened(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK, timeout=0)
    acquire(engine, CAROL, 2, TAPE)
    release(engine, ALICE, 2, DISK)
    counts = (engine.granted, engine.refused, engine.ended, engine.held, engine.waiting)
    assert counts == (3, 1, 1, 2, 0)


class Unlisted(dict[int, OwnerState]):
    """Owners that are looked up, and never gone through."""

    def values(self) -> NoReturn:
        raise AssertionError

    items = values

    def __iter__(self) -> Iterator[int]:
        raise AssertionError


@pytest.mark.parametrize("token", [1, 2, 7])
@pytest.mark.parametrize(
    "command",
    [
        lambda token: ReleaseForOwner(BOB, 2, token),
        lambda token: BreakGrant(BOB, 2, token, "why"),
        lambda token: EnterGrants(BOB, (token, token + 1)),
    ],
    ids=["release", "break", "enter"],
)
def test_token_is_found_without_a_look_at_all_owners(
    command: Callable[[int], Command], token: int, engine: LockEngine
) -> None:
    # The first token is over, the second one is held, the third one is unknown.
    acquire(engine, ALICE, 1, DISK)
    release(engine, ALICE, 2, DISK)
    acquire(engine, ALICE, 3, TAPE)
    engine.state.owners = Unlisted(engine.state.owners)
    assert (engine.grant_of(token) is not None) == (token == 2)
    engine.handle(command(token), now=1.0)
    engine.handle(CloseSession(BOB), now=2.0)
    # The laws are checked for all owners.
    engine.state.owners = dict(dict.items(engine.state.owners))
