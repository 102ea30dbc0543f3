"""Calls and replies as bytes: framing, what is no call, how a refusal looks."""

import struct
from collections.abc import Iterator
from uuid import UUID

import pytest

from lockd.errors import (
    AlreadyExistsError,
    BusyError,
    CodedError,
    InvalidRequestError,
    NotFoundError,
    NotHeldError,
    ProtocolError,
    error_for_code,
)
from lockd.libvirt.arguments import RegisterArgs, ResourceArgs
from lockd.libvirt.connection import MAX_MESSAGE_BYTES, Call, Connection
from lockd.libvirt.errors import Domain, Number, RemoteError
from lockd.libvirt.procedures import ACQUIRE_RESOURCE, MOST
from support import libvirt_client as lc

ACQUIRE = lc.message(lc.ACQUIRE, lc.resource("/srv/locks", "web1", 3), serial=7)


@pytest.fixture
def connection() -> Connection:
    return Connection()


def replies(connection: Connection) -> Iterator[lc.Reply]:
    """Reads what the connection has to send, with the strict client of the tests."""
    data = connection.data_to_send()
    while data:
        length = int.from_bytes(data[:4])
        raw, data = data[:length], data[length:]
        yield lc.read_message(raw)


def only_reply(connection: Connection) -> lc.Reply:
    (reply,) = replies(connection)
    return reply


def refusal_of(connection: Connection, error: CodedError) -> lc.LibvirtError | None:
    (call,) = connection.receive(ACQUIRE)
    connection.send_error(call.number, error)
    return only_reply(connection).error


# Calls.


def test_call_comes_with_its_arguments(connection: Connection) -> None:
    (call,) = connection.receive(ACQUIRE)
    assert (call.number, call.procedure) == (1, ACQUIRE_RESOURCE)
    assert call.args == ResourceArgs("/srv/locks", "web1", 3)


def test_owner_comes_whole(connection: Connection) -> None:
    (call,) = connection.receive(lc.message(lc.REGISTER, lc.owner(12, "web1", id=-1)))
    uuid = UUID(bytes=bytes(range(16)))
    assert call.args == RegisterArgs(str(uuid), "web1", 2**32 - 1, 12, 0)


def test_same_arguments_mean_the_same_again_and_others_do_not(
    connection: Connection,
) -> None:
    wanted = [("/srv/locks", "web1", 3), ("/srv/locks", "web2", 3), ("", "web1", 3)]
    wanted += [("/srv/locks", "web1", 2), ("/srv/locks", "web1" + "x" * 300, 3)]
    wanted += [("/srv/locks", f"web{n}", 3) for n in range(2 * MOST)]
    for path, name, flags in wanted + wanted[:10]:
        payload = lc.resource(path, name, flags)
        for procedure in lc.ACQUIRE, lc.RELEASE:
            (call,) = connection.receive(lc.message(procedure, payload))
            assert call.procedure == procedure
            assert call.args == ResourceArgs(path, name, flags)
        (reply,) = _refusals(connection, lc.message(lc.ACQUIRE, payload[:-1]))
        assert reply == "Unable to decode message payload"


def _refusals(connection: Connection, data: bytes) -> list[str | None]:
    """Returns what is said of bytes that are no valid call."""
    assert list(connection.receive(data)) == []
    return [x.error.message for x in replies(connection) if x.error]


@pytest.mark.parametrize("size", [1, 3, 28, 31, 1_000])
def test_calls_may_come_in_any_pieces(connection: Connection, size: int) -> None:
    data = ACQUIRE * 3
    calls: list[Call] = []
    for begin in range(0, len(data), size):
        calls += connection.receive(data[begin : begin + size])
    assert [call.number for call in calls] == [1, 2, 3]
    assert not connection.has_partial


def test_half_a_call_is_a_partial_one(connection: Connection) -> None:
    assert list(connection.receive(ACQUIRE[:-1])) == []
    assert connection.has_partial


def test_what_is_left_over_of_a_payload_is_ignored(connection: Connection) -> None:
    data = lc.message(lc.RESTRICT, lc.flags(0) + b"more")
    assert [call.procedure for call in connection.receive(data)] == [2]


def test_text_that_is_not_utf8_comes_as_in_file_names(connection: Connection) -> None:
    (call,) = connection.receive(lc.message(lc.ACQUIRE, lc.resource("", b"\xff")))
    assert call.args.name == "\udcff"


