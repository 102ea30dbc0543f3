"""Plain requests: nobody can tell by which way a request was decoded."""

from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.errors import ProtocolError
from lockd.protocol.codec import (
    MAX_ARRAY_ELEMENTS,
    MAX_MAP_ENTRIES,
    MAX_TEXT_BYTES,
    Encoder,
)
from lockd.protocol.connection import Connection
from lockd.protocol.methods import METHODS
from lockd.protocol.plain import messages, notification, plain_request, response


def request(params: Any, method: Any = "acquire", msgid: Any = 7) -> bytes:
    packed: bytes = msgpack.packb([0, msgid, method, [params]])
    return packed


def plain(data: bytes) -> list[tuple[int, Any]]:
    """Returns the sizes and the requests with which bytes begin."""
    found = []
    for message in [*messages(data)] or [data]:
        request = plain_request(message, MAX_TEXT_BYTES)
        if request is None:
            break
        found.append((len(message), request))
    return found


ACQUIRE = request({"resource": "disk", "timeout": 1.5, "mode": "shared"})
RELEASE = request({"resources": ["a", "ü"], "lockspace": None}, "release", 2**32 - 1)
NESTED = request({"owner": {"name": "x", "pid": 1}}, "register")

OTHERS = {
    "a map in a map": NESTED,
    "a key twice": b"\x94\x00\x07\xa7acquire\x91\x82\xa1a\x01\xa1a\x01",
    "a long number": b"\x94\x00\xcd\x00\x07\xa7acquire\x91\x80",
    "a long map": b"\x94\x00\x07\xa7acquire\x91\xde\x00\x00",
    "a bin": request({"resource": b"disk"}),
    "a method that is bin": request({}, b"acquire"),
    "a key that is no text": request({1: 1}),
    "an extension": request({"resource": msgpack.ExtType(3, b"x")}),
    "a time": request({"resource": msgpack.Timestamp(1)}),
    "an array of numbers": request({"resources": [1]}),
    "a text that is not UTF-8": b"\x94\x00\x07\xa7acquire\x91\x81\xa8resource\xa1\xff",
    "a msgid beyond 32 bits": request({}, msgid=2**32),
    "a negative msgid": request({}, msgid=-1),
    "no map": msgpack.packb([0, 7, "acquire", []]),
    "two maps": msgpack.packb([0, 7, "acquire", [{}, {}]]),
    "a notification": msgpack.packb([2, "acquire", [{}]]),
    "an answer": msgpack.packb([1, 7, None, None]),
    "too many entries": request({str(n): n for n in range(MAX_MAP_ENTRIES + 1)}),
    "a long array": request({"resources": ["x"] * (MAX_ARRAY_ELEMENTS + 1)}),
    "a long text": request({"resource": "x" * (MAX_TEXT_BYTES + 1)}),
    "half a message": ACQUIRE[:-1],
    "garbage": b"\xc1",
}


def test_request_is_a_tuple() -> None:
    given = {"resource": "disk", "timeout": 1.5, "mode": "shared"}
    assert plain(ACQUIRE) == [(len(ACQUIRE), (0, 7, "acquire", (given,)))]


def test_requests_come_with_their_sizes() -> None:
    sizes = [size for size, _ in plain(ACQUIRE + RELEASE + ACQUIRE)]
    assert sizes == [len(ACQUIRE), len(RELEASE), len(ACQUIRE)]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_messages_are_not_plain(other: bytes) -> None:
    assert plain(other) == []


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_message_ends_the_plain_ones(other: bytes) -> None:
    assert [size for size, _ in plain(ACQUIRE + other + ACQUIRE)] == [len(ACQUIRE)]


def test_longest_request() -> None:
    assert plain_request(ACQUIRE, len(ACQUIRE))
    assert not plain_request(ACQUIRE, len(ACQUIRE) - 1)


def heard(parts: Iterable[bytes], user: int | None = None) -> tuple[Any, ...]:
    """Returns all that one can know of a conversation after it got some bytes."""
    connection = Connection(max_message_bytes=20_000, user=user)
    connection.greet()
    told: list[Any] = []
    try:
        for part in parts:
            for call in connection.receive(part):
                told.append((call.msgid, call.method.name, call.params))
                told.append((connection.begun_at, connection.data_to_send()))
    except ProtocolError as error:
        told.append(error.message)
    return told, connection.data_to_send(), connection.dump(), connection.begun_at


TEXTS = st.text(max_size=4) | st.sampled_from(["acquire", "default", "x" * 20_001])
SCALARS = st.none() | st.booleans() | st.integers(-3, 2**64 - 1) | st.floats()
NAMES = st.sampled_from(["resource", "resources", "lockspace", "timeout", "owner"])
VALUES = st.recursive(
    SCALARS | TEXTS | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner),
    max_leaves=5,
)
PARAMS = st.dictionaries(NAMES | TEXTS, VALUES, max_size=4)
REQUESTS = st.tuples(
    st.just(0), st.integers(-1, 2**33), st.sampled_from([*METHODS]) | TEXTS, PARAMS
).map(lambda x: msgpack.packb([*x[:3], [x[3]]]))
MESSAGES = (
    REQUESTS
    | REQUESTS
    | st.sampled_from([ACQUIRE, RELEASE, *OTHERS.values()])
    | VALUES.map(msgpack.packb)
    | st.binary(max_size=6)
)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=5).map(b"".join))
def test_nobody_can_tell_which_way_was_taken(data: bytes) -> None:
    # Half a message is for the other way, with all that follows it.
    assert heard([data]) == heard([data[:1], data[1:]])
    # Of what is heard again, the second conversation has remembered some.
    assert heard([data]) == heard([data], user=1) == heard([data], user=1)


@given(VALUES | st.text(st.characters(exclude_categories=())))
def test_answers_are_what_msgpack_makes_of_them(value: Any) -> None:
    slow = Encoder()
    try:
        expected = slow.response(7, None, value)
    except (OverflowError, UnicodeEncodeError) as error:
        with pytest.raises(type(error)):
            response(7, None, value)
    else:
        assert response(7, None, value) == expected
        assert notification("event", {"x": value}) == slow.notification(
            "event", {"x": value}
        )
    assert response(7, None, "\udcff") == slow.response(7, None, "\udcff")
