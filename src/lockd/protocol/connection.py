"""The daemon's side of a conversation: decodes requests, encodes answers.

It knows no socket and no lock. `receive` turns bytes into requests with checked
parameters, and answers malformed messages itself. `send_*` collect answers.
`data_to_send` returns them in one piece.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from lockd.errors import (
    CodedError,
    InvalidRequestError,
    ProtocolError,
    RequestError,
    UnknownMethodError,
)
from lockd.names import is_utf8, plain, quoted
from lockd.protocol.calls import Method, MethodCall
from lockd.protocol.codec import (
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    MAX_TEXT_BYTES,
    NOTIFICATION,
    REQUEST,
    BadMap,
    Decoder,
    nesting,
)
from lockd.protocol.complaints import complaint
from lockd.protocol.heard import HEARD
from lockd.protocol.methods import METHODS, method_of
from lockd.protocol.plain import (
    messages,
    notification,
    plain_request,
    response,
    size_of_first,
)

SHORT: Final = 2_048
"""Up to which size the end of an incomplete message is looked for. Each look begins at
its first byte."""

ALL_METHODS: Final = "docs/reference/protocol.md 6.1"
"""Where errors about methods lead."""

#: The first element of every error: clients expect a kind there (protocol 4.1).
ERROR_KIND = 1

#: The states of `Connection.dump` without half a message, not greeted and greeted.
_BETWEEN_MESSAGES: tuple[dict[str, Any], dict[str, Any]] = (
    {"greeted": False, "partial": b""},
    {"greeted": True, "partial": b""},
)


class Connection:
    """One conversation.

    Args:
        max_message_bytes: the longest message.
        on_error: called with the code of each error that is sent.
        user: the uid of the client; None if it does not matter who it is.

    Attributes:
        greeted: whether the client sent `hello`; its errors then carry facts.
    """

    def __init__(
        self,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        on_error: Callable[[str], None] = lambda code: None,
        user: int | None = None,
    ) -> None:
        self.greeted = False
        self._user = user
        self._on_error = on_error
        self._decoder = Decoder(max_message_bytes)
        #: The decoder's own bytes of an incomplete message.
        self._partial = self._decoder.partial
        #: How many bytes did not pass through the decoder.
        self._plain_bytes = 0
        self._longest_plain = min(MAX_TEXT_BYTES, max_message_bytes)
        self._outgoing: list[bytes] = []
        #: Bytes in `_outgoing`.
        self.outgoing_bytes = 0

    def receive(self, data: bytes) -> Iterator[MethodCall]:
        """Takes received bytes. Returns the requests that they complete.

        The caller must answer each request, sooner or later, and exhaust the iterator.

        Raises:
            ProtocolError: the conversation has ended, and its error has been sent
                (protocol 3.2). Send what is left, and close.
        """
        if not self._partial:
            calls = self._plain_calls(data)
            if calls is not None:  # as usual
                self._plain_bytes += len(data)
                return iter(calls)
        return self._receive(data)

    def _plain_calls(self, message: bytes) -> tuple[MethodCall, ...] | None:
        """Returns the request in a message. Answers one with errors.

        Args:
            message: all of its bytes.

        Returns:
            No request after an error; None if these bytes are not one plain request.
        """
        user = self._user
        if user is not None and len(message) <= self._longest_plain:
            call = HEARD.recall(message, user)
            if call is not None:
                return (call,)
        request = plain_request(message, self._longest_plain)
        if request is None:
            return None
        call = self._understand(request)
        if call is None:
            return ()
        if user is not None:
            HEARD.note(message, user, call)
        return (call,)

    def _receive(self, data: bytes) -> Iterator[MethodCall]:
        done = 0
        try:
            if 0 < len(self._partial) <= SHORT:
                # The decoder completes its message. The next ones may be plain.
                rest = size_of_first(self._partial + data) - len(self._partial)
                if 0 < rest < len(data):
                    yield from self._decoded(data[:rest])
                    data = data[rest:]
            if not self._partial:
                for part in messages(data):
                    calls = self._plain_calls(part)
                    if calls is None:
                        break
                    self._plain_bytes += len(part)
                    done += len(part)
                    if calls:
                        yield calls[0]
            if done < len(data):
                yield from self._decoded(data[done:])
        except ProtocolError as error:
            # A successor that loaded these bytes would raise the same error.
            self._partial.clear()
            self.send_error(None, error)
            raise

    def _decoded(self, data: bytes) -> Iterator[MethodCall]:
        for message in self._decoder.receive(data):
            call = self._understand(message)
            if call is not None:
                yield call

    @property
    def has_partial(self) -> bool:
        """Whether an incomplete message has been received."""
        return bool(self._partial)

    @property
    def partial_bytes(self) -> int:
        """Bytes received of the incomplete message."""
        return len(self._partial)

    @property
    def begun_at(self) -> int:
        """The position in the stream where the incomplete or next message begins."""
        return self._plain_bytes + self._decoder.begun_at

    def dump(self) -> dict[str, Any]:
        """Returns the state for `load`: half a message, and whether it has greeted.

        Nobody may change it: it is the same for all without half a message.
        """
        if not self._partial:
            return _BETWEEN_MESSAGES[self.greeted]
        return {"greeted": self.greeted, "partial": bytes(self._partial)}

    def load(self, data: dict[str, Any]) -> None:
        """Restores the state that `dump` returned."""
        self.greeted = data["greeted"]
        if not data["partial"]:  # as almost always
            return
        for _ in self.receive(data["partial"]):
            raise ValueError("what should be half a message is a whole one")

    def greet(self) -> None:
        """Notes that the client said `hello`."""
        self.greeted = True

    def send_result(self, msgid: int, result: Any = None) -> None:
        """Answers a request with its result."""
        self.send_encoded(response(msgid, None, result))

    def send_error(self, msgid: int | None, error: CodedError) -> None:
        """Answers with an error. `msgid` is None if the message was no request."""
        self._on_error(error.code)
        sentence = f"{error.code}: {plain(error.message)}"
        # protocol 4.1: facts only after hello.
        facts: tuple[Mapping[str, Any], ...] = (error.facts,) if self.greeted else ()
        self.send_encoded(response(msgid, (ERROR_KIND, sentence, *facts), None))

    def send_notification(self, method: str, params: dict[str, Any]) -> None:
        """Sends a notification."""
        self.send_encoded(notification(method, params))

    def send_encoded(self, message: bytes) -> None:
        """Sends an encoded message. Several clients may share a notification."""
        self.outgoing_bytes += len(message)
        self._outgoing.append(message)

    def data_to_send(self) -> bytes:
        """Returns everything that is to be written to the socket. Write all of it."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self.outgoing_bytes = 0
        return data

    def _understand(self, message: Any) -> MethodCall | None:
        """Returns the request in a message. Answers a message without one."""
        try:
            if type(message) is tuple:
                _, msgid, method_name, (given,) = message
                method = METHODS.get(method_name) or _known(method_name)
                return MethodCall(msgid, method, _converted(method, given))
            if type(message) is list and len(message) == 4 and message[0] is REQUEST:
                _, msgid, method_name, params = message
                if type(msgid) is int and 0 <= msgid < 2**32:
                    method = _known(method_name)
                    given = _only_map(method, params)
                    _check_text(method, given)
                    return MethodCall(msgid, method, _converted(method, given))
            if _is_notification(message):
                check_nesting(message)
                return None  # protocol 2.5
            raise InvalidRequestError(
                "this is not a request: send [0, msgid, method, [params]]"
            )
        except RequestError as error:
            check_nesting(message)
            self.send_error(_msgid_of(message), error)
            return None


