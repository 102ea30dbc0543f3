"""The same small client twice: one speaks lockd's protocol, one virtlockd's.

Both encode each request, send it on a plain socket, and check each answer, with one
call of a C codec per message, so that a comparison is one of the daemons.
"""

import hashlib
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgpack

from benchmarks.measure import Round

NAME_BYTES: Final = 64
"""Names look like the hashed paths of a shared lock directory: SHA-256 in hex."""

_RECEIVE_BYTES: Final = 65_536
_SILENCE_SECONDS: Final = 20


def names(count: int, kind: str = "") -> list[str]:
    """Returns that many names; other kinds have other names."""
    return [hashlib.sha256(f"{kind}{n}".encode()).hexdigest() for n in range(count)]


class RefusedError(Exception):
    """Raised when a daemon refuses what a benchmark asks for."""


class Wire(Protocol):
    """One connection to a lock daemon."""

    def encode_acquire(self, name: str, serial: int) -> bytes: ...

    def encode_release(self, name: str, serial: int) -> bytes: ...

    def send(self, requests: bytes) -> None: ...

    def receive(self) -> list[int]:
        """Waits for answers; returns the serials of those that came."""
        ...

    def close(self) -> None: ...


class LockdWire:
    """Speaks MessagePack-RPC to lockd."""

    def __init__(self, path: Path, lockspace: str = "default") -> None:
        self.socket = _connected(path)
        self.lockspace = lockspace
        self._pack = msgpack.Packer().pack
        self._unpacker = msgpack.Unpacker()

    def encode(self, serial: int, method: str, params: dict[str, Any]) -> bytes:
        encoded: bytes = self._pack((0, serial, method, (params,)))
        return encoded

    def encode_acquire(self, name: str, serial: int) -> bytes:
        # A try, which is all that virtlockd has.
        params = {"lockspace": self.lockspace, "resource": name, "timeout": 0}
        return self.encode(serial, "acquire", params)

    def encode_release(self, name: str, serial: int) -> bytes:
        params = {"lockspace": self.lockspace, "resource": name}
        return self.encode(serial, "release", params)

    def encode_wait(self, name: str, serial: int) -> bytes:
        params = {"lockspace": self.lockspace, "resource": name}
        return self.encode(serial, "acquire", params)

    def send(self, requests: bytes) -> None:
        self.socket.sendall(requests)

    def receive(self) -> list[int]:
        return [message[1] for message in self.receive_messages()]

    def receive_messages(self) -> list[Any]:
        self._unpacker.feed(_received(self.socket))
        messages = list(self._unpacker)
        for message in messages:
            if message[2] is not None:
                raise RefusedError(f"lockd: {message[2]}")
        return messages

    def call(self, method: str, params: dict[str, Any]) -> Any:
        self.send(self.encode(0, method, params))
        while not (messages := self.receive_messages()):
            pass
        return messages[0][3]

    def close(self) -> None:
        self.socket.close()


