from typing import Any

import msgpack
import msgspec
import pytest

from lockd.errors import BusyError, ProtocolError
from lockd.protocol.calls import Method
from lockd.protocol.connection import Connection
from lockd.protocol.methods import METHODS
from protocol.conftest import received, refusal, sent


def test_request_has_its_method_and_checked_parameters() -> None:
    (request,) = received(Connection(), [0, 7, "query", [{"resource": "a"}]])
    assert request.msgid == 7
    assert request.method is METHODS["query"]
    assert request.params.resource == "a"
    assert request.params.lockspace == "default"


def test_method_name_may_be_bytes() -> None:
    (request,) = received(Connection(), [0, 7, b"query", [{"resource": "a"}]])
    assert request.method.name == "query"


def test_no_parameters_mean_an_empty_map() -> None:
    (request,) = received(Connection(), [0, 7, "statistics", []])
    assert request.method.name == "statistics"


@pytest.mark.parametrize("msgid", [0, 1, 2**32 - 1])
def test_msgid_may_be_any_of_32_bits(msgid: int) -> None:
    (request,) = received(Connection(), [0, msgid, "statistics", []])
    assert request.msgid == msgid


@pytest.mark.parametrize(
    "message",
    [
        5,
        None,
        "query",
        {},
        [],
        [0],
        [0, 1, "query"],
        [0, 1, "query", [], 1],
        [False, 1, "query", []],
        [0, -1, "query", []],
        [0, 2**32, "query", []],
        [0, True, "query", []],
        [0, "1", "query", []],
        [1, 1, None, None],
        [2, "lost"],
        [3, 1, "query", []],
    ],
)
def test_message_that_is_no_request_is_invalid(message: Any) -> None:
    msgid, sentence = refusal(message)
    assert sentence.startswith("invalid: this is not a request")
    has_msgid = isinstance(message, list) and message[:2] == [0, 1]
    has_msgid = has_msgid and message[0] is not False and message[1] is not True
    assert msgid == (1 if has_msgid else None)


@pytest.mark.parametrize("method", ["acquirE", "", "__init__", b"\xff\xfe", "\udcff"])
def test_unknown_method_is_refused_with_its_msgid(method: str | bytes) -> None:
    msgid, sentence = refusal([0, 3, method, []])
    assert msgid == 3
    assert sentence.startswith("unknown_method: there is no method ")


@pytest.mark.parametrize("method", [5, None, ["query"], {"query": 1}, True, 1.5])
def test_method_that_is_no_text_is_invalid(method: Any) -> None:
    assert refusal([0, 3, method, []]) == (
        3,
        "invalid: the method must be text: docs/reference/protocol.md 6.1",
    )


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_text_that_is_not_utf_8_is_invalid_wherever_it_stands(method: Method) -> None:
    for field in msgspec.structs.fields(method.params):
        for value in ("\udcff", "a\udc80b", ["good", "\udcff"]):
            msgid, sentence = refusal([0, 3, method.name, [{field.name: value}]])
            assert msgid == 3
            assert sentence == f"invalid: {method.name}: `{field.name}` is not UTF-8"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_value_that_no_parameter_takes_costs_its_request_only(method: Method) -> None:
    values = [2**64 - 1, -(2**63), 1e308, float("nan"), float("inf"), b"", [], {}]
    names = [field.name for field in msgspec.structs.fields(method.params)]
    for value in values:
        for msgid, name in enumerate(names):
            connection = Connection()
            found = received(connection, [0, msgid, method.name, [{name: value}]])
            # Taken, or refused.
            assert len(found) + len(sent(connection)) == 1


@pytest.mark.parametrize(
    "data", [b"\x82\xa8resource\xa1a\xa8resource\xa1b", b"\x81\x90\x01"]
)
def test_map_with_impossible_keys_is_invalid_and_the_stream_goes_on(
    data: bytes,
) -> None:
    connection = Connection()
    bad = b"\x94\x00\x03\xa5query\x91" + data
    good = msgpack.packb([0, 4, "statistics", []])
    assert [r.msgid for r in connection.receive(bad + good)] == [4]
    ((_, msgid, (_, sentence), _),) = sent(connection)
    assert msgid == 3
    assert sentence == (
        "invalid: query: a map with a key that appears twice, or is no text"
    )


def test_map_with_impossible_keys_inside_a_parameter_is_invalid() -> None:
    connection = Connection()
    owner = b"\x81\xa5owner\x82\xa4name\xa1a\xa4name\xa1b"
    assert list(connection.receive(b"\x94\x00\x03\xa8register\x91" + owner)) == []
    ((_, _, (_, sentence), _),) = sent(connection)
    assert sentence.startswith("invalid: register: ")


@pytest.mark.parametrize(
    "message",
    [
        [2, "anything", []],
        [2, b"nvim_set_client_info", [1, 2, {}, [3]]],
        [2, None, None],
    ],
)
def test_notification_is_ignored(message: Any) -> None:
    connection = Connection()
    assert received(connection, message) == []
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("prefix", [[2, "x"], [0, 3, "query"], []])
def test_nesting_ends_the_conversation_beyond_eight(prefix: list[Any]) -> None:
    deep: Any = []
    for _ in range(6):
        deep = [deep]
    allowed, too_deep = [*prefix, deep], [*prefix, [deep]]
    connection = Connection()
    assert received(connection, allowed) == []
    sent(connection)
    with pytest.raises(ProtocolError, match="nested deeper than 8"):
        received(connection, too_deep)
    assert sent(connection) == [
        [1, None, [1, "protocol: a message is nested deeper than 8"], None]
    ]


def test_bytes_that_are_no_messagepack_are_answered_once() -> None:
    connection = Connection()
    with pytest.raises(ProtocolError):
        list(connection.receive(b"\xc1\xc1"))
    ((kind, msgid, error, result),) = sent(connection)
    assert (kind, msgid, result) == (1, None, None)
    assert error[0] == 1
    assert error[1].startswith("protocol: these bytes are not MessagePack")


def test_error_carries_facts_only_for_who_said_hello() -> None:
    connection = Connection()
    error = BusyError("not free", {"holder_count": 1})
    connection.send_error(1, error)
    connection.greet()
    connection.send_error(2, error)
    connection.send_error(3, BusyError("not free"))
    assert sent(connection) == [
        [1, 1, [1, "busy: not free"], None],
        [1, 2, [1, "busy: not free", {"holder_count": 1}], None],
        [1, 3, [1, "busy: not free", {}], None],
    ]


def test_sentence_cannot_forge_a_line() -> None:
    connection = Connection()
    connection.send_error(1, BusyError("held by a\n\x1b[2Jroot\u202e"))
    ((_, _, (_, sentence), _),) = sent(connection)
    assert sentence.isprintable()


def test_answers_leave_in_one_piece_and_only_once() -> None:
    connection = Connection()
    connection.send_result(1)
    connection.send_result(2, {"grant": 1})
    connection.send_notification("lost", {"cause": "broken"})
    assert sent(connection) == [
        [1, 1, None, None],
        [1, 2, None, {"grant": 1}],
        [2, "lost", [{"cause": "broken"}]],
    ]
    assert connection.data_to_send() == b""
