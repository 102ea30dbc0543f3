"""Turns requests into bytes, and refusals into exceptions.

What the daemon would close the connection for is refused here, before it is sent.
"""

from typing import Any, Final

from lockd.errors import InvalidRequestError, LockdError, ProtocolError, error_for_code
from lockd.protocol.codec import (
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    Decoder,
    Encoder,
    nesting,
)

#: A request of flat parameters that is shorter breaks no limit of protocol 3.1.
_SURELY_SMALL: Final = 64


class RequestEncoder:
    """Encodes the requests of one connection."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def encode(self, msgid: int, method: str, params: dict[str, Any]) -> bytes:
        """Encodes a request.

        Raises:
            InvalidRequestError: the parameters cannot be sent.
        """
        try:
            data = self._encoder.request(msgid, method, params)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequestError(f"the request cannot be sent: {error}") from None
        nested = any(isinstance(x, list | tuple | dict) for x in params.values())
        if nested or len(data) > _SURELY_SMALL:
            _check_limits(data)
        return data


def refusal(error: list[Any]) -> LockdError:
    """Returns the exception that the error of a response stands for (protocol 4.1)."""
    code, _, sentence = error[1].partition(": ")
    return error_for_code(code, sentence or code, error[2] if len(error) > 2 else None)


def _check_limits(data: bytes) -> None:
    # protocol 3.2: bytes that break a limit would cost the connection, and every lock
    # that it holds.
    try:
        (message,) = Decoder(MAX_MESSAGE_BYTES).receive(data)
    except ProtocolError as error:
        raise InvalidRequestError(f"the request is too large: {error}") from None
    if nesting(message) > MAX_NESTING:
        raise InvalidRequestError(f"the request is nested deeper than {MAX_NESTING}")
