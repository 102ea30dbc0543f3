"""A lock daemon for Linux hosts, and its clients.

`lockd.connect()` opens a session for threads; `lockd.aio.connect()` one for trio and
asyncio. A client is loaded when it is first asked for: the daemon needs none.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from lockd.errors import (
    AcquireTimeoutError,
    AlreadyExistsError,
    AlreadyHeldError,
    AnchorError,
    BusyError,
    ConfigError,
    ConnectionLostError,
    DeadlockError,
    DeniedError,
    ForkedSessionError,
    InternalError,
    InUseError,
    InvalidRequestError,
    LimitError,
    LockdError,
    LockLostError,
    NotFoundError,
    NotHeldError,
    ProtocolError,
    RequestCancelledError,
    RequestError,
    RestrictedError,
    UnavailableError,
    UnknownMethodError,
    WrongTaskError,
)
from lockd.names import canonical_path, hashed_name
from lockd.terms import EXCLUSIVE, SHARED

if TYPE_CHECKING:
    from lockd.client import aio
    from lockd.client.blocking import Client, connect
    from lockd.client.grants import Grant
    from lockd.client.locks import Acquired, Lock

_MODULES: Final = {
    "Client": "lockd.client.blocking",
    "connect": "lockd.client.blocking",
    "Grant": "lockd.client.grants",
    "Acquired": "lockd.client.locks",
    "Lock": "lockd.client.locks",
}

__all__ = [
    "EXCLUSIVE",
    "SHARED",
    "AcquireTimeoutError",
    "Acquired",
    "AlreadyExistsError",
    "AlreadyHeldError",
    "AnchorError",
    "BusyError",
    "Client",
    "ConfigError",
    "ConnectionLostError",
    "DeadlockError",
    "DeniedError",
    "ForkedSessionError",
    "Grant",
    "InUseError",
    "InternalError",
    "InvalidRequestError",
    "LimitError",
    "Lock",
    "LockLostError",
    "LockdError",
    "NotFoundError",
    "NotHeldError",
    "ProtocolError",
    "RequestCancelledError",
    "RequestError",
    "RestrictedError",
    "UnavailableError",
    "UnknownMethodError",
    "WrongTaskError",
    "aio",
    "canonical_path",
    "connect",
    "hashed_name",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("lockd.client.aio")
    if name in _MODULES:
        found = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return found
    raise AttributeError(f"module 'lockd' has no attribute {name!r}")
