"""The numbers of the daemon's life go on in each next program."""

import pytest

from lockd.daemon.activity.life import Life


def test_no_number_is_given_twice_in_one_life() -> None:
    life = Life(5.0)
    given = [life.new_number() for _ in range(3)]
    life = Life(**life.dump())
    assert [*given, life.new_number()] == [1, 2, 3, 4]


def test_successor_begins_with_all_that_was_dumped() -> None:
    life = Life(5.0, last_number=7, upgrades=2, revivals=1)
    successor = Life(**life.dump())
    assert successor.dump() == life.dump()
    assert (successor.started, successor.upgrades, successor.revivals) == (5.0, 2, 1)


@pytest.mark.parametrize(("left_at", "took"), [(None, None), (10.0, 0.5)])
def test_pause_is_that_since_the_predecessor_left(
    left_at: float | None, took: float | None
) -> None:
    life = Life(5.0, left_at=left_at)
    life.serves(10.5)
    assert life.took_over == took
