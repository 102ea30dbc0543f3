"""Resources that are only names: only the daemon knows that they are locked."""

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
        """Never called: memory resources have no anchors."""
        raise AssertionError("a memory lockspace has no anchors")

    def close_anchor(self, resource: str) -> None:
        """Never called: memory resources have no anchors."""
        raise AssertionError("a memory lockspace has no anchors")
