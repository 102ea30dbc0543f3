"""All exceptions of lockd. Each has one cause that a caller may handle differently.

Each with its code, and builtin exceptions that it also is::

    LockdError
      ProtocolError             the conversation is broken (code "protocol")
      ConnectionLostError       ConnectionError: the daemon is gone or unreachable
      ForkedSessionError        a forked child used an object of its parent
      WrongTaskError            RuntimeError: the object of another event loop or task
      MissingPartError          ImportError: a part of lockd is not installed
      LockLostError             a held lock was lost
      ConfigError               ValueError: the configuration cannot be used
      InternalError             lockd broke one of its laws (code "internal")
      RequestError              the daemon rejected one request; the connection lives
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

Codes never change. The leaves also inherit the builtin exception that scripts already
catch. `error_for_code` returns the exception for a code. `facts` has the facts of an
error, as docs/reference/protocol.md describes them.
"""

from collections.abc import Mapping

from lockd.hints import Any, ClassVar


class LockdError(Exception):
    """The base of all exceptions that lockd raises on purpose."""


class ConnectionLostError(LockdError, ConnectionError):
    """Raised when the daemon cannot be reached, or its connection has ended.

    All locks of the connection are then lost. A body that a lock guards gets
    `LockLostError` instead.
    """


class ForkedSessionError(LockdError):
    """Raised in a forked child that uses the client or lock of its parent.

    The parent keeps its locks. The child must open a connection of its own.
    """


class WrongTaskError(LockdError, RuntimeError):
    """Raised when a task uses an object of another event loop, or of another task.

    An async client belongs to the loop that opened it. The task that entered a cancel
    scope must leave it.
    """


class MissingPartError(LockdError, ImportError):
    """Raised when a part of lockd is used that is not installed.

    `pip install lockd` installs the client for threads alone.
    """


class LockLostError(LockdError):
    """Raised when a lock was lost: it ended, but its owner has not released it.

    `cause` has the cause: "broken" (by an admin, or by the daemon where the lockspace
    says so), "owner_died" or "disconnected".
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
    """The base of the exceptions that cross the wire: `code`, a sentence, `facts`."""

    code: ClassVar[str]

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.facts: Mapping[str, Any] = facts or {}

    def __str__(self) -> str:
        return self.message


class ProtocolError(CodedError):
    """Raised when bytes or messages break the protocol, so that the connection ends.

    `InvalidRequestError`, in contrast, rejects one request and keeps the connection.
    """

    code = "protocol"


class InternalError(CodedError):
    """Raised when lockd broke one of its laws. This is a defect: report it."""

    code = "internal"


class RequestError(CodedError):
    """Raised when the daemon rejects one request; nothing else is affected."""

    code = "unknown"


class BusyError(RequestError):
    """Raised when a request that must not wait finds a holder or a waiter."""

    code = "busy"


class AcquireTimeoutError(RequestError, TimeoutError):
    """Raised when the lock was not granted within the timeout of the request."""

    code = "timeout"


class RequestCancelledError(RequestError):
    """Raised when the session of a waiting request has cancelled it."""

    code = "cancelled"


class DeadlockError(RequestError):
    """Raised at once when waiting would close a cycle, which is in `facts["cycle"]`."""

    code = "deadlock"


class AlreadyHeldError(RequestError):
    """Raised when the same thread or task already holds the resource or waits for it.

    For clients without strands: when the same owner does.
    """

    code = "already_held"


class NotHeldError(RequestError):
    """Raised when a release or convert names a lock that the owner does not hold."""

    code = "not_held"


class NotFoundError(RequestError, LookupError):
    """Raised when a lockspace, file, session or grant does not exist."""

    code = "not_found"


class AlreadyExistsError(RequestError):
    """Raised when an object to create already exists."""

    code = "exists"


class InUseError(RequestError):
    """Raised when an object to delete or change is in use."""

    code = "in_use"


class DeniedError(RequestError, PermissionError):
    """Raised when the peer has no right to do this."""

    code = "denied"

    __str__ = CodedError.__str__


class RestrictedError(RequestError, PermissionError):
    """Raised when the session has given up this right with `restrict`."""

    code = "restricted"

    __str__ = CodedError.__str__


class InvalidRequestError(RequestError, ValueError):
    """Raised when a request has invalid parameters. The connection stays open."""

    code = "invalid"


class LimitError(RequestError):
    """Raised when a configured limit is reached; the sentence names it."""

    code = "limit"


class UnavailableError(RequestError):
    """Raised when the daemon or lockspace cannot serve at the moment."""

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
"""The exception class of each code."""


def error_for_code(
    code: str, message: str, facts: Mapping[str, Any] | None = None
) -> CodedError:
    """Returns the exception for a code; a `RequestError` if the code is unknown."""
    return ERRORS_BY_CODE.get(code, RequestError)(message, facts)
