"""The deadlines of incomplete messages: one of each message, whatever comes of it."""

from math import inf
from typing import Any, cast

import msgpack
import pytest

from lockd.daemon.clients.half_messages import HalfMessages, completes
from lockd.daemon.clients.peer import Peer
from lockd.protocol.connection import Connection

MESSAGE = msgpack.packb([0, 1, "statistics", [{}]])


class Talk:
    """A peer of which only the conversation counts."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.has_more = False
        self.arrived: list[bytes] = []

    def hear(self, data: bytes) -> None:
        list(self.connection.receive(data))

    def read(self, _: Any = None) -> None:
        if self.arrived:
            self.hear(self.arrived.pop(0))

    @property
    def peer(self) -> Peer:
        return cast("Peer", self)


@pytest.mark.interpreted
def test_deadline_is_of_the_message_and_not_of_its_last_bytes() -> None:
    halves, talk = HalfMessages(), Talk()
    talk.hear(MESSAGE[:3])
    halves.look(talk.peer, 10.0)
    talk.hear(MESSAGE[3:5])
    halves.look(talk.peer, 15.0)
    assert halves.next_deadline == 10.0
    talk.hear(MESSAGE[5:] + MESSAGE[:1])
    halves.look(talk.peer, 17.0)
    assert halves.next_deadline == 17.0
    talk.hear(MESSAGE[1:])
    halves.look(talk.peer, 20.0)
    assert halves.next_deadline == inf
    assert talk.peer not in halves


@pytest.mark.interpreted
def test_late_ones_are_told_once_the_earliest_first() -> None:
    halves, talks = HalfMessages(), [Talk() for _ in range(3)]
    for number, talk in enumerate(talks):
        talk.hear(MESSAGE[:3])
        halves.look(talk.peer, 10.0 + number)
    assert list(halves.overdue(9.0)) == []
    assert list(halves.overdue(11.0)) == [(talk.peer, 0) for talk in talks[:2]]
    halves.put_off(talks[0].peer, 0, 20.0)
    halves.forget(talks[2].peer)
    assert list(halves.overdue(30.0)) == [(talks[0].peer, 0)]


@pytest.mark.interpreted
def test_all_that_has_arrived_is_read_before_a_message_is_incomplete() -> None:
    for pieces, complete in (
        ([], False),
        ([MESSAGE[3:5]], False),
        ([MESSAGE[3:5], MESSAGE[5:6]], False),
        ([MESSAGE[3:5], MESSAGE[5:]], True),
        ([MESSAGE[3:] + MESSAGE[:3]], True),
    ):
        talk = Talk()
        talk.hear(MESSAGE[:3])
        talk.arrived = pieces
        assert completes(talk.peer, 0, talk.read) == complete
        assert talk.arrived == []
