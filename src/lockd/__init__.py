"""A lock daemon for Linux hosts, and its clients.

`lockd.connect()` opens a session for threads; `lockd.aio.connect()` one for trio and
asyncio. The async client is loaded when it is first asked for.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from lockd.client.blocking import Client, connect
from lockd.client.core import Grant
from lockd.client.locks import Acquired, Lock
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
)
from lockd.names import canonical_path, hashed_name
from lockd.terms import EXCLUSIVE, SHARED

if TYPE_CHECKING:
    from lockd.client import aio

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
    "aio",
    "canonical_path",
    "connect",
    "hashed_name",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        import lockd.client.aio

        return lockd.client.aio
    raise AttributeError(f"module 'lockd' has no attribute {name!r}")
