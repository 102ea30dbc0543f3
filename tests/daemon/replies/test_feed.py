"""What happened reaches everybody who watches, once, in order; nobody is in the way."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.shares import Shares
from lockd.daemon.replies.feed import AT_ONCE, Feed, Told
from support.wire_client import WireClient

MOST = 500


class Watcher:
    """As much of a peer as a feed knows."""

    def __init__(self, uid: int) -> None:
        self.user = uid
        self.heard: list[int] = []

    def as_peer(self) -> Peer:
        return cast("Peer", self)


class Time:
    """The turns of users that have time for so many more calls."""

    def __init__(self, left: int) -> None:
        self.left = left

    def has_time(self, uid: int) -> bool:
        self.left -= 1
        return self.left >= 0

    def as_shares(self) -> Shares:
        return cast("Shares", self)


def tell(peer: Peer, events: Iterable[Told]) -> None:
    watcher = cast("Any", peer)
    for _, message in events:
        _, _, (event,) = msgpack.unpackb(message)
        watcher.heard.append(event["number"])


def event(number: int) -> dict[str, object]:
    return {"lockspace": "default", "number": number}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("happens"), st.integers(1, 5)),
        st.tuples(st.just("comes"), st.integers(1, 3)),
        st.tuples(st.just("leaves"), st.integers(0, 9)),
        st.tuples(st.just("tells"), st.integers(0, 30)),
    ),
    max_size=60,
)


@pytest.mark.interpreted
@given(steps=steps)
def test_everybody_hears_all_in_order_or_is_told_to_have_missed_some(
    steps: list[tuple[str, int]],
) -> None:
    feed, end = Feed(), 0
    since: dict[Watcher, int] = {}
    for what, number in steps:
        if what == "happens":
            for _ in range(number):
                feed.append(event(end))
                end += 1
        elif what == "comes":
            watcher = Watcher(number)
            since[watcher] = end
            feed.add(watcher.as_peer())
        elif what == "leaves" and since:
            gone = list(since)[number % len(since)]
            del since[gone]
            feed.remove(gone.as_peer())
        elif what == "tells":
            feed.tell(Time(number).as_shares(), tell)
            for missed in cast("list[Any]", feed.forget(MOST)):
                del since[missed]
                feed.remove(missed)
        for watcher, first in since.items():
            assert watcher.heard == list(range(first, first + len(watcher.heard)))
    feed.tell_all(tell)
    assert not list(feed.behind())
    for watcher, first in since.items():
        assert watcher.heard == list(range(first, end))
    assert feed.forget(MOST) == []
    assert feed.is_watched == bool(since)


@pytest.mark.interpreted
def test_few_watchers_of_each_user_are_told_in_a_turn_and_each_has_its_own() -> None:
    feed = Feed()
    watchers = [Watcher(uid) for uid in (1, 2) for _ in range(3 * AT_ONCE)]
    for watcher in watchers:
        feed.add(watcher.as_peer())
    feed.append(event(0))
    for turn in (1, 2, 3):
        assert set(feed.behind()) == {1, 2}
        feed.tell(Time(1_000).as_shares(), tell)
        for uid in (1, 2):
            told = [x for x in watchers if x.user == uid and x.heard]
            assert len(told) == turn * AT_ONCE
    assert not list(feed.behind())


@pytest.mark.interpreted
def test_few_watchers_are_told_at_once_whatever_time_their_user_has() -> None:
    """So it is recorded with what it tells of, and survives a kill with that."""
    feed = Feed()
    few = [Watcher(1) for _ in range(AT_ONCE)]
    many = [Watcher(2) for _ in range(AT_ONCE + 1)]
    for watcher in (*few, *many):
        feed.add(watcher.as_peer())
    feed.append(event(0))
    feed.tell(Time(0).as_shares(), tell)
    assert all(watcher.heard == [0] for watcher in few)
    assert not any(watcher.heard for watcher in many)


@pytest.mark.interpreted
def test_what_waits_for_who_is_behind_is_bounded_and_kept_once() -> None:
    feed = Feed()
    slow, quick = Watcher(1), Watcher(2)
    for watcher in (slow, quick):
        feed.add(watcher.as_peer())
    number = 0
    while not (missed := feed.forget(MOST)):
        feed.append(event(number))
        number += 1
        feed.remove(quick.as_peer())
        feed.add(quick.as_peer())
    assert missed == [slow.as_peer()]
    assert (number - 1) * len(msgpack.packb([2, "event", [event(0)]])) <= MOST


def test_crowd_of_one_user_hears_everything(
    connect: Callable[[], WireClient], client: WireClient
) -> None:
    crowd = [connect() for _ in range(3 * AT_ONCE + 1)]
    for watcher in crowd:
        watcher.call("watch")
    tokens = []
    for _ in range(20):
        tokens.append(client.acquire("a")["fencing_token"])
        client.call("release", resource="a")
    for watcher in crowd:
        heard = [watcher.notification("event") for _ in range(40)]
        granted = [x["fencing_token"] for x in heard if x["event"] == "granted"]
        assert granted == tokens
