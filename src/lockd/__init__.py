"""A lock daemon for Linux hosts, and its clients.

    lock()          a lock; connects this process to the daemon at its first use
    connect()       opens a session for threads; returns a Client
    aio.connect()   opens one for the tasks of trio or asyncio
    Client          lock(), acquire(), release(), query(), watch(), ...
    Lock            returned by lock() and Client.lock(); works like threading.Lock
    Grant           returned by Client.acquire(): one held lock
    FileLock        works like filelock.FileLock
    EXCLUSIVE, SHARED, SLOT
    canonical_path(), hashed_name()
    LockdError      the base of all exceptions; lockd.errors describes them

See `help(lockd.Client)`. Python loads a client on its first use, because the daemon
needs none.
"""

__version__ = "0.1.0"


from lockd.errors import (
    AcquireTimeoutError as AcquireTimeoutError,
)
from lockd.errors import (
    AlreadyExistsError as AlreadyExistsError,
)
from lockd.errors import (
    AlreadyHeldError as AlreadyHeldError,
)
from lockd.errors import (
    AnchorError as AnchorError,
)
from lockd.errors import (
    BusyError as BusyError,
)
from lockd.errors import (
    ConfigError as ConfigError,
)
from lockd.errors import (
    ConnectionLostError as ConnectionLostError,
)
from lockd.errors import (
    DeadlockError as DeadlockError,
)
from lockd.errors import (
    DeniedError as DeniedError,
)
from lockd.errors import (
    ForkedSessionError as ForkedSessionError,
)
from lockd.errors import (
    InternalError as InternalError,
)
from lockd.errors import (
    InUseError as InUseError,
)
from lockd.errors import (
    InvalidRequestError as InvalidRequestError,
)
from lockd.errors import (
    LimitError as LimitError,
)
from lockd.errors import (
    LockdError as LockdError,
)
from lockd.errors import (
    LockLostError as LockLostError,
)
from lockd.errors import (
    MissingPartError as MissingPartError,
)
from lockd.errors import (
    NotFoundError as NotFoundError,
)
from lockd.errors import (
    NotHeldError as NotHeldError,
)
from lockd.errors import (
    ProtocolError as ProtocolError,
)
from lockd.errors import (
    RequestCancelledError as RequestCancelledError,
)
from lockd.errors import (
    RequestError as RequestError,
)
from lockd.errors import (
    RestrictedError as RestrictedError,
)
from lockd.errors import (
    UnavailableError as UnavailableError,
)
from lockd.errors import (
    UnknownMethodError as UnknownMethodError,
)
from lockd.errors import (
    WrongTaskError as WrongTaskError,
)
from lockd.hints import TYPE_CHECKING, Any, Final
from lockd.names import canonical_path as canonical_path
from lockd.names import hashed_name as hashed_name
from lockd.terms import EXCLUSIVE as EXCLUSIVE
from lockd.terms import SHARED as SHARED
from lockd.terms import SLOT as SLOT

if TYPE_CHECKING:
    from lockd import aio as aio
    from lockd.client.blocking import Client as Client
    from lockd.client.blocking import connect as connect
    from lockd.client.threads.grants import Grant as Grant
    from lockd.client.threads.locks import Acquired as Acquired
    from lockd.client.threads.locks import Lock as Lock
    from lockd.client.threads.process import lock as lock
    from lockd.compat.filelock import FileLock as FileLock

_MODULES: Final = {
    "Client": "lockd.client.blocking",
    "connect": "lockd.client.blocking",
    "Grant": "lockd.client.threads.grants",
    "Acquired": "lockd.client.threads.locks",
    "Lock": "lockd.client.threads.locks",
    "lock": "lockd.client.threads.process",
    "FileLock": "lockd.compat.filelock",
}


def __getattr__(name: str) -> Any:
    module = "lockd.aio" if name == "aio" else _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'lockd' has no attribute {name!r}")
    from importlib import import_module  # not before a client is wanted

    loaded = import_module(module)
    found = globals()[name] = loaded if name == "aio" else getattr(loaded, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, "aio"} - {"TYPE_CHECKING", "Any", "Final"})
