"""A client of a few lines for tests: a socket, msgpack, and nothing of lockd's own."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from pathlib import Path
from typing import Any, Self

import msgpack
import pytest

PATIENCE = 50.0
"""Seconds after which an answer that does not come fails the test.

More than a process waits for a processor where ten others want it, too."""

NOBODY = 65534

Message = list[Any]


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the test
    """An answer that is an error."""

    def __init__(self, error: list[Any]) -> None:
        kind, text, *facts = error
        assert kind == 1
        super().__init__(text)
        self.code, _, self.sentence = text.partition(": ")
        self.facts: dict[str, Any] | None = facts[0] if facts else None


class WireClient:
    """One connection; messages that nobody has asked for yet are kept."""

    def __init__(self, path: str | Path | socket.socket) -> None:
        if isinstance(path, socket.socket):
            self.socket = path
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.connect(str(path))
            except BaseException:
                self.socket.close()
                raise
        self.socket.settimeout(PATIENCE)
        self.kept: list[Message] = []
        self._unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1)
        self.last_msgid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_message(self, message: object) -> None:
        self.send_bytes(msgpack.packb(message, unicode_errors="surrogateescape"))

    def send(self, method: str, /, **params: object) -> int:
        """Sends a request; returns its msgid."""
        self.last_msgid += 1
        self.send_message([0, self.last_msgid, method, [params]])
        return self.last_msgid

    def call(self, method: str, /, **params: object) -> Any:
        """Sends a request; returns its result."""
        return self.result(self.send(method, **params))

    def refusal(self, method: str, /, **params: object) -> Refusal:
        """Sends a request that must be refused."""
        return self.refused(self.send(method, **params))

    def refused(self, msgid: int | None) -> Refusal:
        """Waits for the refusal of a request."""
        error, result = self.answer(msgid)
        assert error is not None, result
        assert result is None
        return Refusal(error)

    def result(self, msgid: int) -> Any:
        """Waits for the result of a request."""
        error, result = self.answer(msgid)
        if error is not None:
            raise Refusal(error)
        return result

    def answer(self, msgid: int | None) -> tuple[Any, Any]:
        """Waits for the answer to a request: its error and its result."""
        _, _, error, result = self._find(lambda m: m[0] == 1 and m[1] == msgid)
        return error, result

    def notification(self, method: str) -> dict[str, Any]:
        """Waits for a notification; returns its map."""
        _, _, (params,) = self._find(lambda m: m[0] == 2 and m[1] == method)
        assert isinstance(params, dict)
        return params

    def receive(self) -> Message | None:
        """Returns the next message that is not kept; None at the end."""
        while True:
            for message in self._unpacker:
                assert isinstance(message, list)
                return message
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:  # the daemon left some of our bytes unread
                return None
            if not data:
                return None
            self._unpacker.feed(data)

    def rest(self) -> list[Message]:
        """Waits for the end; returns everything that came before it."""
        while (message := self.receive()) is not None:
            self.kept.append(message)
        return self.kept

    def acquire(self, resource: str, /, **params: object) -> dict[str, Any]:
        """Acquires one resource; returns its grant."""
        grant = self.call("acquire", resource=resource, **params)["grant"]
        assert isinstance(grant, dict)
        return grant

    def _find(self, matches: Any) -> Message:
        for index, message in enumerate(self.kept):
            if matches(message):
                return self.kept.pop(index)
        while (fresh := self.receive()) is not None:
            if matches(fresh):
                return fresh
            self.kept.append(fresh)
        raise AssertionError(f"the connection ended; it said {self.kept}")


Connect = Callable[[], WireClient]
"""Connects another client to the daemon of a test, until that ends."""


def wait_for_waiters(
    client: WireClient, resource: str, count: int, **space: str
) -> None:
    """Waits until so many requests wait: asks again and again, for want of an event."""
    for _ in range(100_000):
        found = client.call("query", resource=resource, **space)
        if found["waiter_count"] == count:
            return
    raise AssertionError(found)


def leave_unread(client: WireClient, witness: WireClient) -> int:
    """Asks for more than the kernel takes for a client that reads nothing.

    Returns the msgid of the question, when the daemon has tried to send the answer.
    """
    text = "€" * 4096
    for strand in range(1, 17):
        more = {"strand": strand, "label": text, "reason": text}
        witness.acquire("big", mode="shared", **more)
    asked = client.send("query", resource="big")
    for _ in range(100_000):
        text = witness.call("metrics")["text"]
        if 'lockd_requests_total{method="query"} 1' in text.splitlines():
            # That turn may not be over yet; the next one is another.
            witness.call("statistics")
            return asked
    raise AssertionError(text)


def wait_for_sessions(client: WireClient, count: int) -> None:
    """Waits until so many sessions are open."""
    for _ in range(100_000):
        if client.call("statistics")["sessions"] == count:
            return
    raise AssertionError(client.call("list_sessions"))


def connected_as_nobody(
    path: Path, mode: int = 0o666
) -> AbstractContextManager[WireClient]:
    """A client whose kernel credentials are those of uid 65534; takes root."""
    return connected_as(path, NOBODY, NOBODY, mode=mode)


@contextmanager
def connected_as(
    path: Path,
    uid: int,
    own_gid: int,
    other_gids: tuple[int, ...] = (),
    mode: int = 0o666,
) -> Iterator[WireClient]:
    """A client whose kernel credentials are those of another user; takes root.

    unix(7): they are those of the moment of connect(2). The way there goes through the
    current directory, for pytest's own directories are closed to others.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can connect as another user")
    path.chmod(mode)
    path.parent.chmod(0o755)
    with chdir(path.parent):
        groups, gid = os.getgroups(), os.getegid()
        os.setgroups(other_gids)
        os.setegid(own_gid)
        os.seteuid(uid)
        try:
            client = WireClient(path.name)
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)
    with client:
        yield client