@pytest.mark.parametrize("length", [0, 27, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_impossible_length_ends_the_conversation(
    connection: Connection, length: int
) -> None:
    with pytest.raises(ProtocolError, match=f"a message of {length} bytes"):
        list(connection.receive(length.to_bytes(4)))


def test_longest_call_there_is_fits(connection: Connection) -> None:
    longest = lc.message(lc.ACQUIRE, lc.resource(bytes(65_536), bytes(65_536)))
    assert len(longest) == MAX_MESSAGE_BYTES
    assert len(list(connection.receive(longest))) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lc.message(6, ACQUIRE[28:], program=5), "Cannot find program 5 version 1"),
        (
            lc.message(6, ACQUIRE[28:], version=2),
            f"Cannot find program {lc.PROGRAM} version 2",
        ),
        (lc.message(99), "unknown procedure: 99"),
        (lc.message(0), "unknown procedure: 0"),
        (lc.message(-1), "unknown procedure: -1"),
        (lc.message(99, program=lc.PROGRAM), "unknown procedure: 99"),
        (lc.message(6, ACQUIRE[28:], status=2), "Unexpected message status 2"),
        (lc.message(6, ACQUIRE[28:-1]), "Unable to decode message payload"),
        (
            lc.message(6, lc.resource(bytes(65_537), "")[:65_600]),
            "Unable to decode message payload",
        ),
    ],
)
def test_what_is_no_call_is_refused_and_the_next_one_is_taken(
    connection: Connection, data: bytes, message: str
) -> None:
    calls = list(connection.receive(data + ACQUIRE))
    assert [call.procedure for call in calls] == [lc.ACQUIRE]
    error = only_reply(connection).error
    assert error is not None
    assert error.message == message


@pytest.mark.parametrize("type_", [lc.REPLY, lc.MESSAGE, lc.STREAM, 6, -1])
@pytest.mark.parametrize("program", [lc.PROGRAM, 5])
def test_messages_that_are_no_calls_are_passed_over(
    connection: Connection, type_: int, program: int
) -> None:
    data = lc.message(lc.ACQUIRE, ACQUIRE[28:], type=type_, program=program)
    assert len(list(connection.receive(data + ACQUIRE))) == 1
    assert connection.data_to_send() == b""


def test_call_that_could_pass_descriptors_but_does_not_is_one(
    connection: Connection,
) -> None:
    data = lc.message(lc.ACQUIRE, bytes(4) + ACQUIRE[28:], type=lc.CALL_WITH_FDS)
    (call,) = connection.receive(data)
    assert call.args.name == "web1"


@pytest.mark.parametrize("count", [b"\0\0\0\1", b""])
def test_call_that_passes_descriptors_ends_the_conversation(
    connection: Connection, count: bytes
) -> None:
    data = lc.message(lc.RESTRICT, count, type=lc.CALL_WITH_FDS)
    with pytest.raises(ProtocolError, match="descriptors"):
        list(connection.receive(data))


def test_whoever_asks_whether_we_are_alive_is_told(connection: Connection) -> None:
    ping, pong = (
        lc.message(procedure, program=0x6B656570, version=1, type=lc.MESSAGE)
        for procedure in (1, 2)
    )
    assert list(connection.receive(ping)) == []
    assert only_reply(connection).raw == pong
    assert list(connection.receive(pong)) == []
    assert connection.data_to_send() == b""


# Replies.


def test_result_is_a_header_with_the_serial_of_its_call(
    connection: Connection,
) -> None:
    (call,) = connection.receive(ACQUIRE)
    connection.send_result(call.number, {"grant": "of no interest"})
    reply = only_reply(connection)
    assert reply.raw == lc.message(lc.ACQUIRE, b"", type=lc.REPLY, serial=7)


def test_serials_that_come_twice_are_answered_twice(connection: Connection) -> None:
    first, second = connection.receive(ACQUIRE + ACQUIRE)
    connection.send_result(second.number)
    connection.send_error(first.number, BusyError("no"))
    granted, refused = replies(connection)
    assert granted.serial == refused.serial == 7
    assert (granted.status, refused.status) == (lc.OK, lc.ERROR)


