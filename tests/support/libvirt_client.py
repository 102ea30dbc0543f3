"""A client of virtlockd's protocol for tests: blocking, strict, nothing of lockd's own.

Written from libvirt's own descriptions of the wire, virnetprotocol.x and
lock_protocol.x. What a daemon sends must be exactly what they promise.
"""

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

PATIENCE: Final = 20.0
"""Seconds after which an answer that does not come fails the test."""

PROGRAM: Final = 0x0EA7BEEF
VERSION: Final = 1

REGISTER, RESTRICT, NEW, CREATE_RESOURCE = 1, 2, 3, 4
DELETE_RESOURCE, ACQUIRE, RELEASE, CREATE_LOCKSPACE = 5, 6, 7, 8
SHARED, AUTOCREATE = 1, 2
CALL, REPLY, MESSAGE, STREAM, CALL_WITH_FDS, REPLY_WITH_FDS = range(6)
OK, ERROR, CONTINUE = range(3)

HEADER: Final = struct.Struct(">IIIiiIi")  # length, program .. serial, status
_WORD: Final = struct.Struct(">I")
_INT: Final = struct.Struct(">i")
_UUID_BYTES: Final = 16
_TEXT_MAX: Final = 4 * 1024 * 1024


class MalformedError(Exception):
    """Raised when a daemon sends what the protocol does not allow."""


@dataclass(frozen=True)
class LibvirtError:
    """What an error reply says (`virNetMessageError`)."""

    code: int
    domain: int
    message: str | None
    level: int
    str1: str | None
    str2: str | None
    str3: str | None
    int1: int
    int2: int


@dataclass(frozen=True)
class Reply:
    """One message of the daemon, whole."""

    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    error: LibvirtError | None
    raw: bytes


class Xdr:
    """Reads what RFC 4506 describes; refuses everything else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise MalformedError(f"{self._data!r} ends too early")
        self._at += count
        return taken

    def word(self) -> int:
        (value,) = _WORD.unpack(self.take(4))
        return int(value)

    def int(self) -> int:
        (value,) = _INT.unpack(self.take(4))
        return int(value)

    def text(self) -> str:
        length = self.word()
        if length > _TEXT_MAX:
            raise MalformedError(f"a text of {length} bytes")
        text = self.take(length)
        if self.take(-length % 4).strip(b"\0"):
            raise MalformedError("padding that is not zero")
        # An error may repeat what was never UTF-8.
        return text.decode(errors="surrogateescape")

    def is_there(self) -> bool:
        """Whether an optional value follows."""
        flag = self.word()
        if flag > 1:
            raise MalformedError(f"{flag} is no boolean")
        return flag == 1

    def optional_text(self) -> str | None:
        return self.text() if self.is_there() else None

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedError(f"{self._data!r} does not end after {self._at} bytes")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _WORD.pack(len(data)) + data + bytes(-len(data) % 4)


def owner(
    pid: int,
    name: str | bytes = "a guest",
    *,
    id: int = 1,  # noqa: A002 - as virtlockd calls it
    flags: int = 0,
) -> bytes:
    """Returns the arguments of REGISTER."""
    uuid = bytes(range(_UUID_BYTES))
    words = (n & 0xFFFFFFFF for n in (id, pid, flags))
    return uuid + text(name) + b"".join(map(_WORD.pack, words))


def flags(value: int = 0) -> bytes:
    """Returns the arguments of RESTRICT."""
    return _WORD.pack(value & 0xFFFFFFFF)


def resource(lockspace: str | bytes, name: str | bytes, value: int = 0) -> bytes:
    """Returns the arguments of all that is done to a resource."""
    return text(lockspace) + text(name) + flags(value)


def message(
    procedure: int,
    payload: bytes = b"",
    *,
    program: int = PROGRAM,
    version: int = VERSION,
    type: int = CALL,  # noqa: A002 - as virtlockd calls it
    serial: int = 0,
    status: int = OK,
    length: int | None = None,
) -> bytes:
    """Returns a whole message; `length` is what it should be, or a lie."""
    whole = HEADER.size + len(payload) if length is None else length
    header = HEADER.pack(whole, program, version, procedure, type, serial, status)
    return header + payload


def read_error(payload: bytes) -> LibvirtError:
    xdr = Xdr(payload)
    code, domain, said, level = xdr.int(), xdr.int(), xdr.optional_text(), xdr.int()
    if xdr.is_there():
        raise MalformedError("an error about a domain")
    str1, str2, str3 = (xdr.optional_text() for _ in range(3))
    int1, int2 = xdr.int(), xdr.int()
    if xdr.is_there():
        raise MalformedError("an error about a network")
    xdr.end()
    return LibvirtError(code, domain, said, level, str1, str2, str3, int1, int2)


def read_message(raw: bytes) -> Reply:
    """Reads a whole message, which must be a reply as the daemon sends it."""
    _, program, version, procedure, type_, serial, status = HEADER.unpack_from(raw)
    payload = raw[HEADER.size :]
    if status == OK and payload:
        raise MalformedError(f"{payload!r} where nothing should be")
    error = read_error(payload) if status == ERROR else None
    return Reply(program, version, procedure, type_, serial, status, error, raw)


class LibvirtClient:
    """One connection. The daemon takes whoever called connect(2) for its client."""

    def __init__(self, path: str | Path | socket.socket) -> None:
        if isinstance(path, socket.socket):
            self.socket = path
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
            except BaseException:
                self.socket.close()
                raise
        # The kernel's own timeout: Python's would cost a poll() before every recv().
        patience = struct.pack("ll", int(PATIENCE), 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes; that the daemon has closed shows when one receives."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def receive(self) -> Reply | None:
        """Waits for a message; returns None when the daemon has closed."""
        start = self._read(_WORD.size)
        if not start:
            return None
        (length,) = _WORD.unpack(start)
        if not HEADER.size <= length <= _TEXT_MAX:
            raise MalformedError(f"a message of {length} bytes")
        raw = start + self._read(length - _WORD.size)
        if len(raw) != length:
            raise MalformedError(f"{raw!r} ends too early")
        return read_message(raw)

    def call(self, procedure: int, payload: bytes = b"") -> Reply | None:
        """Sends a call and returns its answer, None if there is none but the end."""
        self._serial += 1
        self.send(message(procedure, payload, serial=self._serial))
        reply = self.receive()
        if reply is None:
            return None
        echo = (reply.program, reply.version, reply.procedure, reply.serial, reply.type)
        if echo != (PROGRAM, VERSION, procedure, self._serial, REPLY):
            raise MalformedError(f"{reply} is no answer to {procedure}")
        return reply

    def done(self, procedure: int, payload: bytes = b"") -> bool:
        """Sends a call; returns whether it was granted."""
        reply = self.call(procedure, payload)
        assert reply is not None, "the daemon closed the connection"
        return reply.status == OK

    def register(self, pid: int | None = None, name: str = "a guest") -> None:
        """Registers an owner, which must succeed."""
        assert self.done(REGISTER, owner(os.getpid() if pid is None else pid, name))

    def _read(self, count: int) -> bytes:
        """Reads so many bytes, or fewer if the end comes first."""
        try:
            return self.socket.recv(count, socket.MSG_WAITALL) if count else b""
        except ConnectionResetError:
            return b""
        except BlockingIOError:
            raise TimeoutError(f"no answer within {PATIENCE} seconds") from None
