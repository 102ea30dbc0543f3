"""Bad bytes, sudden ends: one client's trouble is nobody else's."""

import array
import socket
import subprocess
import sys

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.daemon_process import DaemonProcess
from support.processes import cpu_seconds, descriptors
from support.wire_client import Connect, WireClient, wait_for_sessions, wait_for_waiters


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xc1", "not MessagePack"),
        (b"GET / HTTP/1.1\r\nHost: \xc1\r\n\r\n", "not MessagePack"),
        (msgpack.packb([0, 1, "query", ["x" * 16_384] * 4]), "longer than 65536"),
        (b"\x94\x00\x01\xa5query" + b"\x91" * 8 + b"\x90", "nested deeper than 8"),
        (b"\x91" * 100_000, "not MessagePack"),
        (msgpack.packb([0, 1, "query", [0] * 1025]), "max_array_len"),
        (msgpack.packb([0, 1, "query", [{str(n): n for n in range(65)}]]), "max_map"),
        (msgpack.packb([0, 1, "query", ["x" * 16_385]]), "max_str_len"),
        (b"\x94\x00\x01\xa5query\x91\xd4\x00\x00", "max_ext_len"),
    ],
)
def test_broken_bytes_get_one_protocol_error_and_then_the_end(
    data: bytes, why: str, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    client.send_bytes(data)
    *others, (kind, msgid, error, result) = client.rest()
    assert all(message[2][1].startswith("invalid: ") for message in others)
    assert (kind, msgid, result) == (1, None, None)
    assert error[0] == 1
    assert error[1].startswith("protocol: ")
    assert why in error[1]
    assert other.result(waiting)["grant"]["resource"] == "a"


def test_requests_before_the_broken_bytes_are_answered(client: WireClient) -> None:
    request = msgpack.packb([0, 5, "statistics", []])
    client.send_bytes(request + b"\xc1")
    first, second = client.rest()
    assert first[1] == 5
    assert second[2][1].startswith("protocol: ")


@pytest.mark.parametrize(
    "message", [5, {}, [], "x", [1, 1, None, None], [0, 1], [0, "x", "query", []], None]
)
def test_message_that_is_no_request_costs_no_lock(
    message: object, client: WireClient
) -> None:
    client.acquire("a")
    client.send_message(message)
    msgid = 1 if message == [0, 1] else None
    assert client.refused(msgid).code == "invalid"
    assert client.call("query", resource="a")["holder_count"] == 1


def test_message_may_come_byte_by_byte(client: WireClient, other: WireClient) -> None:
    data = msgpack.packb([0, 9, "acquire", [{"resource": "a"}]])
    for byte in data[:-1]:
        client.send_bytes(bytes([byte]))
        assert other.call("query", resource="a")["holder_count"] == 0
    client.send_bytes(data[-1:])
    assert client.result(9)["grant"]["resource"] == "a"


def test_half_a_message_and_then_death_loses_only_that_session(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    other.acquire("b")
    client.acquire("a")
    client.send_bytes(msgpack.packb([0, 9, "acquire", [{"resource": "x"}]])[:-1])
    third = connect()
    waiting = third.send("acquire", resource="a")
    client.close()
    assert third.result(waiting)["grant"]["resource"] == "a"
    assert other.call("query", resource="b")["holder_count"] == 1
    assert other.call("query", resource="x")["last_holder"] is None


def test_waiter_that_dies_leaves_the_queue(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    client.acquire("a")
    first, second = connect(), other
    first.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    waiting = second.send("acquire", resource="a")
    wait_for_waiters(client, "a", 2)
    first.close()
    wait_for_waiters(client, "a", 1)
    client.call("release", resource="a")
    assert second.result(waiting)["grant"]["resource"] == "a"


def test_holder_that_dies_while_it_converts_makes_way(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    client.send("convert", resource="a", mode="exclusive")
    wait_for_waiters(other, "a", 1)
    third = connect()
    waiting = third.send("acquire", resource="a", mode="shared")
    wait_for_waiters(other, "a", 2)
    client.close()
    assert third.result(waiting)["grant"]["mode"] == "shared"
    assert other.call("query", resource="a")["holder_count"] == 2


def test_passed_descriptors_are_closed_unseen(
    client: WireClient, common: DaemonProcess
) -> None:
    client.call("statistics")
    before = descriptors(common.pid)
    request = msgpack.packb([0, 99, "query", [{"resource": "a"}]])
    with open("/dev/null") as null:
        fds = array.array("i", [null.fileno()] * 100).tobytes()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        for _ in range(1_000):
            try:
                client.socket.sendmsg([request], rights)
            except PermissionError:  # since Linux 6.16 the kernel refuses it
                client.send_bytes(request)
            assert client.result(99)["holder_count"] == 0
    assert descriptors(common.pid) == before


def test_sessions_leave_no_descriptors_behind(
    client: WireClient, common: DaemonProcess
) -> None:
    wait_for_sessions(client, 1)
    before = descriptors(common.pid)
    for _ in range(50):
        with WireClient(common.socket) as guest:
            guest.acquire("a", timeout=None)
    wait_for_sessions(client, 1)
    assert descriptors(common.pid) == before


def test_client_may_close_its_writing_half_only(client: WireClient) -> None:
    client.send("statistics")
    client.socket.shutdown(socket.SHUT_WR)
    assert [message[1] for message in client.rest()] == [1]


FLOOD = """
import os, socket, sys, msgpack
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print("ready", flush=True)
s.sendall(msgpack.packb([0, 1, "query", [{"resource": "x"}]]) * 200_000)
"""


def test_flood_of_requests_does_not_starve_the_others(
    client: WireClient, common: DaemonProcess
) -> None:
    flood = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(common.socket)], stdout=subprocess.PIPE
    )
    with flood:
        try:
            assert flood.stdout is not None
            flood.stdout.readline()
            for n in range(50):
                client.acquire(str(n))
        finally:
            flood.kill()


def test_daemon_at_rest_uses_no_processor_time(
    client: WireClient, other: WireClient, common: DaemonProcess
) -> None:
    client.acquire("a")
    used = cpu_seconds(common.pid)
    assert other.refusal("acquire", resource="a", timeout=1).code == "timeout"
    assert cpu_seconds(common.pid) - used < 0.2


methods = st.sampled_from(["acquire", "release", "convert", "cancel", "query", "watch"])
values = st.none() | st.booleans() | st.integers(-5, 99) | st.text(max_size=5)
params = st.dictionaries(
    st.sampled_from(["resource", "mode", "timeout", "request", "lockspace", "colour"]),
    values | st.sampled_from(["a", "b", "shared", "exclusive", "default"]),
    max_size=4,
)
requests = st.tuples(
    st.just(0), st.integers(0, 9), methods, st.lists(params, max_size=2)
)
pieces = st.binary(max_size=40) | requests.map(
    lambda message: bytes(msgpack.packb(message))
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stream=st.lists(pieces, max_size=12), size=st.integers(1, 60))
def test_daemon_serves_whatever_bytes_it_is_sent(
    stream: list[bytes], size: int, client: WireClient, common: DaemonProcess
) -> None:
    data = b"".join(stream)
    with WireClient(common.socket) as fuzzer:
        try:
            for start in range(0, len(data), size):
                fuzzer.send_bytes(data[start : start + size])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon has given up on it
    assert client.call("statistics")["epoch"] == 1