def test_refusal_has_number_domain_and_sentence(connection: Connection) -> None:
    error = refusal_of(connection, BusyError("'web1' is held by web2"))
    assert error == lc.LibvirtError(
        87,
        51,
        "resource busy: 'web1' is held by web2",
        2,
        *(None, None, None),
        *(-1, -1),
    )


@pytest.mark.parametrize(
    ("code", "number", "domain"),
    [
        ("busy", 87, 51),
        ("already_held", 87, 51),
        ("in_use", 87, 51),
        ("not_found", 38, 51),
        ("denied", 38, 51),
        ("io", 38, 51),
        ("unavailable", 38, 51),
        ("invalid", 38, 51),
        ("restricted", 29, 7),
        ("internal", 1, 7),
        ("limit", 1, 7),
    ],
)
def test_codes_of_lockd_are_numbers_of_libvirt(
    connection: Connection, code: str, number: int, domain: int
) -> None:
    error = refusal_of(connection, error_for_code(code, "no", {}))
    assert error is not None
    assert (error.code, error.domain) == (number, domain)


def test_what_is_not_held_differs_from_what_somebody_else_holds(
    connection: Connection,
) -> None:
    free = refusal_of(connection, NotHeldError("no", {"holders": []}))
    taken = refusal_of(connection, NotHeldError("no", {"holders": [{"name": "x"}]}))
    assert free is not None
    assert taken is not None
    assert (free.code, free.domain) == (87, 51)
    assert (taken.code, taken.domain) == (1, 51)


@pytest.mark.parametrize(
    ("procedure", "error"),
    [
        (lc.CREATE_RESOURCE, AlreadyExistsError("it is there")),
        (lc.DELETE_RESOURCE, NotFoundError("it is not there")),
    ],
)
def test_file_may_be_as_it_should_be(
    connection: Connection, procedure: int, error: CodedError
) -> None:
    (call,) = connection.receive(lc.message(procedure, lc.resource("/srv", "web1")))
    connection.send_error(call.number, error)
    assert only_reply(connection).status == lc.OK
    assert refusal_of(connection, error) is not None


@pytest.mark.parametrize(
    ("procedure", "error", "number", "domain"),
    [
        (lc.RELEASE, InvalidRequestError("no name"), 87, 51),
        (lc.CREATE_RESOURCE, InvalidRequestError("no name"), 38, 0),
        (lc.CREATE_RESOURCE, BusyError("held"), 87, 51),
    ],
)
def test_some_procedures_refuse_in_their_own_way(
    connection: Connection,
    procedure: int,
    error: CodedError,
    number: int,
    domain: int,
) -> None:
    (call,) = connection.receive(lc.message(procedure, lc.resource("/srv", "web1")))
    connection.send_error(call.number, error)
    found = only_reply(connection).error
    assert found is not None
    assert (found.code, found.domain) == (number, domain)


def test_error_of_libvirts_own_goes_out_as_it_is(connection: Connection) -> None:
    error = refusal_of(
        connection, RemoteError(Number.INVALID_ARG, Domain.RPC, "bad \udcff")
    )
    assert error is not None
    assert (error.code, error.domain) == (8, 7)
    assert error.message == "invalid argument: bad \\udcff"


def test_what_nobody_asked_for_is_not_sent(connection: Connection) -> None:
    connection.send_notification("lost", {})
    connection.send_error(None, ProtocolError("the end"))
    assert connection.data_to_send() == b""


# Another connection goes on.


def test_another_connection_goes_on_where_one_was(connection: Connection) -> None:
    (call,) = connection.receive(ACQUIRE)
    assert list(connection.receive(ACQUIRE[:40])) == []
    state = connection.dump()
    assert state["calls"] == [[1, *struct.unpack(">7I", ACQUIRE[:28])]]
    heir = Connection()
    heir.load(state)
    (next_call,) = heir.receive(ACQUIRE[40:])
    assert next_call.number == call.number + 1
    heir.send_result(call.number)
    heir.send_result(next_call.number)
    assert [reply.serial for reply in replies(heir)] == [7, 7]


def test_bytes_to_send_are_counted_until_they_are_taken(connection: Connection) -> None:
    (call,) = connection.receive(ACQUIRE)
    connection.send_result(call.number)
    assert connection.outgoing_bytes == 28
    connection.data_to_send()
    assert connection.outgoing_bytes == 0
