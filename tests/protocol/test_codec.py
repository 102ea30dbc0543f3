import itertools
import random
from itertools import pairwise

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockd.errors import ProtocolError
from lockd.protocol import codec
from lockd.protocol.codec import (
    MAX_ARRAY_ELEMENTS,
    MAX_MAP_ENTRIES,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    MAX_TEXT_BYTES,
    MOST_IDLE,
    BadMap,
    Decoder,
    Encoder,
    nesting,
)

REQUEST = [0, 7, "query", [{"resource": "a"}]]


def decoded(*pieces: bytes) -> tuple[list[str], bool]:
    """Returns the messages in some pieces, and whether the stream is still good."""
    decoder = Decoder()
    messages: list[str] = []
    try:
        for piece in pieces:
            messages.extend(map(repr, decoder.receive(piece)))
    except ProtocolError:
        return messages, False
    return messages, True


def test_message_is_what_was_packed() -> None:
    assert list(Decoder().receive(msgpack.packb(REQUEST))) == [REQUEST]


def test_message_comes_with_its_last_byte_and_not_before() -> None:
    decoder, data = Decoder(), msgpack.packb(REQUEST)
    for byte in data[:-1]:
        assert list(decoder.receive(bytes([byte]))) == []
    assert list(decoder.receive(data[-1:])) == [REQUEST]


def test_several_messages_in_one_piece_come_in_order() -> None:
    data = b"".join(msgpack.packb([0, n, "query", []]) for n in range(5))
    assert [message[1] for message in Decoder().receive(data)] == [0, 1, 2, 3, 4]


def test_text_that_is_not_utf8_survives_a_round_trip() -> None:
    (message,) = Decoder().receive(b"\x91\xa2\xff\xfe")
    assert message == ["\udcff\udcfe"]
    assert Encoder().request(1, "m", {"x": message[0]}).endswith(b"\xa2\xff\xfe")


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # {"a": 1, "a": 2}
        b"\x81\x90\x01",  # {[]: 1}
        b"\x81\x80\x01",  # {{}: 1}
    ],
)
def test_map_whose_keys_cannot_be_told_apart_is_stood_for(data: bytes) -> None:
    (message,) = Decoder().receive(b"\x91" + data)
    assert isinstance(message[0], BadMap)
    assert "twice, or is no text" in repr(message[0])


@pytest.mark.parametrize(
    "good",
    [
        b"\x00" * 3,
        msgpack.packb(["x" * (MAX_TEXT_BYTES)] * 3),
        msgpack.packb([b"x" * MAX_TEXT_BYTES]),
        msgpack.packb([0] * MAX_ARRAY_ELEMENTS),
        msgpack.packb({str(n): 0 for n in range(MAX_MAP_ENTRIES)}),
    ],
)
def test_message_at_a_limit_is_decoded(good: bytes) -> None:
    messages, is_good = decoded(good)
    assert messages
    assert is_good


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"\xc1", "not MessagePack"),
        (msgpack.packb("x" * (MAX_TEXT_BYTES + 1)), "max_str_len"),
        (msgpack.packb(b"x" * (MAX_TEXT_BYTES + 1)), "max_bin_len"),
        (msgpack.packb([0] * (MAX_ARRAY_ELEMENTS + 1)), "max_array_len"),
        (msgpack.packb(dict.fromkeys(range(MAX_MAP_ENTRIES + 1), 0)), "max_map_len"),
        (b"\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "max_map_len"),
        (b"\xdb\xff\xff\xff\xff" + b"x" * MAX_MESSAGE_BYTES, "longer than 65536"),
        (b"\xc6\xff\xff\xff\xff" + b"x" * MAX_MESSAGE_BYTES, "longer than 65536"),
        (b"\xc9\xff\xff\xff\xff\x01", "max_ext_len"),
        (b"\xc7\x00\x05", "extension type, 5"),
        (b"\xc7\x00\xff", "not MessagePack"),
        (b"\xd4\x05\x00", "max_ext_len"),
        (b"\xd6\xff\x00\x00\x00\x00", "max_ext_len"),
        (b"\x91" * 5_000, "not MessagePack"),
        (msgpack.packb(["x" * MAX_TEXT_BYTES] * 4), "longer than 65536 bytes"),
    ],
)
def test_bytes_beyond_a_limit_end_the_stream_and_say_why(bad: bytes, why: str) -> None:
    came: list[object] = []
    with pytest.raises(ProtocolError, match=why):
        came.extend(Decoder().receive(msgpack.packb(REQUEST) + bad))
    assert came[0] == REQUEST, "what came before the bad bytes was lost"


def test_message_that_does_not_end_is_cut_off_at_the_limit() -> None:
    decoder = Decoder()
    start = b"\xdc\x00\x08" + msgpack.packb("x" * MAX_TEXT_BYTES) * 3
    assert list(decoder.receive(start)) == []
    room = MAX_MESSAGE_BYTES - len(start)
    assert list(decoder.receive(b"\xda\x40\x00" + b"x" * (room - 3))) == []
    with pytest.raises(ProtocolError, match="longer than 65536"):
        list(decoder.receive(b"x"))


