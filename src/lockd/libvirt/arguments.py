"""The arguments of virtlockd's procedures as values (lock_protocol.x).

They are apart from their decoders because those are compiled.
"""

from msgspec import Struct


class RegisterArgs(Struct, frozen=True, gc=False):
    """The owner for whom a connection acts; `uuid` has its usual form."""

    uuid: str
    name: str
    id: int
    pid: int
    flags: int


class RestrictArgs(Struct, frozen=True, gc=False):
    """Flags only."""

    flags: int


class LockspaceArgs(Struct, frozen=True, gc=False):
    """A lockspace, by its directory; CREATE_LOCKSPACE has no flags."""

    path: str
    flags: int = 0


class ResourceArgs(Struct, frozen=True, gc=False):
    """A resource.

    `path` is the directory of its lockspace, or empty for direct paths.
    """

    path: str
    name: str
    flags: int