class VirtlockdWire:
    """Speaks libvirt's RPC to virtlockd, or to lockd in its place.

    virtlockd kills the owner of a connection that ends with locks held: end virtlockd
    before closing a wire that may hold some.
    """

    _HEADER: Final = struct.Struct(">7I")  # length .. status
    _PROGRAM: Final = 0x0EA7BEEF
    _VERSION: Final = 1
    _REGISTER: Final = 1
    _ACQUIRE_RESOURCE: Final = 6
    _RELEASE_RESOURCE: Final = 7
    _CREATE_LOCKSPACE: Final = 8
    _AUTOCREATE: Final = 2

    def __init__(self, path: Path, lockspace: Path) -> None:
        self.socket = _connected(path)
        self._lockspace = _xdr_text(str(lockspace))
        self._request = struct.Struct(f">7I{len(self._lockspace)}sI{NAME_BYTES}sI")
        self._unread = b""
        self._call(self.encode_register(os.getpid()))
        create = self._lockspace + struct.pack(">I", 0)
        self._call(self._encode_call(self._CREATE_LOCKSPACE, create))

    @classmethod
    def encode_register(cls, pid: int) -> bytes:
        """Encodes the call that says for which process a connection acts."""
        name = _xdr_text("benchmark")
        payload = os.urandom(16) + name + struct.pack(">III", 1, pid, 0)
        return cls._encode_call(cls._REGISTER, payload)

    def encode_acquire(self, name: str, serial: int) -> bytes:
        return self._encode(self._ACQUIRE_RESOURCE, serial, name, self._AUTOCREATE)

    def encode_release(self, name: str, serial: int) -> bytes:
        return self._encode(self._RELEASE_RESOURCE, serial, name, 0)

    def send(self, requests: bytes) -> None:
        self.socket.sendall(requests)

    def receive(self) -> list[int]:
        unread = self._unread + _received(self.socket)
        serials, start = [], 0
        while len(unread) - start >= self._HEADER.size:
            length, _, _, _, _, serial, status = self._HEADER.unpack_from(unread, start)
            if len(unread) - start < length:
                break
            if status:
                raise RefusedError(f"virtlockd: {unread[start : start + length]!r}")
            serials.append(serial)
            start += length
        self._unread = unread[start:]
        return serials

    def close(self) -> None:
        self.socket.close()

    def _encode(self, procedure: int, serial: int, name: str, flags: int) -> bytes:
        return self._request.pack(
            self._request.size,
            self._PROGRAM,
            self._VERSION,
            procedure,
            0,  # type: call
            serial,
            0,  # status: ok
            self._lockspace,
            NAME_BYTES,
            name.encode(),
            flags,
        )

    def round_trip(self) -> None:
        """Asks for what changes nothing, and waits for the answer."""
        create = self._lockspace + struct.pack(">I", 0)
        self._call(self._encode_call(self._CREATE_LOCKSPACE, create))

    @classmethod
    def _encode_call(cls, procedure: int, payload: bytes) -> bytes:
        length = cls._HEADER.size + len(payload)
        header = (length, cls._PROGRAM, cls._VERSION, procedure, 0, 0, 0)
        return cls._HEADER.pack(*header) + payload

    def _call(self, request: bytes) -> None:
        self.send(request)
        while not self.receive():
            pass


def one_by_one(wire: Wire, resources: Sequence[str]) -> Round:
    """Returns the round of acquire and release, each after the other's answer."""

    def work(seconds: float) -> float:
        pairs = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            name = resources[pairs % len(resources)]
            wire.send(wire.encode_acquire(name, 0))
            while not wire.receive():
                pass
            wire.send(wire.encode_release(name, 0))
            while not wire.receive():
                pass
            pairs += 1
        return elapsed / pairs

    return work


def in_flight(wire: Wire, resources: Sequence[str]) -> Round:
    """Returns the round that keeps one request per name in flight.

    Each answer is followed by the name's next request; those that are due after one
    wake-up are sent together.
    """

    def work(seconds: float) -> float:
        acquiring = [True] * len(resources)
        flying, pairs = len(resources), 0
        start = time.perf_counter()
        wire.send(b"".join(wire.encode_acquire(n, i) for i, n in enumerate(resources)))
        while flying:
            over = time.perf_counter() - start >= seconds
            requests = []
            for serial in wire.receive():
                if acquiring[serial]:
                    acquiring[serial] = False
                    requests.append(wire.encode_release(resources[serial], serial))
                    continue
                pairs += 1
                if over:
                    flying -= 1
                    continue
                acquiring[serial] = True
                requests.append(wire.encode_acquire(resources[serial], serial))
            if requests:
                wire.send(b"".join(requests))
        return (time.perf_counter() - start) / pairs

    return work


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    # The kernel's own timeout: Python's would cost a poll() before every recv().
    silence = struct.pack("ll", _SILENCE_SECONDS, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
    try:
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(_RECEIVE_BYTES)
    if not data:
        raise RefusedError("the daemon closed the connection")
    return data


def _xdr_text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data + bytes(-len(data) % 4)
