import re
from typing import Any

import msgpack
import msgspec
import pytest

from lockd.errors import BusyError, ProtocolError
from lockd.protocol.connection import Connection, MethodCall
from lockd.protocol.methods import METHODS, Method
from protocol.test_methods import GOOD


def received(connection: Connection, *messages: Any) -> list[MethodCall]:
    data = b"".join(
        msgpack.packb(m, unicode_errors="surrogateescape") for m in messages
    )
    return list(connection.receive(data))


def sent(connection: Connection) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(connection.data_to_send())
    return list(unpacker)


def refusal(message: Any) -> tuple[Any, str]:
    """Returns the msgid and the sentence with which one message is refused."""
    connection = Connection()
    assert received(connection, message) == []
    ((kind, msgid, error, result),) = sent(connection)
    assert (kind, result) == (1, None)
    return msgid, error[1]


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
    assert sentence.startswith("invalid: this is no request")
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
        "invalid: the method must be text: docs/protocol.md 6.1",
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
    "params", [None, {}, {"resource": "a"}, [None], [[]], [{}, {}], "a", 0]
)
def test_parameters_must_be_one_map_in_an_array(params: Any) -> None:
    msgid, sentence = refusal([0, 3, "query", params])
    assert msgid == 3
    assert sentence.startswith("invalid: query: the parameters must be one map")


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "`resource` is missing: it must be text"),
        ({"resource": 5}, "`resource` must be text"),
        ({"resource": None}, "`resource` must be text"),
        ({"resource": b"a"}, "`resource` must be text"),
        (
            {"resource": "a", "colour": 1},
            "there is no `colour`: `resource`, `lockspace` can be given",
        ),
        (
            {"resource": "a", b"lockspace": "b"},
            "the name of each parameter must be text: `resource`, `lockspace` can be "
            "given",
        ),
    ],
)
def test_wrong_parameter_is_named(params: Any, why: str) -> None:
    assert refusal([0, 3, "query", [params]]) == (3, f"invalid: query: {why}")


ALLOWED = {
    ("acquire", "timeout"): "a number from 0 to 1e9 (seconds) or nil",
    ("acquire", "mode"): '"exclusive" or "shared" or nil',
    ("acquire", "create"): "true or false or nil",
    ("acquire", "resources"): "an array of 1 to 64 texts or nil",
    ("check", "fencing_token"): "an integer from 0 to 9223372036854775807",
    ("cancel", "request"): "an integer from 0 to 4294967295",
    ("list", "limit"): "an integer from 1 to 256 or nil",
    ("list", "after"): "an array of 2: text, text or nil",
    ("create_lockspace", "name"): "text that is not empty",
}
ODD = [True, 5, -1, 2**63, 0.5, float("nan"), 1e300, "", "odd", b"", [], [1], {}, None]
OWNER = ["name", "uuid", "id", "pid"]


def complaint_about(sentence: str, name: str) -> bool:
    """Tells whether a sentence names a parameter, and what it may be."""
    named = rf"`{re.escape(name)}(\.\w+)?`"
    forms = rf"({named} (must be|is missing: it must be) .+|there is no {named}: .+)"
    return re.fullmatch(forms, sentence) is not None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_wrong_value_is_told_in_the_words_of_the_page(method: Method) -> None:
    names = [field.name for field in msgspec.structs.fields(method.params)]
    cases = [(name, {name: odd}) for name in [*names, "colour"] for odd in ODD]
    if method.name == "register":
        cases += [
            (f"owner.{entry}", {"owner": {"name": "a"} | {entry: odd}})
            for entry in [*OWNER, "colour"]
            for odd in ODD
        ]
    refused = 0
    for name, changes in cases:
        message = [0, 3, method.name, [GOOD.get(method.name, {}) | changes]]
        connection = Connection()
        if received(connection, message):
            continue
        refused += 1
        ((_, _, (_, sentence), _),) = sent(connection)
        opening = f"invalid: {method.name}: "
        assert sentence.startswith(opening)
        said = sentence.removeprefix(opening)
        for word in ("Expected", "Object", "$", "got", "str`", "float", "null"):
            assert word not in said, said
        if complaint_about(said, name):
            allowed = ALLOWED.get((method.name, name))
            assert allowed is None or said.endswith(f"must be {allowed}")
        else:  # words of our own, about the parameters together or the text itself
            assert re.search(r"needed|name is empty|has control", said), said
    assert refused >= len(ODD)  # "colour" at least


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
