import os
import select
import time
from collections.abc import Iterator
from functools import partial

import pytest

from lockd.daemon.system.poller import Poller


@pytest.fixture
def poller() -> Iterator[Poller]:
    found = Poller()
    yield found
    found.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_action_hears_what_came(poller: Poller, pipe: tuple[int, int]) -> None:
    came: list[int] = []
    poller.watch(pipe[0], select.EPOLLIN, came.append)
    assert not poller.act()
    os.write(pipe[1], b"x")
    assert select.select([poller.fileno()], [], [], 0)[0]
    assert poller.act()
    assert came == [select.EPOLLIN]


def test_it_knows_since_when_it_is_awake(poller: Poller, pipe: tuple[int, int]) -> None:
    poller.watch(pipe[1], select.EPOLLOUT, lambda events: None)
    start = time.monotonic()
    poller.stay_awake()
    assert start <= (stayed := poller.woke) <= time.monotonic()
    poller.act(0)
    assert poller.woke == stayed
    poller.act(1)
    assert stayed < poller.woke <= time.monotonic()


def test_other_events_may_be_wanted(poller: Poller, pipe: tuple[int, int]) -> None:
    came: list[int] = []
    poller.watch(pipe[1], select.EPOLLIN, came.append)
    assert not poller.act()
    poller.change(pipe[1], select.EPOLLOUT)
    assert poller.act()
    assert came == [select.EPOLLOUT]


def test_what_is_no_longer_watched_is_silent(
    poller: Poller, pipe: tuple[int, int]
) -> None:
    poller.watch(pipe[1], select.EPOLLOUT, lambda events: pytest.fail("called"))
    poller.unwatch(pipe[1])
    poller.unwatch(pipe[1])
    assert not poller.act()


def test_action_may_take_away_another_of_the_same_round(poller: Poller) -> None:
    first, second = os.pipe(), os.pipe()
    called: list[int] = []

    def act(own: int, other: int, events: int) -> None:
        called.append(own)
        poller.unwatch(other)

    ends = (first[1], second[1])
    for own, other in (ends, ends[::-1]):
        poller.watch(own, select.EPOLLOUT, partial(act, own, other))
    assert poller.act()
    assert len(called) == 1
    for end in (*first, *second):
        os.close(end)
