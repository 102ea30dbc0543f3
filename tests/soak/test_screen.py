"""Whether the soak says what is wrong, and nothing of what is not."""

from collections import Counter
from dataclasses import asdict, replace

import pytest

from soak.clients import own_place
from soak.meter import Phase, Sample
from soak.screen import Screen
from torture.board import EXCLUSIVE, Record
from torture.judge import Judge

USED = Sample(40, 30, 1, 33, 70, 3)
SECOND = 1_000_000_000


def phase(name: str, number: int, last: Sample = USED) -> Phase:
    return Phase(name, number * SECOND, (number + 1) * SECOND, last, USED, 0.1, 0.5)


def record(at: int, waited: int = 1_000_000) -> Record:
    place = own_place(0).number
    return Record(0, 0, place, EXCLUSIVE, 0, at, 0, at + waited, at + waited, 1, 0)


def screen(*, last: Sample = USED, waited: int = 1_000_000, grants: int = 3) -> Screen:
    """A screen on which all is well, but for what is said."""
    records = [
        record(n * SECOND, waited if n == 1 else 1_000_000) for n in range(grants)
    ]
    return Screen(
        seconds=1,
        is_p99_judged=True,
        phases=(phase("before", 0), phase("during", 1), phase("after", 2, last)),
        records=records,
        acts={"floods": Counter(acted=5)},
        restarts=0,
        defects=[],
        judge=Judge(),
    )


def test_nothing_is_wrong_where_all_is_as_before() -> None:
    assert screen().failures == []
    assert screen().text(9).endswith("Nothing is wrong.")


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("unit", 1.5 * 40 + 32),
        ("resident", 1.5 * 30 + 32),
        ("shared", 1.5 * 1 + 32),
        ("descriptors", 37),
        ("manager", 74),
        ("in_flight", 515),
    ],
)
def test_growth_is_wrong_from_its_bound_on(name: str, most: float) -> None:
    fields = asdict(USED)
    assert screen(last=Sample(**fields | {name: most})).failures == []
    grown = screen(last=Sample(**fields | {name: most + 1}))
    (said,) = grown.failures
    assert said.startswith("Growth: ")
    assert "GREW" in grown.text(9)


def test_memory_that_is_not_counted_cannot_grow() -> None:
    unknown = screen(last=replace(USED, unit=None))
    assert unknown.failures == []
    assert "not    counted       here" in unknown.text(9)


def test_restart_defect_and_violation_are_wrong() -> None:
    bad = screen()
    bad.restarts, bad.defects = 1, ["this is a defect of lockd"]
    bad.judge.say("overlap", "two at once")
    assert bad.failures == [
        "The service restarted 1 times.",
        "A defect: this is a defect of lockd",
        "overlap: 1 found.",
        "overlap: two at once",
    ]


def test_client_that_fails_by_itself_is_wrong() -> None:
    bad = screen()
    bad.acts["floods"]["failed"] += 2
    assert bad.failures == ["2 clients that misbehave ended by an error of theirs."]


def test_phase_without_grants_is_wrong() -> None:
    assert "The honest were granted nothing in one of the phases." in (
        screen(grants=2).failures
    )


def test_slow_grants_are_wrong_only_where_that_is_asked_for() -> None:
    slow = screen(waited=3_100_000)
    assert slow.failures == ["The honest waited 3.1 times as long under load."]
    slow.is_p99_judged = False
    assert slow.failures == []
    assert "not judged (x 3.1)" in slow.text(9)
