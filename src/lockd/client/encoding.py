"""Encodes requests, decodes messages, and turns errors into exceptions.

It rejects requests for which the daemon would close the connection.
"""

from collections.abc import Mapping

import msgpack

from lockd.client.strands import LoneStrand, Strand
from lockd.errors import InvalidRequestError, LockdError, error_for_code
from lockd.hints import Any, Final
from lockd.protocol.codec import (
    MAX_ANSWER_BYTES,
    MAX_ARRAY_ELEMENTS,
    MAX_MAP_ENTRIES,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    MAX_TEXT_BYTES,
    REQUEST,
    nesting,
)

_FLAT: Final = frozenset({str, int, float, bool, type(None), Strand, LoneStrand})
"""A request with values of these types only, and with no more bytes than a text may
have, exceeds no limit of protocol 3.1."""

_AROUND: Final = 3
"""The nesting depth of parameters in a message: a map, in an array, in the message."""

_WISHED: Final = ("max_waiting", "outcome", "whole", "max_hold", "wanted", "slots")
"""The parameters that a program sends only on request, and that a daemon of the same
protocol may be too old to know."""

YOUNG: Final = (*_WISHED, "strand", "fencing_token")
"""All that such a daemon may not know."""

_NOTHING: Final[Mapping[str, Any]] = {}


def encode(
    msgid: int, method: str, params: dict[str, Any], *, checked: bool = False
) -> bytes:
    """Encodes a request.

    Args:
        msgid: its number.
        method: the method.
        params: the parameters.
        checked: whether each of them alone is known to be within the limits.

    Raises:
        InvalidRequestError: the parameters cannot be sent.
    """
    try:
        data: bytes = _pack((REQUEST, msgid, method, (params,)))
    except (TypeError, ValueError, OverflowError) as error:
        for name, value in params.items():
            _check_value(name, value)
        raise InvalidRequestError(f"the request cannot be sent: {error}") from None
    if not (len(data) <= MAX_TEXT_BYTES and (checked or _is_flat(params))):
        # protocol 3.2: bytes that exceed a limit would end the connection, and release
        # all its locks.
        _check_map("the request", params)
        for name, value in params.items():
            _check_value(name, value)
        if len(data) > MAX_MESSAGE_BYTES:
            raise InvalidRequestError(
                f"the request has {len(data)} bytes, at most {MAX_MESSAGE_BYTES} "
                "are allowed: send less in one"
            )
    return data


def encode_rest(method: str, params: dict[str, Any]) -> bytes:
    """Encodes what follows the number of a request, to send it more than once.

    Args: as for `encode`. Each of the parameters is known to be within the limits.
    """
    return encode(0, method, params, checked=True).removeprefix(_START + _pack(0))


def with_number(msgid: int, rest: bytes) -> bytes:
    """Returns a request of which the rest is encoded already."""
    number: bytes = _pack(msgid)
    return _START + number + rest


def _is_flat(params: dict[str, Any]) -> bool:
    types = map(type, params.values())
    return len(params) <= MAX_MAP_ENTRIES and _FLAT.issuperset(types)


def refusal(error: list[Any], params: Mapping[str, Any] = _NOTHING) -> LockdError:
    """Returns the exception for the error of a response (protocol 4.1).

    Args:
        error: the error.
        params: the parameters of the request.
    """
    code, _, sentence = error[1].partition(": ")
    for name in YOUNG if code == "invalid" else ():
        unknown = (f"there is no `{name}`", f"there is no parameter `{name}`")
        if name in params and any(words in sentence for words in unknown):
            sentence = (
                f"the daemon is older than this program, and does not know `{name}`: "
                "update lockd"
            )
            if name in _WISHED:
                sentence += ", or do without it"
    return error_for_code(code, sentence or code, error[2] if len(error) > 2 else None)


def cut(
    data: bytes, *, again: bool = True
) -> tuple[list[Any], bytes, Exception | None]:
    """Returns the messages in a stream, its incomplete end, and the first error.

    Args:
        data: the stream.
        again: whether to try a second time after an error.
    """
    unpacker = _idle_unpackers.pop() if _idle_unpackers else _make_unpacker()
    end = unpacker.tell() + len(data)
    messages: list[Any] = []
    try:
        unpacker.feed(data)
        while (start := unpacker.tell()) < end:
            messages.append(unpacker.unpack())
    except msgpack.OutOfData:
        return messages, data[start - end :], None
    except Exception as error:  # any error loses the stream; those before it count
        if again and cut(data, again=False)[2] is None:
            # The bytes are valid: a signal handler raised while they were read.
            raise
        return messages, b"", error
    _idle_unpackers.append(unpacker)
    return messages, b"", None


def _make_unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        strict_map_key=False,
        # The daemon names what others have told it: a command line may be any bytes.
        unicode_errors="surrogateescape",
        max_buffer_size=MAX_ANSWER_BYTES,
        max_ext_len=0,
    )


_pack: Final = msgpack.Packer(unicode_errors="surrogateescape").pack

_START: Final[bytes] = _pack((REQUEST, 0, "", ()))[:2]
"""What comes before the number of a request."""

#: Unpackers that hold no bytes, for reuse: to create one takes long.
_idle_unpackers: Final[list[msgpack.Unpacker]] = []


def _check_value(name: str, value: Any) -> None:
    """Checks that a parameter can be sent (protocol 3.1)."""
    if nesting(value) > MAX_NESTING - _AROUND:
        raise InvalidRequestError(
            f"{name} is nested too deep, at most {MAX_NESTING - _AROUND} are allowed"
        )
    level = [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                _check_map(name, item)
                inner += item.values()
            elif isinstance(item, list | tuple):
                _check_size(name, len(item), "elements", MAX_ARRAY_ELEMENTS)
                inner += item
            else:
                _check_single(name, item)
        level = inner


def _check_map(name: str, value: dict[Any, Any]) -> None:
    _check_size(name, len(value), "entries", MAX_MAP_ENTRIES)
    for key in value:
        if not isinstance(key, str):
            raise InvalidRequestError(
                f"{name} has a key that is no text, but of type {type(key).__name__}"
            )
        _check_single(name, key)


def _check_single(name: str, value: Any) -> None:
    if isinstance(value, str | bytes | bytearray | memoryview):
        size = len(value)
        if isinstance(value, str):
            try:
                size = len(value.encode(errors="surrogateescape"))
            except UnicodeEncodeError:
                raise InvalidRequestError(f"{name} is not UTF-8") from None
        _check_size(name, size, "bytes", MAX_TEXT_BYTES)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise InvalidRequestError(
                f"{name} must be an integer from -2^63 to 2^64-1, not one of "
                f"{value.bit_length()} bits"
            )
    elif not (value is None or isinstance(value, float)):
        raise TypeError(
            f"{name} must be text, bytes, a number, True, False, None, a list or a "
            f"dict, not {type(value).__name__}"
        )


def _check_size(name: str, size: int, of: str, most: int) -> None:
    if size > most:
        raise InvalidRequestError(f"{name} has {size} {of}, at most {most} are allowed")
