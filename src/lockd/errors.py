"""Every exception of lockd, each with one cause that a caller would treat differently.

    LockdError
      ProtocolError             the conversation is broken (code "protocol")
      ConnectionLostError       ConnectionError: the daemon is gone or not reached
      ForkedSessionError        a forked child used what its parent opened
      WrongTaskError            RuntimeError: what belongs to another event loop or task
      LockLostError             a lock that was held is held no longer
      ConfigError               ValueError: the configuration cannot be used
      InternalError             a law of lockd was broken (code "internal")
      RequestError              the daemon refused one request; the connection goes on
        BusyError               "busy"
        AcquireTimeoutError     "timeout", TimeoutError
        RequestCancelledError   "cancelled"
        DeadlockError           "deadlock"
        AlreadyHeldError        "already_held"
        NotHeldError            "not_held"
        NotFoundError           "not_found", LookupError
        AlreadyExistsError      "exists"
        InUseError              "in_use"
        DeniedError             "denied", PermissionError
        RestrictedError         "restricted", PermissionError
        InvalidRequestError     "invalid", ValueError
        LimitError              "limit"
        UnavailableError        "unavailable"
        AnchorError             "io", OSError
        UnknownMethodError      "unknown_method"

Codes are stable for ever. Leaves also inherit the builtin that scripts already catch.
An exception with a code is found by `error_for_code`; facts that came with a refusal
are in `facts`, in the shape that docs/protocol.md gives them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class LockdError(Exception):
    """The root of every exception that lockd raises on purpose."""


class ConnectionLostError(LockdError, ConnectionError):
    """Raised when the daemon cannot be reached, or its connection has ended.

    What the connection held is lost with it; a body that was guarded by a lock gets
    `LockLostError` instead.
    """


class ForkedSessionError(LockdError):
    """Raised in a forked child that uses the client or lock of its parent.

    The parent keeps its locks. The child must open a connection of its own.
    """


class WrongTaskError(LockdError, RuntimeError):
    """Raised when a task uses what belongs to another event loop, or to another task.

    An async client belongs to the loop in which it was opened, and what was entered
    with a cancel scope has to be left by the same task.
    """


class LockLostError(LockdError):
    """Raised when a lock that was held is held no longer, though nobody released it.

    The cause is in `cause`: "broken" by an admin, "owner_died", "disconnected", ...
    """

    def __init__(
        self,
        message: str,
        *,
        lockspace: str = "",
        resource: str = "",
        fencing_token: int = 0,
        cause: str = "disconnected",
    ) -> None:
        super().__init__(message)
        self.lockspace = lockspace
        self.resource = resource
        self.fencing_token = fencing_token
        self.cause = cause


class ConfigError(LockdError, ValueError):
    """Raised when the configuration, or a file that it names, cannot be used."""


class CodedError(LockdError):
    """The root of the exceptions that cross the wire: `code`, a sentence, `facts`."""

    code: ClassVar[str]

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.facts: Mapping[str, Any] = facts or {}

    def __str__(self) -> str:
        return self.message


class ProtocolError(CodedError):
    """Raised when bytes or messages break the protocol so that the connection ends.

    Unlike `InvalidRequestError`, which refuses one request and keeps the connection.
    """

    code = "protocol"


class InternalError(CodedError):
    """Raised when a law of lockd was broken: this should never happen, report it."""

    code = "internal"


class RequestError(CodedError):
    """Raised when the daemon refuses one request; nothing else is affected."""

    code = "unknown"


class BusyError(RequestError):
    """Raised when a try finds the lock held, or somebody waiting for it."""

    code = "busy"


class AcquireTimeoutError(RequestError, TimeoutError):
    """Raised when the lock was not granted in the time that the request allowed."""

    code = "timeout"


class RequestCancelledError(RequestError):
    """Raised when a waiting request was cancelled by its own session."""

    code = "cancelled"


class DeadlockError(RequestError):
    """Raised at once when waiting would close a cycle; `facts["cycle"]` names it."""

    code = "deadlock"


class AlreadyHeldError(RequestError):
    """Raised when the owner already holds, or already waits for, the resource."""

    code = "already_held"


class NotHeldError(RequestError):
    """Raised when a release or convert names what the owner does not hold."""

    code = "not_held"


class NotFoundError(RequestError, LookupError):
    """Raised when a lockspace, file, session or grant does not exist."""

    code = "not_found"


class AlreadyExistsError(RequestError):
    """Raised when what should be created exists already."""

    code = "exists"


class InUseError(RequestError):
    """Raised when what should be deleted or changed is in use."""

    code = "in_use"


class DeniedError(RequestError, PermissionError):
    """Raised when the peer has no right to do this."""

    code = "denied"

    __str__ = CodedError.__str__


class RestrictedError(RequestError, PermissionError):
    """Raised when the session gave up its rights with `restrict`."""

    code = "restricted"

    __str__ = CodedError.__str__


class InvalidRequestError(RequestError, ValueError):
    """Raised when a request's parameters are wrong; the connection goes on."""

    code = "invalid"


class LimitError(RequestError):
    """Raised when a configured limit is reached; the sentence names it."""

    code = "limit"


class UnavailableError(RequestError):
    """Raised when the lockspace cannot serve just now, through no fault of the peer."""

    code = "unavailable"


class AnchorError(RequestError, OSError):
    """Raised when the file behind a lock fails: disk full, no locks left, I/O error."""

    code = "io"

    __str__ = CodedError.__str__


class UnknownMethodError(RequestError):
    """Raised when the daemon has no such method."""

    code = "unknown_method"


def _coded_errors(root: type[CodedError]) -> dict[str, type[CodedError]]:
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found |= _coded_errors(child)
    return found


ERRORS_BY_CODE = {
    code: error
    for code, error in _coded_errors(CodedError).items()
    if code != "unknown"
}
"""The exception class of each wire code."""


def error_for_code(
    code: str, message: str, facts: Mapping[str, Any] | None = None
) -> CodedError:
    """Returns the exception of a code; a plain `RequestError` if it is not known."""
    return ERRORS_BY_CODE.get(code, RequestError)(message, facts)
