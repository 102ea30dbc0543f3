"""Resources that are nothing but names: the daemon itself is the arbiter."""

from lockd.lockspaces.base import LockFile, Lockspace
from lockd.lockspaces.rights import User
from lockd.terms import Create, Mode


class MemoryLockspace(Lockspace):
    """Any names, no anchors: for the programs of one host."""

    kind = "memory"
    anchored = False

    def open_anchor(
        self,
        resource: str,
        mode: Mode,
        *,
        create: Create,
        in_use: bool,
        user: User | None = None,
    ) -> LockFile:
        """Is never asked: nothing here is anchored."""
        raise AssertionError("a memory lockspace has no anchors")

    def close_anchor(self, resource: str) -> None:
        """Is never asked: nothing here is anchored."""
        raise AssertionError("a memory lockspace has no anchors")
