"""What the daemon said is kept until it is carried out."""

from typing import Any

import pytest

from lockd.client.grants import Hold
from lockd.client.inbox import Inbox, News
from lockd.errors import ConnectionLostError


def test_inbox_keeps_the_order_and_nothing_twice() -> None:
    inbox = Inbox()
    assert not inbox.done
    for number in (1, 1, 2, 1, 4):
        inbox.put(f"item {number}", number)
    assert [inbox.take() for _ in range(3)] == ["item 1", "item 2", "item 4"]
    assert not inbox.done
    with pytest.raises(IndexError):
        inbox.take()


def test_inbox_that_ended_can_be_emptied() -> None:
    inbox = Inbox()
    inbox.put("item", 1)
    inbox.end(ConnectionLostError("over"))
    assert inbox.take() == "item"
    with pytest.raises(ConnectionLostError):
        inbox.take()


def test_inbox_wakes_its_reader() -> None:
    inbox = Inbox()
    woken: list[bool] = []
    inbox.wake_with(lambda: woken.append(inbox.done))
    inbox.put("item", 1)
    inbox.end(ConnectionLostError("over"))
    assert woken == [True, True]


def hold(token: int) -> Hold:
    shape = {"lockspace": "default", "resource": "x", "mode": "exclusive"}
    return Hold(shape | {"fencing_token": token})


def test_news_that_nobody_takes_do_not_pile_up() -> None:
    shown: list[int] = []

    def show(hold: Hold) -> Any:
        shown.append(hold.fencing_token)

    news = News(show)
    kept = hold(0)
    news.put_hold(kept)
    for token in range(1, 10_000):
        changed = hold(token)
        news.put_hold(changed)
        changed.end()
    assert len(news) < 200
    # What is still held is not lost with them.
    news.take()
    assert shown == [0]
