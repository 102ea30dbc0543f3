"""What locks and requests say: counted for each user, to the byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scene import ALICE, BOB, DISK, FILE, TAPE, acquire, convert, release
from engine.snapshots import dump
from lockd.engine.commands import (
    Acquire,
    Cancel,
    CloseSession,
)
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.engine.usage import PLAIN, text_bytes
from lockd.terms import EXCLUSIVE, ResourceKey

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
names = st.lists(texts, min_size=1, max_size=4, unique=True)


def keys(*names: str) -> tuple[ResourceKey, ...]:
    return tuple(ResourceKey("memory", name) for name in names)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=PLAIN))
def test_what_need_not_be_told_does_not_count(name: str) -> None:
    assert text_bytes(keys(name), None, None) == 0


@given(names, st.none() | texts, st.none() | texts)
def test_locks_of_a_request_count_no_more_than_the_request(
    names: list[str], label: str | None, reason: str | None
) -> None:
    of_locks = sum(text_bytes(keys(name), label, reason) for name in names)
    assert of_locks <= text_bytes(keys(*names), label, reason)


@pytest.mark.parametrize(
    ("names", "label", "reason", "size"),
    [
        (["a"], "ab", "cde", 5),
        (["a"], "ö", None, 2),
        (["a", "bc"], "ab", "c", 3 + 2 * 3),
        (["a", "bc"], None, None, 3),
        (["n" * 255], None, None, 0),
        (["n" * 256], None, None, 256),
        (["𝄞" * 64], "", "r", 256 + 1),
    ],
)
def test_bytes_count_of_label_and_reason_and_of_names_that_are_long_or_several(
    names: list[str], label: str | None, reason: str | None, size: int
) -> None:
    assert text_bytes(keys(*names), label, reason) == size


LONG = ResourceKey("memory", "/" + "n" * 299)


def test_lock_counts_until_it_is_released(engine: LockEngine) -> None:
    uid = engine.owners[ALICE].identity.uid
    engine.handle(Acquire(ALICE, 1, (DISK,), EXCLUSIVE, label="abc"), now=0.0)
    acquire(engine, ALICE, 2, LONG)
    assert engine.text_by_user == {uid: 303}
    release(engine, ALICE, 3, LONG)
    assert engine.text_by_user == {uid: 3}
    engine.handle(CloseSession(ALICE), now=0.0)
    assert engine.text_by_user == {}


def test_request_counts_until_it_is_answered(engine: LockEngine) -> None:
    uid = engine.owners[BOB].identity.uid
    acquire(engine, ALICE, 1, DISK)
    waits = Acquire(BOB, 1, (DISK, TAPE), EXCLUSIVE, label="l", reason="why")
    engine.handle(waits, now=0.0)
    names = len(DISK.resource) + len(TAPE.resource)
    assert engine.text_by_user == {uid: names + 2 * 4}
    engine.handle(Cancel(BOB, 2, 1), now=0.0)
    assert engine.text_by_user == {}
    engine.handle(waits, now=0.0)
    release(engine, ALICE, 2, DISK)
    assert engine.text_by_user == {uid: 2 * 4}


def test_convert_says_nothing_new(engine: LockEngine) -> None:
    uid = engine.owners[ALICE].identity.uid
    acquire(engine, ALICE, 1, LONG, mode="shared")
    acquire(engine, BOB, 1, LONG, mode="shared")
    before = dict(engine.text_by_user)
    convert(engine, ALICE, 2, LONG, EXCLUSIVE)
    assert engine.waiting == 1
    assert engine.text_by_user == before
    assert before[uid] >= 300


def test_whatever_is_loaded_counts_as_before(engine: LockEngine) -> None:
    said = (None, None, "ö", "why")
    engine.handle(Acquire(ALICE, 1, (DISK,), EXCLUSIVE, *said), now=0.0)
    acquire(engine, ALICE, 2, LONG)
    engine.handle(Acquire(BOB, 1, (DISK, TAPE), EXCLUSIVE, *said), now=0.0)
    engine.handle(Acquire(BOB, 2, (FILE,), EXCLUSIVE, *said), now=0.0)
    before = dict(engine.text_by_user)
    for data in (dump(engine), records.assemble(records.everything(engine))):
        loaded = snapshot.load(data).engine
        check(loaded)
        assert loaded.text_by_user == before
