"""What the daemon said is kept until it is carried out."""

import pytest

from lockd.client.inbox import Inbox
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
