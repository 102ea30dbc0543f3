"""Finds what a request names, as far as its peer may know of it."""

from collections.abc import Callable, Mapping

from lockd.daemon.clients.access import Access, Operation, not_there
from lockd.daemon.clients.peer import Peer
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import Lockspace
from lockd.terms import DEFAULT_LOCKSPACE, ResourceKey


class Finder:
    """Knows lockspaces and resources by their names.

    Args:
        access: who may do what.
        lockspaces: all there are, by name.
    """

    def __init__(
        self,
        engine: LockEngine,
        access: Access,
        lockspaces: Mapping[str, Lockspace],
    ) -> None:
        self._engine = engine
        self._access = access
        self._lockspaces = lockspaces

    def lockspace(
        self, peer: Peer, name: str | None, operation: Operation
    ) -> Lockspace:
        """Returns a lockspace in which a peer may do something.

        Raises:
            RequestError: there is none, or it may not.
        """
        if name is None:
            name = DEFAULT_LOCKSPACE
        self._access.check(peer, operation, name)
        return self._lockspaces[name]

    def lockspace_of_holder(self, peer: Peer, name: str | None) -> Lockspace:
        """Returns a lockspace in which a peer may have locks, if only from before."""
        if name is None:
            name = DEFAULT_LOCKSPACE
        if not self._access.knows(peer, name):
            held = self._engine.grants_of(peer.session)
            if all(grant.key.lockspace != name for grant in held):
                raise not_there(peer, name)
        return self._lockspaces[name]

    def key(
        self, peer: Peer, lockspace: str | None, resource: str, operation: Operation
    ) -> ResourceKey:
        """Returns the full name of a resource with which a peer may do something."""
        space = self.lockspace(peer, lockspace, operation)
        space.check_name(resource)
        return ResourceKey(space.name, resource)

    def known(self, peer: Peer) -> list[Lockspace]:
        """Returns the lockspaces of which a peer may know."""
        every = self._lockspaces.values()
        return [x for x in every if self._access.knows(peer, x.name)]

    def sees(self, peer: Peer) -> Callable[[str], bool]:
        """Returns what tells of each lockspace whether a peer may see what is in it."""
        return lambda name: self._access.may(peer, "list", name)

    def visible(self, peer: Peer, lockspace: str | None) -> Callable[[str], bool]:
        """Returns what tells of each lockspace whether a peer wants and may see it."""
        if lockspace is not None:
            self.lockspace(peer, lockspace, "list")
        sees = self.sees(peer)
        return lambda name: lockspace in (None, name) and sees(name)
