"""Who holds a resource: one strand, several, one again."""

import pytest

from engine.scene import ALICE, BOB, CAROL, DISK, grant
from lockd.engine.holding.holders import Holders
from lockd.engine.session import Strand
from lockd.terms import SHARED

FIRST, SECOND, THIRD = (Strand((1, number)) for number in (1, 2, 3))
GRANTS = {
    FIRST: grant(DISK, ALICE, 1, SHARED),
    SECOND: grant(DISK, BOB, 2, SHARED),
    THIRD: grant(DISK, CAROL, 3, SHARED),
}


def held_by(*strands: Strand) -> Holders:
    holders = Holders()
    for strand in strands:
        holders[strand] = GRANTS[strand]
    return holders


@pytest.mark.parametrize("strands", [(), (SECOND,), (SECOND, FIRST, THIRD)])
def test_holders_are_told_in_the_order_of_their_grants(
    strands: tuple[Strand, ...],
) -> None:
    holders = held_by(*strands)
    assert list(holders) == list(strands)
    assert len(holders) == len(strands)
    assert bool(holders) == bool(strands)
    assert list(holders.values()) == [GRANTS[x] for x in strands]
    assert list(holders.items()) == [(x, GRANTS[x]) for x in strands]
    assert holders.first == next((GRANTS[x] for x in strands), None)
    for strand in GRANTS:
        held = GRANTS[strand] if strand in strands else None
        assert holders.get(strand) == held
        assert (strand in holders) == (strand in strands)


@pytest.mark.parametrize("ends", [FIRST, SECOND, THIRD])
def test_holders_that_are_left_keep_their_order(ends: Strand) -> None:
    holders = held_by(*GRANTS)
    left = list(GRANTS)
    for strand in (ends, *(x for x in GRANTS if x is not ends)):
        del holders[strand]
        left.remove(strand)
        assert list(holders.items()) == [(x, GRANTS[x]) for x in left]
    assert not holders


@pytest.mark.parametrize("strands", [(FIRST,), (SECOND, FIRST)])
def test_grant_that_replaces_another_keeps_its_place(
    strands: tuple[Strand, ...],
) -> None:
    holders = held_by(*strands)
    holders[strands[0]] = again = GRANTS[strands[0]].replace(count=2)
    assert list(holders) == list(strands)
    assert holders[strands[0]] == holders.first == again


@pytest.mark.parametrize("strands", [(), (FIRST,), (FIRST, SECOND)])
def test_strand_that_holds_nothing_is_not_found(strands: tuple[Strand, ...]) -> None:
    holders = held_by(*strands)
    with pytest.raises(KeyError):
        holders[THIRD]
    with pytest.raises(KeyError):
        del holders[THIRD]
    assert list(holders) == list(strands)
