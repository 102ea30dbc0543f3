"""The door of the engine, and what other rooms read of it."""

import ast
from collections.abc import Iterator

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DISK,
    FILE,
    TAPE,
    acquire,
    grant,
    owner,
    release,
)
from lockd.engine.commands import (
    AnchorDelayed,
    AnchorOpened,
    CloseSession,
    RegisterOwner,
)
from lockd.engine.lock_engine import LockEngine
from lockd.terms import SHARED
from support.places import ROOT

SOURCE = ROOT / "src" / "lockd"


def reaches_in(tree: ast.AST) -> Iterator[str]:
    """Goes through the places that take hold of an engine's state or table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("state", "table"):
            of_what = ast.unparse(node.value)
            if of_what.rpartition(".")[2].lstrip("_") == "engine":
                yield f"{of_what}.{node.attr}"


@pytest.mark.parametrize("code", ["self._engine.state.held", "f(loaded.engine.table)"])
def test_reach_into_the_engine_is_found(code: str) -> None:
    assert [*reaches_in(ast.parse(code))]


def test_other_rooms_do_not_reach_into_the_engine() -> None:
    own = SOURCE / "engine"
    others = [x for x in SOURCE.rglob("*.py") if own not in x.parents]
    assert others
    found = {x.name: [*reaches_in(ast.parse(x.read_text()))] for x in others}
    assert not any(found.values()), found


def test_tokens_go_on_above_those_of_an_earlier_daemon() -> None:
    engine = LockEngine(last_token=41)
    assert repr(engine) == (
        "<LockEngine sessions=0 owners=0 resources=0 waiting=0 last_token=41>"
    )


def test_looking_perturbs_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    before = engine.situation(DISK)
    assert engine.situation(TAPE).holder_count == 0
    assert engine.holds(DISK, 1)
    assert not engine.holds(DISK, 2)
    assert not engine.holds(TAPE, 1)
    assert TAPE not in engine.resources
    assert engine.situation(DISK) == before


def test_looking_names_who_holds(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 2, TAPE)
    disk = (grant(DISK, ALICE, 1, SHARED), grant(DISK, BOB, 2, SHARED))
    assert engine.holders(DISK) == disk
    assert engine.holders(FILE) == ()
    assert engine.grants_of(BOB) == (disk[1], grant(TAPE, BOB, 3))
    assert [*engine.grants()] == [*disk, grant(TAPE, BOB, 3)]
    assert engine.grant_of(3) == grant(TAPE, BOB, 3)
    assert engine.grant_of(4) is None
    assert engine.holds(DISK, 2)
    assert not engine.holds(TAPE, 2)


def test_owner_of_a_session_is_for_whom_it_acts(engine: LockEngine) -> None:
    assert engine.owner_of(ALICE) == owner("alice", ALICE)
    guest = owner("guest", 700)
    engine.handle(RegisterOwner(ALICE, 1, 100, guest), now=0.0)
    assert engine.owner_of(ALICE) == guest


def test_announced_are_those_who_know_that_they_wait(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, FILE)
    assert [x.session.session_id for x in engine.announced()] == [BOB]
    engine.handle(AnchorDelayed(FILE), now=0.0)
    assert [x.session.session_id for x in engine.announced()] == [BOB, CAROL]


def test_anchor_is_needed_from_its_opening_to_its_close(engine: LockEngine) -> None:
    assert not engine.needs_anchor(FILE)
    acquire(engine, ALICE, 1, FILE)
    assert engine.needs_anchor(FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    assert engine.needs_anchor(FILE)
    release(engine, ALICE, 2, FILE)
    assert not engine.needs_anchor(FILE)
    acquire(engine, ALICE, 3, DISK)
    assert not engine.needs_anchor(DISK)


def test_anchor_is_opened_for_who_asked_until_it_gives_up(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    assert engine.opens_for(FILE) == ALICE
    engine.handle(CloseSession(ALICE), now=0.0)
    assert engine.opens_for(FILE) is None
    engine.handle(AnchorOpened(FILE), now=0.0)


def test_engine_says_how_much_is_in_it(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert repr(engine) == (
        "<LockEngine sessions=4 owners=4 resources=1 waiting=1 last_token=1>"
    )
    uid = engine.owner_of(ALICE).uid
    assert engine.held_by_user == engine.waiting_by_user == {uid: 1}
