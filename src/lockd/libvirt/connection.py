"""virtlockd's side of a conversation: calls as they come, and how replies look.

Like `protocol.connection`, whose shape it has: knows no socket and no lock. A message
is a length that includes itself, a header, and a payload in XDR (virnetprotocol.x):

    length, program, version, procedure, type, serial, status: four bytes each

A call's serial is repeated in its reply. Calls are numbered here, because a serial is
its sender's affair and may come twice.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from lockd.errors import CodedError, ProtocolError
from lockd.libvirt import errors
from lockd.libvirt.errors import RemoteError, rpc_error
from lockd.libvirt.procedures import PROGRAM, VERSION, Procedure, decode_args
from lockd.libvirt.xdr import XdrError

MAX_MESSAGE_BYTES: Final = 28 + 2 * (4 + 65_536) + 4
"""The longest call there is: two strings as long as they may be, and flags.

libvirt itself would take 32 MiB.
"""

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
"""Program, version and procedures by which a client asks whether we are alive."""

_LENGTH: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">IIIiiII")

Plain = dict[str, Any]


class MessageHeader(Struct, frozen=True, gc=False):
    """What stands before every payload."""

    length: int
    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int


class Call(Struct, frozen=True, gc=False):
    """A call whose arguments are as they should be."""

    number: int
    procedure: Procedure
    args: Any


class Connection:
    """One conversation.

    Args:
        on_error: called with the code of each error that the client is told.

    Attributes:
        greeted: refusals come with their facts, which tell how they are to be coded.
    """

    greeted = True

    def __init__(self, on_error: Callable[[str], None] = lambda code: None) -> None:
        self._on_error = on_error
        self._incoming = bytearray()
        #: How much of the stream is cut into messages.
        self._decoded = 0
        #: The headers of the calls that are not yet answered.
        self._calls: dict[int, MessageHeader] = {}
        self._last_number = 0
        self._outgoing: list[bytes] = []
        self.outgoing_bytes = 0

    def receive(self, data: bytes) -> Iterator[Call]:
        """Takes bytes as they came; yields the calls that they complete.

        You must answer each call, sooner or later, and run the iterator to its end.

        Raises:
            ProtocolError: the conversation is over. Send what there is and close.
        """
        self._incoming += data
        while (message := self._next_message()) is not None:
            call = self._understand(message)
            if call is not None:
                yield call

    def _next_message(self) -> bytes | None:
        """Cuts the next message from what came, if it is complete."""
        incoming = self._incoming
        if len(incoming) < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(incoming)[0]
        if not _HEADER.size <= length <= MAX_MESSAGE_BYTES:
            incoming.clear()  # a successor that got it would meet the same error
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

    def _understand(self, message: bytes) -> Call | None:
        """Returns the call that a message is; answers it if it is none."""
        header = MessageHeader(*_HEADER.unpack_from(message))
        payload = message[_HEADER.size :]
        if header.type == MESSAGE and (header.program, header.version) == KEEPALIVE:
            self._keep_alive(header)
            return None
        if header.type == CALL_WITH_FDS:
            payload = _without_descriptors(payload)
        elif header.type != CALL:
            return None  # virtlockd says nothing to it either
        try:
            procedure = _procedure(header)
            args = decode_args(procedure, payload)
        except XdrError:
            error = rpc_error("Unable to decode message payload")
        except RemoteError as refusal:
            error = refusal
        else:
            self._last_number += 1
            self._calls[self._last_number] = header
            return Call(self._last_number, procedure, args)
        self._reply(header, ERROR, error.encode())
        return None

    def _keep_alive(self, header: MessageHeader) -> None:
        if header.procedure == PING:
            self._send(*KEEPALIVE, PONG, MESSAGE, 0, OK)

    # Answers.

    def greet(self) -> None:
        """Does nothing: nobody greets virtlockd."""

    def send_result(self, number: int, result: Any = None) -> None:
        """Answers a call; no procedure returns anything."""
        self._reply(self._calls.pop(number), OK, b"")

    def send_error(self, number: int | None, error: CodedError) -> None:
        """Refuses a call; without a number there is nobody who could be told."""
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
        """Does nothing: virtlockd tells its clients nothing that they did not ask."""

    def send_encoded(self, message: bytes) -> None:
        """Does nothing, either."""

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
        """Returns everything to be written to the socket; you must write it all."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self.outgoing_bytes = 0
        return data

    # Another connection goes on where this one was.

    @property
    def begun_at(self) -> int:
        """Where in the stream that message begins, or the next one will."""
        return self._decoded

    @property
    def has_partial(self) -> bool:
        """Whether a message has begun that is not complete yet."""
        return bool(self._incoming)

    @property
    def partial_bytes(self) -> int:
        """How much of it has come."""
        return len(self._incoming)

    def dump(self) -> Plain:
        """Returns what `load` needs: half a message, and calls without an answer."""
        calls = [
            [
                number,
                *(getattr(header, name) for name in MessageHeader.__struct_fields__),
            ]
            for number, header in self._calls.items()
        ]
        return {
            "partial": bytes(self._incoming),
            "calls": calls,
            "last_number": self._last_number,
        }

    def load(self, data: Plain) -> None:
        """Goes on where the connection stood that `dump` described."""
        self._incoming += data["partial"]
        self._calls = {number: MessageHeader(*rest) for number, *rest in data["calls"]}
        self._last_number = data["last_number"]


def _without_descriptors(payload: bytes) -> bytes:
    """Returns what follows the number of descriptors, of which we take none."""
    if payload[: _LENGTH.size] != bytes(_LENGTH.size):
        raise ProtocolError("a call with descriptors: no procedure takes any")
    return payload[_LENGTH.size :]


def _procedure(header: MessageHeader) -> Procedure:
    """Returns what a header asks for.

    Raises:
        RemoteError: nothing that there is.
    """
    if (header.program, header.version) != (PROGRAM, VERSION):
        raise rpc_error(
            f"Cannot find program {header.program} version {header.version}"
        )
    if header.status != OK:
        raise rpc_error(f"Unexpected message status {header.status}")
    try:
        return Procedure(header.procedure)
    except ValueError:
        raise rpc_error(f"unknown procedure: {header.procedure}") from None
