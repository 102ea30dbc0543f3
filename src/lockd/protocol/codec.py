"""Encodes and decodes MessagePack-RPC messages, within limits.

Daemon and client use it. It knows no methods and stores no requests. A decoder that has
raised has lost its position in the stream, so the connection has to end.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import msgpack

from lockd.errors import ProtocolError
from lockd.hints import Any, Final

REQUEST: Final = 0
RESPONSE: Final = 1
NOTIFICATION: Final = 2

# protocol 3.1.
MAX_MESSAGE_BYTES: Final = 65_536
MAX_NESTING: Final = 8
MAX_ARRAY_ELEMENTS: Final = 1_024
MAX_MAP_ENTRIES: Final = 64
MAX_TEXT_BYTES: Final = 16_384

#: The limit of a client for its daemon, which it trusts: listings and metrics are long.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024


class BadMap:
    """Stands for a map in which a key appears twice, or is an array or a map."""

    def __repr__(self) -> str:
        return "a map with a key that appears twice, or is no text"


MOST_IDLE: Final = 16
"""How many unused unpackers are stored for reuse."""

#: Unused unpackers, by the longest array and text that they accept.
_idle_unpackers: defaultdict[tuple[int, int], list[msgpack.Unpacker]] = defaultdict(
    list
)


def _make_unpacker(max_array_elements: int, max_text_bytes: int) -> msgpack.Unpacker:
    return msgpack.Unpacker(
        object_pairs_hook=_map_of_pairs,
        # A wrong key fails one request, not the connection (protocol 3.3).
        strict_map_key=False,
        ext_hook=_no_extension,
        # Text that is not UTF-8 fails one request, not the connection.
        unicode_errors="surrogateescape",
        max_buffer_size=2**31 - 1,  # the decoder limits each message
        max_array_len=max_array_elements,
        max_map_len=MAX_MAP_ENTRIES,
        max_str_len=max_text_bytes,
        max_bin_len=max_text_bytes,
        max_ext_len=0,
    )


class Decoder:
    """Splits a stream of bytes into messages.

    Args:
        max_message_bytes: the longest message. Longer ones raise.
        max_array_elements: the longest array.
        max_text_bytes: the longest text or bin.
    """

    def __init__(
        self,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_array_elements: int = MAX_ARRAY_ELEMENTS,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._bounds = max_array_elements, max_text_bytes
        # Positions in the stream: the end of the received bytes, and of the last
        # message.
        self._received = 0
        self._decoded = 0
        #: The received bytes of an incomplete message.
        self.partial = bytearray()
        #: The unpacker that holds bytes of this stream; the position where it began.
        self._unpacker: msgpack.Unpacker | None = None
        self._origin = 0

    def _take_unpacker(self) -> msgpack.Unpacker:
        """Returns an empty unpacker.

        An unpacker takes 40 KiB, and as long to create as a message takes to decode. So
        only a decoder with half a message has one of its own; all others share.
        """
        idle = _idle_unpackers[self._bounds]
        unpacker = idle.pop() if idle else _make_unpacker(*self._bounds)
        self._unpacker = unpacker
        self._origin = self._decoded - unpacker.tell()
        return unpacker

    @property
    def begun_at(self) -> int:
        """The position in the stream where the incomplete message begins."""
        return self._decoded

    def receive(self, data: bytes) -> Iterator[Any]:
        """Takes received bytes. Yields every message that they complete.

        The caller must exhaust the iterator before the next call.

        Raises:
            ProtocolError: the bytes are not MessagePack, or exceed a limit. All
                messages before them have been yielded.
        """
        unpacker = self._unpacker or self._take_unpacker()
        self._received += len(data)
        try:
            unpacker.feed(data)
            for message in unpacker:
                end = self._origin + unpacker.tell()
                if end - self._decoded > self._max_message_bytes:
                    raise self._too_long()
                self._decoded = end
                yield message
        except ProtocolError:
            raise
        except Exception as error:  # protocol 3.2: any error loses the stream
            reason = str(error) or type(error).__name__
            raise ProtocolError(
                f"these bytes are not MessagePack, {reason}: connect again and send "
                "MessagePack-RPC"
            ) from None
        if self._received != self._decoded:
            self._keep_partial(data)
            return
        self._unpacker = None
        idle = _idle_unpackers[self._bounds]
        if len(idle) < MOST_IDLE:
            idle.append(unpacker)
        if self.partial:
            self.partial.clear()

    def _keep_partial(self, data: bytes) -> None:
        size = self._received - self._decoded
        if size > self._max_message_bytes:
            raise self._too_long()
        self.partial += data
        del self.partial[:-size]

    def _too_long(self) -> ProtocolError:
        return ProtocolError(
            f"a message is longer than {self._max_message_bytes} bytes: "
            "send less in one message (limits.message_bytes)"
        )


class Encoder:
    """Encodes messages."""

    def __init__(self) -> None:
        packer = msgpack.Packer(unicode_errors="surrogateescape")
        self._pack: Callable[[Any], bytes] = packer.pack

    def request(self, msgid: int, method: str, params: dict[str, Any]) -> bytes:
        """Encodes a request: `[0, msgid, method, [params]]`."""
        return self._pack((REQUEST, msgid, method, (params,)))

    def response(
        self, msgid: int | None, error: tuple[object, ...] | None, result: Any
    ) -> bytes:
        """Encodes a response: `[1, msgid, error, result]`."""
        return self._pack((RESPONSE, msgid, error, result))

    def notification(self, method: str, params: dict[str, Any]) -> bytes:
        """Encodes a notification: `[2, method, [params]]`."""
        return self._pack((NOTIFICATION, method, (params,)))


def nesting(value: Any) -> int:
    """Returns the nesting depth of a message, at most `MAX_NESTING` + 1.

    It works breadth first: a hostile message must not cause deep recursion.
    """
    depth, level = 0, [value]
    while level and depth <= MAX_NESTING:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                inner.extend(item)
        if not any(isinstance(item, dict | list | tuple) for item in level):
            break
        depth, level = depth + 1, inner
    return depth


def _map_of_pairs(pairs: list[tuple[Any, Any]]) -> Any:
    try:
        map_ = dict(pairs)
    except TypeError:
        return BadMap()
    # protocol 2.3: neither of two equal keys may win.
    return map_ if len(map_) == len(pairs) else BadMap()


def _no_extension(code: int, data: bytes) -> Any:
    raise ProtocolError(f"a message has an extension type, {code}")
