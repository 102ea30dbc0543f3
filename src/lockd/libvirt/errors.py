"""Errors as libvirt encodes them (virterror.h, virnetprotocol.x).

An error is a number, the domain that raised it, and a sentence. libvirt shows the
sentence unchanged, for example in virsh(1).
"""

from enum import IntEnum
from typing import Final

from lockd.errors import CodedError, RequestError
from lockd.libvirt.procedures import (
    CREATE_RESOURCE,
    DELETE_RESOURCE,
    RELEASE_RESOURCE,
)
from lockd.libvirt.xdr import int_, optional_string, uint


class Number(IntEnum):
    """The values of virErrorNumber that virtlockd uses."""

    INTERNAL_ERROR = 1
    INVALID_ARG = 8
    OPERATION_DENIED = 29
    SYSTEM_ERROR = 38
    RPC = 39
    OPERATION_INVALID = 55
    RESOURCE_BUSY = 87


class Domain(IntEnum):
    """The values of virErrorDomain that virtlockd uses."""

    NONE = 0
    RPC = 7
    LOCKSPACE = 51


_LEVEL_ERROR: Final = 2
"""VIR_ERR_ERROR."""

_OPENINGS: Final = {
    Number.INTERNAL_ERROR: "internal error: ",
    Number.INVALID_ARG: "invalid argument: ",
    Number.OPERATION_DENIED: "operation forbidden: ",
    Number.OPERATION_INVALID: "Requested operation is not valid: ",
    Number.RESOURCE_BUSY: "resource busy: ",
}
"""The beginning of libvirt's sentence for a number (virErrorMsg)."""


class RemoteError(RequestError):
    """Raised when a call is refused with a number and domain of libvirt's own.

    Never sent over the native protocol.
    """

    code = "libvirt"

    def __init__(self, number: Number, domain: Domain, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.domain = domain

    def encode(self) -> bytes:
        """Returns it as virNetMessageError, which libvirt's clients raise again."""
        message = _OPENINGS.get(self.number, "") + self.message
        # Surrogates stand for bytes of the client that were not UTF-8.
        text = message.encode("utf-8", "backslashreplace")
        return b"".join(
            (
                int_(self.number),
                int_(self.domain),
                optional_string(text),
                int_(_LEVEL_ERROR),
                uint(0),  # no domain (guest) object
                optional_string(None),
                optional_string(None),
                optional_string(None),
                int_(-1),
                int_(-1),
                uint(0),  # no network object
            )
        )


def rpc_error(message: str) -> RemoteError:
    """Returns the error for a message that is not a known call."""
    return RemoteError(Number.RPC, Domain.RPC, message)


def out_of_order(message: str) -> RemoteError:
    """Returns the error for a call at the wrong time."""
    return RemoteError(Number.OPERATION_INVALID, Domain.RPC, message)


def remote(error: CodedError, procedure: int) -> RemoteError | None:
    """Returns the error that virtlockd would send; None if it would send none."""
    if isinstance(error, RemoteError):
        return error
    if (procedure, error.code) in _NO_ERRORS:
        return None
    number, domain = _NUMBERS.get(error.code, _OTHER)
    if error.code == "not_held" and error.facts.get("holders"):
        number = Number.INTERNAL_ERROR  # somebody else holds it
    elif error.code == "invalid" and procedure == RELEASE_RESOURCE:
        number = Number.RESOURCE_BUSY  # a resource that cannot be locked is not locked
    elif number == Number.SYSTEM_ERROR and procedure == CREATE_RESOURCE:
        domain = Domain.NONE
    return RemoteError(number, domain, error.message)


_NO_ERRORS: Final = {
    (CREATE_RESOURCE, "exists"),
    (DELETE_RESOURCE, "not_found"),
}
"""Errors that virtlockd treats as success."""

_BUSY: Final = (Number.RESOURCE_BUSY, Domain.LOCKSPACE)
_SYSTEM: Final = (Number.SYSTEM_ERROR, Domain.LOCKSPACE)
_OTHER: Final = (Number.INTERNAL_ERROR, Domain.RPC)

_NUMBERS: Final = {
    "busy": _BUSY,
    "already_held": _BUSY,
    "in_use": _BUSY,
    "not_held": _BUSY,
    "not_found": _SYSTEM,
    "denied": _SYSTEM,
    "io": _SYSTEM,
    "unavailable": _SYSTEM,
    "invalid": _SYSTEM,
    "restricted": (Number.OPERATION_DENIED, Domain.RPC),
}
"""The native error codes as numbers and domains."""
