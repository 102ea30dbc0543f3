"""The words of lockd as types: each has one meaning, on the wire and in the code.

Nothing here knows how a lock is taken; every other room may import this one.
"""

from typing import Final, Literal, NamedTuple

Mode = Literal["exclusive", "shared"]
EXCLUSIVE: Final = "exclusive"
SHARED: Final = "shared"

OnDisconnect = Literal["release", "kill"]
"""What happens to the process of a session that ends while it holds locks."""

Until = Literal["either", "both"]
"""When what a registered process holds ends: with the process or by the session that
registered it, whichever is first; or when the process is dead and that session has
released it or ended, too."""

Kind = Literal["memory", "directory", "direct"]
"""How the resources of a lockspace are anchored."""

Create = bool | Literal["temporary"] | None
"""Whether a lock file that is missing is made; None for what is usual in its lockspace.
One that was made goes with its last holder; a temporary one goes even if it was there
before (AUTOCREATE of virtlockd)."""

DEFAULT_LOCKSPACE: Final = "default"
DIRECT_LOCKSPACE: Final = "direct"


class ResourceKey(NamedTuple):
    """The full name of the thing that is locked."""

    lockspace: str
    resource: str

    def __str__(self) -> str:
        if self.lockspace in (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE):
            return self.resource
        return f"{self.lockspace}:{self.resource}"


class OutsideHolder(NamedTuple):
    """Who locks an anchor that somebody else wants, as far as that is known.

    Attributes:
        pid, command: a process outside lockd, as the kernel tells; or of `key`.
        key: what lockd itself has anchored there, under another name of the file.
    """

    mode: Mode
    pid: int | None = None
    command: str | None = None
    key: ResourceKey | None = None