def test_limit_counts_each_message_for_itself() -> None:
    piece = msgpack.packb(["x" * MAX_TEXT_BYTES] * 3)
    messages, is_good = decoded(piece * 10)
    assert len(messages) == 10
    assert is_good


def test_streams_do_not_mix_wherever_they_are_cut() -> None:
    chance = random.Random(1)
    messages = [
        [[0, n, "m" * n, [{"a": stream}]] for n in range(40)] for stream in range(5)
    ]
    streams = [b"".join(map(msgpack.packb, x)) for x in messages]
    decoders = [Decoder() for _ in streams]
    places = [0] * len(streams)
    came: list[list[object]] = [[] for _ in streams]
    while any(place < len(x) for place, x in zip(places, streams, strict=True)):
        n = chance.randrange(len(streams))
        cut = places[n] + chance.randrange(60)
        waiting = decoders[n].receive(streams[n][places[n] : cut])
        # Somebody else's message comes before the rest of this one's is looked at.
        came[n] += itertools.islice(waiting, 1)
        assert list(Decoder().receive(msgpack.packb(REQUEST))) == [REQUEST]
        came[n] += waiting
        places[n] = min(cut, len(streams[n]))
        whole = b"".join(map(msgpack.packb, came[n]))
        assert decoders[n].begun_at == len(whole)
        assert decoders[n].partial == streams[n][len(whole) : places[n]]
    assert came == messages


def test_stream_that_is_lost_harms_no_other() -> None:
    for _ in range(3):
        with pytest.raises(ProtocolError):
            list(Decoder().receive(b"\x91\xc1"))
        assert list(Decoder().receive(msgpack.packb(REQUEST))) == [REQUEST]


def test_other_side_may_allow_longer_messages() -> None:
    long = msgpack.packb(["x" * MAX_TEXT_BYTES] * 5)
    assert len(list(Decoder(max_message_bytes=len(long)).receive(long))) == 1
    with pytest.raises(ProtocolError):
        list(Decoder(max_message_bytes=len(long) - 1).receive(long))


def test_other_side_may_allow_longer_texts() -> None:
    text = "x" * (MAX_TEXT_BYTES + 1)
    decoder = Decoder(max_text_bytes=len(text))
    assert list(decoder.receive(msgpack.packb([text]))) == [[text]]
    with pytest.raises(ProtocolError):
        list(decoder.receive(msgpack.packb([text + "x"])))
    with pytest.raises(ProtocolError):
        list(Decoder().receive(msgpack.packb([text])))


def test_encoder_writes_the_three_shapes() -> None:
    encoder = Encoder()
    unpack = msgpack.unpackb
    assert unpack(encoder.request(1, "m", {"a": 1})) == [0, 1, "m", [{"a": 1}]]
    assert unpack(encoder.response(None, (1, "x: y"), None)) == [
        1,
        None,
        [1, "x: y"],
        None,
    ]
    assert unpack(encoder.notification("lost", {"a": 1})) == [2, "lost", [{"a": 1}]]


@pytest.mark.parametrize(
    ("value", "depth"),
    [
        (1, 0),
        ([], 1),
        ({}, 1),
        ([[]], 2),
        ([1, {"a": [2]}], 3),
        ([[1], [[2]], 3], 3),
        ((((),),), 3),
    ],
)
def test_nesting_counts_arrays_and_maps_inside_each_other(
    value: object, depth: int
) -> None:
    assert nesting(value) == depth


def test_nesting_stops_counting_behind_the_limit() -> None:
    value: object = 0
    for _ in range(500):
        value = [value]
    assert nesting(value) == MAX_NESTING + 1


messages_of_any_kind = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=20,
)
streams = st.lists(
    messages_of_any_kind.map(msgpack.packb) | st.binary(max_size=30), max_size=6
).map(b"".join)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(streams, st.lists(st.integers(0, 400), max_size=8))
@example(b"\x91\xa2\xff\xfe\xc1", [1, 2, 3, 4])
@example(b"\xc7\x00\x05\x01", [1, 2])
def test_messages_do_not_depend_on_where_the_bytes_are_cut(
    data: bytes, cuts: list[int]
) -> None:
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(marks)]
    assert decoded(*pieces) == decoded(data)
    assert decoded(*(bytes([byte]) for byte in data)) == decoded(data)


def test_unpackers_of_many_who_were_halfway_are_not_kept_for_ever() -> None:
    message = msgpack.packb([0, 1, "hello", []])
    decoders = [Decoder() for _ in range(10 * MOST_IDLE)]
    for decoder in decoders:
        assert list(decoder.receive(message[:3])) == []
    for decoder in decoders:
        assert list(decoder.receive(message[3:])) == [[0, 1, "hello", []]]
    assert all(len(idle) <= MOST_IDLE for idle in codec._idle_unpackers.values())
