"""One GET a connection, from whoever may be slow, hostile, or many."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from lockd.daemon.metrics import scrape
from lockd.daemon.metrics.exposition import CONTENT_TYPES, Format
from lockd.daemon.metrics.publishing import bind


def text(wanted: Format) -> str:
    return f"{wanted}\n"


def ask(request: bytes) -> tuple[str, dict[str, str], str]:
    """Returns the status line, the fields and the body of an answer."""
    head, _, body = scrape.answer(request, text).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return status, fields, body


def test_get_is_answered() -> None:
    status, fields, body = ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert fields == {
        "Content-Type": CONTENT_TYPES["openmetrics"],
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    assert body == "openmetrics\n"


def test_head_is_answered_without_a_body() -> None:
    status, fields, body = ask(b"HEAD /metrics?x=1 HTTP/1.0\n\n")
    assert status == "HTTP/1.1 200 OK"
    assert (fields["Content-Length"], body) == ("12", "")


PROMETHEUS = (
    b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
    b"version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        (b"*/*", "openmetrics"),
        (PROMETHEUS, "openmetrics"),
        (b"text/plain;version=0.0.4", "plain"),
        (b"Text/Plain", "plain"),
        (b"text/html", "openmetrics"),
    ],
)
def test_format_is_the_one_that_is_accepted(accepted: bytes, wanted: Format) -> None:
    _, fields, body = ask(b"GET /metrics HTTP/1.1\r\naccept:" + accepted + b"\r\n\r\n")
    assert body == text(wanted)
    assert fields["Content-Type"] == CONTENT_TYPES[wanted]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", "400 Bad Request"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
        (b"get /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
        (b"\x93\x00\x01\xa7metrics\r\n\r\n", "400 Bad Request"),
        (b"\r\n\r\n", "400 Bad Request"),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        (b"x" * 9_000, "431 Request Header Fields Too Large"),
        (
            b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9_000 + b"\r\n\r\n",
            "431 Request Header Fields Too Large",
        ),
    ],
)
def test_what_is_no_request_for_metrics_is_refused(
    request_: bytes, status: str
) -> None:
    said, fields, body = ask(request_)
    assert said == f"HTTP/1.1 {status}"
    assert body.endswith("\n")
    assert int(fields["Content-Length"]) == len(body)


OWN = socket.gethostname()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:9469", "[::1]:9469", "[::1]", "192.0.2.1:80"),
        *("localhost", "LocalHost:9469", "localhost.", "x.localhost", "localhost:"),
        *(OWN, f"{OWN.upper()}:9469", OWN.partition(".")[0]),
    ],
)
def test_who_asks_for_this_host_is_answered(host: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nX: y\r\nHost: {host}\r\n\r\n"
    assert ask(request.encode())[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("line", ["Host: {}", "host:{} ", "HOST:\t{}:9469"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("evil.example\x00localhost", "", "evil@127.0.0.1", "1", "\xff"),
    ],
)
def test_page_whose_name_points_here_is_told_nothing(
    line: str, end: str, host: str
) -> None:
    lines = ["GET /metrics HTTP/1.1", line.format(host), "X: y", "", ""]
    status, _, body = ask(end.join(lines).encode("latin-1"))
    assert status == "HTTP/1.1 421 Misdirected Request"
    assert "is not this host: ask for the metrics by an IP address" in body


def test_one_foreign_name_of_two_is_enough() -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert ask(request)[0] == "HTTP/1.1 421 Misdirected Request"


def test_defect_costs_an_answer_and_no_more() -> None:
    def broken(wanted: Format) -> str:
        raise ZeroDivisionError

    said = scrape.answer(b"GET /metrics HTTP/1.1\r\n\r\n", broken)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"defect" in said


# With real sockets.


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    with bind("127.0.0.1:0") as door:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape.serve, door, text)
            yield door.getsockname()[1]
            nursery.cancel_scope.cancel()


async def rest_of(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def fetched(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        return await rest_of(stream)


async def test_request_may_come_byte_by_byte() -> None:
    async with served() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n":
            await stream.send_all(bytes([byte]))
        assert (await rest_of(stream)).endswith(b"\r\n\r\nopenmetrics\n")
        await stream.aclose()


async def test_what_was_sent_too_much_takes_no_answer_away() -> None:
    async with served() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n" + b"x" * 100_000)
        assert (await rest_of(stream)).endswith(b"openmetrics\n")
        await stream.aclose()


async def test_long_request_is_refused_when_it_is_too_long() -> None:
    async with served() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert (await rest_of(stream)).startswith(b"HTTP/1.1 431 ")
        await stream.aclose()


async def test_slow_clients_are_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "PATIENCE", 0.05)
    async with served() as port:
        slow = [
            await trio.open_tcp_stream("127.0.0.1", port)
            for _ in range(2 * scrape.AT_ONCE)
        ]
        assert (await fetched(port)).endswith(b"openmetrics\n")
        for stream in slow:
            assert await rest_of(stream) == b""
            await stream.aclose()


async def test_who_says_nothing_does_not_keep_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "PATIENCE", 10_000)
    async with served() as port:
        idle = [
            await trio.open_tcp_stream("127.0.0.1", port)
            for _ in range(3 * scrape.AT_ONCE)
        ]
        with trio.fail_after(20):
            for _ in range(3):
                assert (await fetched(port)).endswith(b"openmetrics\n")
        for stream in idle:
            await stream.aclose()


async def test_defect_of_a_conversation_costs_only_this_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[type[Exception] | bytes] = [
        ZeroDivisionError,
        b"HTTP/1.1 200 OK\r\n\r\nfine",
    ]

    def answer(*args: object, **options: object) -> bytes:
        found = answers.pop(0)
        if isinstance(found, bytes):
            return found
        raise found

    monkeypatch.setattr(scrape, "answer", answer)
    async with served() as port:
        assert await fetched(port) == b""
        assert (await fetched(port)).endswith(b"fine")
    assert "defect" in caplog.text


async def test_at_a_socket_of_files_any_name_is_ours(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "metrics.sock"))
        door.listen()
        door.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape.serve, door, text)
            stream = await trio.open_unix_socket(str(tmp_path / "metrics.sock"))
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: lockd\r\n\r\n")
            assert (await rest_of(stream)).endswith(b"openmetrics\n")
            await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_client_that_does_not_read_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "PATIENCE", 0.05)
    big = "x" * 10_000_000
    with bind("127.0.0.1:0") as door:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape.serve, door, lambda wanted: big)
            port = door.getsockname()[1]
            deaf = await trio.open_tcp_stream("127.0.0.1", port)
            await deaf.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            with trio.fail_after(20):
                while (await count_served(port)) == 0:
                    pass
            nursery.cancel_scope.cancel()
        await deaf.aclose()


async def count_served(port: int) -> int:
    """How many of as many clients as are served at once get an answer."""
    clients = [
        await trio.open_tcp_stream("127.0.0.1", port) for _ in range(scrape.AT_ONCE)
    ]
    served = 0
    for stream in clients:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        served += (await rest_of(stream)).startswith(b"HTTP/1.1 404 ")
        await stream.aclose()
    return served


async def test_who_waits_is_accepted_when_another_has_gone() -> None:
    async with served() as port:
        first = [
            await trio.open_tcp_stream("127.0.0.1", port) for _ in range(scrape.AT_ONCE)
        ]
        async with trio.open_nursery() as nursery:

            async def last() -> None:
                assert (await fetched(port)).endswith(b"openmetrics\n")
                nursery.cancel_scope.cancel()

            nursery.start_soon(last)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await first[3].aclose()
        for stream in first:
            await stream.aclose()


@pytest.mark.parametrize("place", ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0"])
def test_loopback_addresses_are_listened_at(place: str) -> None:
    try:
        door = bind(place)
    except OSError as error:
        pytest.skip(f"there is no such address here: {error}")
    with door:
        assert door.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not door.get_inheritable()
