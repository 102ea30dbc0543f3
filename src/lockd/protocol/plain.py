"""Plain messages, which one call into C decodes or encodes.

`codec` knows all messages, and these are the same in less time. Nobody can tell which
of the two worked on a message.

A plain request has a map of texts, numbers, booleans, nil, and arrays of texts. Almost
all requests are plain. `codec.Decoder` decodes all other messages, and whatever follows
them in the same bytes. It would decode a plain request to the same values:

- The types below contain the limits of protocol 3.1, and no text is longer than its
  request may be.
- A request is not plain if its encoding is longer than it must be. So it has no key
  twice (protocol 2.3).
- Its texts are UTF-8 (protocol 3.3).

An answer is plain if its texts are UTF-8. A command line or the name of a file may be
anything else.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgpack
import msgspec
from msgspec import Meta

from lockd.protocol.codec import (
    MAX_ARRAY_ELEMENTS,
    MAX_MAP_ENTRIES,
    NOTIFICATION,
    RESPONSE,
)
from lockd.protocol.methods import MsgId

_Texts = Annotated[list[str], Meta(max_length=MAX_ARRAY_ELEMENTS)]
_Map = Annotated[
    dict[str, str | int | float | bool | _Texts | None],
    Meta(max_length=MAX_MAP_ENTRIES),
]

PlainRequest = tuple[Literal[0], MsgId, str, tuple[_Map]]
"""`[0, msgid, method, [params]]`. It is a tuple, and no other decoded message is."""

_decode: Final = msgspec.msgpack.Decoder(PlainRequest).decode
_encode: Final = msgspec.msgpack.Encoder().encode
_encode_any: Final = msgpack.Packer(unicode_errors="surrogateescape").pack


def plain_request(message: bytes, longest: int) -> PlainRequest | None:
    """Decodes a plain request.

    Args:
        message: its bytes, and no others.
        longest: how many bytes a request may have; at most `MAX_TEXT_BYTES`.

    Returns:
        The request; None if these bytes are anything else.
    """
    if len(message) > longest:
        return None
    try:
        request = _decode(message)
    except (ValueError, RecursionError):
        return None
    return request if _encode(request) == message else None


def size_of_first(data: bytes | bytearray) -> int:
    """Returns the size of the message with which bytes begin, without decoding it.

    0 if it is incomplete or malformed.
    """
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    try:
        unpacker.skip()
    except (msgpack.OutOfData, ValueError):
        return 0
    size: int = unpacker.tell()
    return size


def messages(data: bytes) -> Iterator[bytes]:
    """Yields the messages with which bytes begin, without decoding them.

    It ends where a message is incomplete or malformed, and if all is one message.
    """
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    start = 0
    try:
        while start < len(data):
            unpacker.skip()
            end: int = unpacker.tell()
            if end - start == len(data):
                return
            yield data[start:end]
            start = end
    except (msgpack.OutOfData, ValueError):
        return


def response(msgid: int | None, error: tuple[object, ...] | None, result: Any) -> bytes:
    """Encodes a response, as `codec.Encoder` does."""
    return _pack((RESPONSE, msgid, error, result))


def notification(method: str, params: dict[str, Any]) -> bytes:
    """Encodes a notification, as `codec.Encoder` does."""
    return _pack((NOTIFICATION, method, (params,)))


def _pack(message: Any) -> bytes:
    try:
        return _encode(message)
    except UnicodeEncodeError:
        packed: bytes = _encode_any(message)
        return packed
