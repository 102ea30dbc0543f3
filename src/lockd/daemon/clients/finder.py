"""Finds the lockspaces and resources that a request names, within the peer's rights."""

from collections.abc import Callable, Mapping, Sequence

from lockd.daemon.clients.access import Access, Operation, not_there
from lockd.daemon.clients.peer import Peer
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import Lockspace
from lockd.terms import DEFAULT_LOCKSPACE, ResourceKey, key_of


class Finder:
    """Finds lockspaces and resources by name.

    Args:
        engine: has the locks.
        access: has the rights.
        lockspaces: all lockspaces by name.
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
        """Returns a lockspace in which a peer may do an operation.

        Raises:
            RequestError: it does not exist, or the peer may not.
        """
        if name is None:
            name = DEFAULT_LOCKSPACE
        self._access.check(peer, operation, name)
        return self._lockspaces[name]

    def lockspace_of_holder(self, peer: Peer, name: str | None) -> Lockspace:
        """Returns a lockspace in which a peer may have locks.

        The rights may have changed since then.

        Raises:
            NotFoundError: it does not exist, or the peer may not know of it and has no
                locks there.
            DeniedError: the same for files, whose lockspace all know.
        """
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
        """Returns the full name of a resource with which a peer may do an operation.

        Raises:
            RequestError: the lockspace does not exist, the peer may not, or the name is
                invalid.
        """
        return self._key(self.lockspace(peer, lockspace, operation), resource)

    def keys(
        self, space: Lockspace, resource: str | None, resources: Sequence[str] | None
    ) -> tuple[ResourceKey, ...]:
        """Returns the full names of one resource, or else of several.

        Raises:
            InvalidRequestError: a name is invalid.
        """
        if resource is not None:
            return (self._key(space, resource),)
        return tuple([self._key(space, name) for name in resources or ()])

    def _key(self, space: Lockspace, resource: str) -> ResourceKey:
        # What is held or wanted has a valid name.
        key = self._engine.key_in_use(space.name, resource)
        if key is None:
            space.check_name(resource)
            key = key_of((space.name, resource))
        return key

    def known(self, peer: Peer) -> list[Lockspace]:
        """Returns the lockspaces that a peer may know of."""
        every = self._lockspaces.values()
        return [x for x in every if self._access.knows(peer, x.name)]

    def sees(self, peer: Peer) -> Callable[[str], bool]:
        """Returns a function: whether a peer may see the resources in a lockspace."""
        return lambda name: self._access.may(peer, "list", name)

    def visible(self, peer: Peer, lockspace: str | None) -> Callable[[str], bool]:
        """Returns a function: whether a peer asked for a lockspace and may see into it.

        Raises:
            RequestError: it asked for one that does not exist, or that it may not see
                into.
        """
        if lockspace is not None:
            self.lockspace(peer, lockspace, "list")
        sees = self.sees(peer)
        return lambda name: lockspace in (None, name) and sees(name)
