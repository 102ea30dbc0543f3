"""The terms of lockd as types: each means one thing, on the wire and in the code.

This module knows nothing of locking; every room may import it.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, NamedTuple

Mode = Literal["exclusive", "shared", "slot"]
EXCLUSIVE: Final = "exclusive"
SHARED: Final = "shared"
SLOT: Final = "slot"
"""One of the N numbered places of a resource, beside the holders of the others."""

MOST_SLOTS: Final = 1024
"""The most slots of a resource."""

OnDisconnect = Literal["release", "kill"]
"""What happens to the process of a session that ends with locks held."""

OnOverdue = Literal["notice", "break"]
"""What happens to a lock that is held for too long: it is told, or it is broken."""

Until = Literal["either", "both"]
"""When the locks of a registered process end. "either": with the process, or by the
session that registered it, whichever is first. "both": when the process is dead and
that session has released them or ended."""

WorkOutcome = Literal["ok", "failed", "died"] | None
"""How the work under a lock ended, as the releaser says. "died": a signal ended it.
None: it says nothing."""

Kind = Literal["memory", "directory", "direct"]
"""How the resources of a lockspace are anchored."""

Outside = Literal["file", "byte"]
"""What keeps a file of a direct lockspace from being locked, besides lockd's own table.
"file": any program that has locked any part of the file (`lockspaces.kernel`). "byte":
only a lock on the first byte, as for virtlockd."""

LockedBy = Literal["qemu", "sqlite", "flock", "lease"]
"""How a program has a file: by the bytes of QEMU or SQLite, by flock(2), by a lease."""

Create = bool | Literal["temporary"] | None
"""Whether to create a missing lock file; None for the default of its lockspace. A
created file is removed with its last holder. A temporary one is removed even if it
existed before (AUTOCREATE of virtlockd)."""

DEFAULT_LOCKSPACE: Final = "default"
DIRECT_LOCKSPACE: Final = "direct"


class ResourceKey(NamedTuple):
    """The full name of a resource."""

    lockspace: str
    resource: str

    def __str__(self) -> str:
        if self.lockspace in (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE):
            return self.resource
        return f"{self.lockspace}:{self.resource}"


key_of: Final[Callable[[tuple[str, str]], ResourceKey]] = partial(
    tuple.__new__, ResourceKey
)
"""Makes a `ResourceKey` of a lockspace and a resource, in half the time."""


class OutsideHolder(NamedTuple):
    """The process that locks an anchor which a request wants, as far as it is known.

    Attributes:
        pid, command: a process outside lockd, as the kernel names it; or the holder of
            `key`.
        key: the resource that lockd has anchored in the same file.
        by: how it is locked, if that is known.
        start, length: the locked bytes; a length of None reaches to the end. A start of
            None is no lock on bytes.
    """

    mode: Mode
    pid: int | None = None
    command: str | None = None
    key: ResourceKey | None = None
    by: LockedBy | None = None
    start: int | None = None
    length: int | None = None