def check_nesting(message: Any) -> None:
    """Raises `ProtocolError` for a message nested too deep (protocol 3.1).

    No valid request is nested so deep, so only other messages need this check.
    """
    if nesting(message) > MAX_NESTING:
        raise ProtocolError(f"a message is nested deeper than {MAX_NESTING}")


def _known(method_name: Any) -> Method:
    method = method_of(method_name)
    if method is not None:
        return method
    if not isinstance(method_name, str | bytes):
        raise InvalidRequestError(f"the method must be text: {ALL_METHODS}")
    raise UnknownMethodError(
        f"there is no method {_shown(method_name)}: {ALL_METHODS} lists all"
    )


def _only_map(method: Method, params: Any) -> dict[Any, Any]:
    """Returns the map in `params`."""
    if params == []:
        return {}
    if type(params) is not list or len(params) != 1 or type(params[0]) is not dict:
        what = params[0] if isinstance(params, list) and len(params) == 1 else params
        if isinstance(what, BadMap):
            raise InvalidRequestError(f"{method.name}: {what!r}")
        raise InvalidRequestError(
            f"{method.name}: the parameters must be one map in an array: "
            "[{name: value, …}]"
        )
    given: dict[Any, Any] = params[0]
    return given


def _converted(method: Method, given: dict[Any, Any]) -> Any:
    """Returns checked parameters."""
    try:
        return msgspec.convert(given, method.params)
    except ValueError as error:  # also for an integer beyond 64 bits
        cause = error.__cause__
        if isinstance(cause, RequestError):
            sentence = cause.message
        else:
            sentence = complaint(method.params, str(error))
        raise InvalidRequestError(f"{method.name}: {sentence}") from None


def _check_text(method: Method, given: dict[Any, Any]) -> None:
    """Raises `InvalidRequestError` for a text that is not UTF-8 (protocol 3.3)."""
    for name, value in given.items():
        for text in value if type(value) is list else (value,):
            if type(text) is str and not text.isascii() and not is_utf8(text):
                raise InvalidRequestError(f"{method.name}: `{name}` is not UTF-8")


def _is_notification(message: Any) -> bool:
    return (
        isinstance(message, list) and len(message) == 3 and message[0] is NOTIFICATION
    )


def _msgid_of(message: Any) -> int | None:
    if isinstance(message, list | tuple) and len(message) > 1 and message[0] is REQUEST:
        msgid = message[1]
        if type(msgid) is int and 0 <= msgid < 2**32:
            return msgid
    return None


def _shown(name: str | bytes) -> str:
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    return quoted(name)
