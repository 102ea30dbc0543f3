"""Requests that come again are not decoded again, and mean the same."""

from typing import Any

import msgpack
import pytest

from lockd.protocol.calls import MethodCall
from lockd.protocol.connection import Connection
from lockd.protocol.heard import LONGEST, MOST_REQUESTS, MOST_USERS, Heard


def packed(params: Any, method: str = "acquire", msgid: int = 7) -> bytes:
    data: bytes = msgpack.packb([0, msgid, method, [params]])
    return data


def meaning(message: bytes) -> MethodCall:
    (call,) = Connection().receive(message)
    return call


def same(call: MethodCall | None, other: MethodCall) -> bool:
    if call is None or call.method is not other.method:
        return False
    return (call.msgid, call.params) == (other.msgid, other.params)


def taught(*messages: bytes, user: int = 1) -> Heard:
    heard = Heard()
    for message in messages:
        heard.note(message, user, meaning(message))
    return heard


@pytest.mark.parametrize("msgid", [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1])
def test_a_request_is_known_by_all_but_its_msgid(msgid: int) -> None:
    heard = taught(packed({"resource": "disk"}))
    again = packed({"resource": "disk"}, msgid=msgid)
    assert same(heard.recall(again, 1), meaning(again))
    assert meaning(again).msgid == msgid


def test_a_number_that_is_longer_than_it_must_be_is_the_same_number() -> None:
    heard = taught(packed({"resource": "disk"}))
    long = b"\x94\x00\xce\x00\x00\x00\x07" + packed({"resource": "disk"})[3:]
    assert same(heard.recall(long, 1), meaning(long))


@pytest.mark.parametrize(
    "other",
    [
        packed({"resource": "disc"}),
        packed({"resource": "disk", "timeout": 0}),
        packed({"resource": "disk"}, "release"),
        packed({"resource": "disk"})[:-1],
        packed({"resource": "disk"}) + b"\x94",
        packed({"resource": "disk"})[3:],
        b"\x94\x00\xcf" + bytes(8) + packed({"resource": "disk"})[3:],
        b"\x94\x01\x07" + packed({"resource": "disk"})[3:],
        b"\x94\x00\xff" + packed({"resource": "disk"})[3:],
        b"\x94\x00",
        b"\x94\x00\xcd",
        b"",
    ],
)
def test_other_bytes_are_not_known(other: bytes) -> None:
    assert taught(packed({"resource": "disk"})).recall(other, 1) is None


def test_what_another_user_has_sent_is_not_known() -> None:
    heard = taught(packed({"resource": "disk"}))
    assert heard.recall(packed({"resource": "disk"}), 2) is None


def test_what_does_not_come_again_is_not_remembered() -> None:
    once = [
        packed({"fencing_token": 12}, "release"),
        packed({"resource": "disk"}, "query"),
        packed({"resource": "x" * LONGEST}),
    ]
    heard = taught(*once)
    assert [heard.recall(message, 1) for message in once] == [None, None, None]


def test_longest_request_is_remembered() -> None:
    one = packed(
        {"resource": "x" * (LONGEST - len(packed({"resource": "x" * 40})) + 40)}
    )
    assert len(one) == LONGEST
    assert same(taught(one).recall(one, 1), meaning(one))


def test_memory_is_bounded() -> None:
    requests = [packed({"resource": str(x)}) for x in range(MOST_REQUESTS + 1)]
    heard = taught(*requests)
    assert [x for x in requests if heard.recall(x, 1)] == requests[-1:]
    for user in range(2, MOST_USERS + 2):
        heard.note(requests[0], user, meaning(requests[0]))
    users = [x for x in range(1, MOST_USERS + 2) if heard.recall(requests[0], x)]
    assert users == [MOST_USERS + 1]


def test_conversations_of_a_user_share_what_was_heard() -> None:
    message = packed({"resource": "told to both"})
    (first,) = Connection(user=77).receive(message)
    (second,) = Connection(user=77).receive(message)
    assert second.params is first.params
    (third,) = Connection(user=78).receive(message)
    assert third.params == first.params
    assert third.params is not first.params


def test_what_follows_the_end_of_a_message_is_known() -> None:
    message = packed({"resource": "told in a batch"})
    connection = Connection(user=79)
    (first,) = connection.receive(message)
    assert not list(connection.receive(message[:5]))
    _, *calls = connection.receive(message[5:] + message + message)
    assert [call.params is first.params for call in calls] == [True, True]
