"""virtlockd's side of a conversation: decodes calls, encodes replies.

It has the methods of `protocol.connection`, and knows no socket and no lock. A message
is a length that includes itself, a header, and a payload in XDR (virnetprotocol.x):

    length, program, version, procedure, type, serial, status: four bytes each

A reply repeats the serial of its call. The sender chooses serials and may use one
twice, so the connection numbers calls itself.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from lockd.errors import CodedError, ProtocolError
from lockd.libvirt import errors
from lockd.libvirt.errors import RemoteError, rpc_error
from lockd.libvirt.procedures import (
    PROGRAM,
    VERSION,
    decode_args,
    is_procedure,
)
from lockd.libvirt.xdr import XdrError

MAX_MESSAGE_BYTES: Final = 28 + 2 * (4 + 65_536) + 4
"""The longest valid call: two strings of maximal length, and flags.

libvirt itself accepts 32 MiB."""

CALL: Final = 0
REPLY: Final = 1
MESSAGE: Final = 2
CALL_WITH_FDS: Final = 4
"""Types of messages (virNetMessageType)."""

OK: Final = 0
ERROR: Final = 1

KEEPALIVE: Final = (0x6B656570, 1)
PING: Final = 1
PONG: Final = 2
"""Program, version and procedures with which a client asks whether lockd is alive."""

_LENGTH: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">IIIiiII")

Plain = dict[str, Any]


class MessageHeader:
    """The header of a message (virnetprotocol.x)."""

    def __init__(
        self,
        length: int,
        program: int,
        version: int,
        procedure: int,
        type_: int,
        serial: int,
        status: int,
    ) -> None:
        self.length = length
        self.program = program
        self.version = version
        self.procedure = procedure
        self.type = type_
        self.serial = serial
        self.status = status

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int, int]:
        """Its numbers as they are in a message."""
        call = self.program, self.version, self.procedure
        return self.length, *call, self.type, self.serial, self.status


class Call:
    """A call of a known procedure with valid arguments.

    Attributes:
        number: with it the call is answered.
        procedure: its procedure.
        args: the arguments (`libvirt.arguments`).
    """

    def __init__(self, number: int, procedure: int, args: Any) -> None:
        self.number = number
        self.procedure = procedure
        self.args = args


class Connection:
    """One conversation.

    Args:
        on_error: called with the code of each error that is sent.

    Attributes:
        greeted: always true: errors carry facts, which decide how they are encoded.
    """

    greeted = True

    def __init__(self, on_error: Callable[[str], None] = lambda code: None) -> None:
        self._on_error = on_error
        self._incoming = bytearray()
        #: The position in the stream up to which messages are decoded.
        self._decoded = 0
        #: The headers of the unanswered calls.
        self._calls: dict[int, MessageHeader] = {}
        self._last_number = 0
        self._outgoing: list[bytes] = []
        self.outgoing_bytes = 0

    def receive(self, data: bytes) -> Iterator[Call]:
        """Takes received bytes. Returns the calls that they complete.

        The caller must answer each call, sooner or later, and exhaust the iterator.

        Raises:
            ProtocolError: the conversation has ended. Send what is left, and close.
        """
        if not self._incoming and len(data) >= _HEADER.size:
            header = _header_of(data)
            if header.length == len(data) <= MAX_MESSAGE_BYTES and header.type == CALL:
                # As usual: one call, whole and alone.
                self._decoded += len(data)
                call = self._understand(header, data[_HEADER.size :])
                return iter(() if call is None else (call,))
        return self._receive(data)

    def _receive(self, data: bytes) -> Iterator[Call]:
        self._incoming += data
        while (message := self._next_message()) is not None:
            header = _header_of(message)
            call = self._understand(header, message[_HEADER.size :])
            if call is not None:
                yield call

    def _next_message(self) -> bytes | None:
        """Returns the next complete message; None if it is incomplete."""
        incoming = self._incoming
        if len(incoming) < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(incoming)[0]
        if not _HEADER.size <= length <= MAX_MESSAGE_BYTES:
            incoming.clear()  # a successor would raise the same error
            raise ProtocolError(
                f"a message of {length} bytes: {_HEADER.size} to "
                f"{MAX_MESSAGE_BYTES} are allowed"
            )
        if len(incoming) < length:
            return None
        message = bytes(incoming[:length])
        del incoming[:length]
        self._decoded += length
        return message

    def _understand(self, header: MessageHeader, payload: bytes) -> Call | None:
        """Returns the call in a message. Answers a message without one."""
        if header.type == MESSAGE and (header.program, header.version) == KEEPALIVE:
            self._keep_alive(header)
            return None
        if header.type == CALL_WITH_FDS:
            payload = _without_descriptors(payload)
        elif header.type != CALL:
            return None  # virtlockd does not answer it either
        try:
            _check_procedure(header)
            args = decode_args(header.procedure, payload)
        except XdrError:
            error = rpc_error("Unable to decode message payload")
        except RemoteError as refusal:
            error = refusal
        else:
            self._last_number += 1
            self._calls[self._last_number] = header
            return Call(self._last_number, header.procedure, args)
        self._reply(header, ERROR, error.encode())
        return None

    def _keep_alive(self, header: MessageHeader) -> None:
        if header.procedure == PING:
            self._send(*KEEPALIVE, PONG, MESSAGE, 0, OK)

    # Answers.

    def greet(self) -> None:
        """Does nothing: nobody greets virtlockd."""

    def send_result(self, number: int, result: Any = None) -> None:
        """Answers a call. No procedure returns a result."""
        self._reply(self._calls.pop(number), OK, b"")

    def send_error(self, number: int | None, error: CodedError) -> None:
        """Answers a call with an error. Does nothing without a number."""
        if number is None:
            return
        self._on_error(error.code)
        header = self._calls.pop(number)
        found = errors.remote(error, header.procedure)
        if found is None:
            self._reply(header, OK, b"")
        else:
            self._reply(header, ERROR, found.encode())

    def send_notification(self, method: str, params: Plain) -> None:
        """Does nothing: virtlockd sends no notifications."""

    def send_encoded(self, message: bytes) -> None:
        """Does nothing: virtlockd sends no notifications."""

    def _reply(self, header: MessageHeader, status: int, payload: bytes) -> None:
        self._send(
            header.program,
            header.version,
            header.procedure,
            REPLY,
            header.serial,
            status,
            payload,
        )

    def _send(
        self,
        program: int,
        version: int,
        procedure: int,
        type_: int,
        serial: int,
        status: int,
        payload: bytes = b"",
    ) -> None:
        length = _HEADER.size + len(payload)
        header = _HEADER.pack(
            length, program, version, procedure, type_, serial, status
        )
        self._outgoing.append(header + payload)
        self.outgoing_bytes += length

    def data_to_send(self) -> bytes:
        """Returns everything that is to be written to the socket. Write all of it."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self.outgoing_bytes = 0
        return data

    # For a successor of this daemon.

    @property
    def begun_at(self) -> int:
        """The position in the stream where the incomplete or next message begins."""
        return self._decoded

    @property
    def has_partial(self) -> bool:
        """Whether an incomplete message has been received."""
        return bool(self._incoming)

    @property
    def partial_bytes(self) -> int:
        """Bytes received of the incomplete message."""
        return len(self._incoming)

    def dump(self) -> Plain:
        """Returns the state for `load`: half a message, and the unanswered calls."""
        calls = [[number, *header.numbers] for number, header in self._calls.items()]
        return {
            "partial": bytes(self._incoming),
            "calls": calls,
            "last_number": self._last_number,
        }

    def load(self, data: Plain) -> None:
        """Restores the state that `dump` returned."""
        self._incoming += data["partial"]
        self._calls = {number: MessageHeader(*rest) for number, *rest in data["calls"]}
        self._last_number = data["last_number"]


def _header_of(message: bytes) -> MessageHeader:
    length, program, version, procedure, type_, serial, status = _HEADER.unpack_from(
        message
    )
    return MessageHeader(length, program, version, procedure, type_, serial, status)


def _without_descriptors(payload: bytes) -> bytes:
    """Returns the payload after the number of descriptors, which must be 0."""
    if payload[: _LENGTH.size] != bytes(_LENGTH.size):
        raise ProtocolError("a call with descriptors: no procedure takes any")
    return payload[_LENGTH.size :]


def _check_procedure(header: MessageHeader) -> None:
    """Raises `RemoteError` if the program or the procedure is unknown."""
    if header.program != PROGRAM or header.version != VERSION:
        raise rpc_error(
            f"Cannot find program {header.program} version {header.version}"
        )
    if header.status != OK:
        raise rpc_error(f"Unexpected message status {header.status}")
    if not is_procedure(header.procedure):
        raise rpc_error(f"unknown procedure: {header.procedure}")
