"""Resources that are only names: only the daemon knows that they are locked."""

from typing import Any

from lockd.lockspaces.base import LockFile, Lockspace


class MemoryLockspace(Lockspace):
    """Any names, no anchors: for the programs of one host."""

    kind = "memory"
    anchored = False

    def open_anchor(self, *_: Any, **__: Any) -> LockFile:
        """Never called: memory resources have no anchors."""
        raise AssertionError("a memory lockspace has no anchors")

    def close_anchor(self, resource: str) -> None:
        """Never called: memory resources have no anchors."""
        raise AssertionError("a memory lockspace has no anchors")
