"""Who may do what. Nothing that a client says about itself counts, only its uid."""

import os

from lockd.daemon.peer import Peer
from lockd.errors import DeniedError, RestrictedError
from lockd.lockspaces.base import Lockspace
from lockd.names import quoted
from lockd.protocol.methods import Method


def is_admin(peer: Peer) -> bool:
    """Tells whether a peer may do what the daemon's own user may."""
    return peer.credentials.uid in (0, os.geteuid())


def check_method(peer: Peer, method: Method) -> None:
    """Raises `DeniedError` or `RestrictedError` for a method that is not for a peer."""
    if method.access == "always":
        return
    if peer.restricted:
        raise RestrictedError(
            f"this session gave up its rights: {method.name} is no longer for it"
        )
    if method.access == "admin" and not is_admin(peer):
        raise DeniedError(
            f"{method.name} is for root and the daemon's own user, "
            f"not for uid {peer.credentials.uid}"
        )


def may_use(peer: Peer, lockspace: Lockspace) -> bool:
    """Tells whether a lockspace is for a peer."""
    return lockspace.kind != "direct" or is_admin(peer)


def check_lockspace(peer: Peer, lockspace: Lockspace) -> None:
    """Raises `DeniedError` for a lockspace that is not for a peer.

    The daemon opens the files of a direct lockspace with its own rights, and must not
    lend them to somebody who has less.
    """
    if not may_use(peer, lockspace):
        raise DeniedError(
            f"lockspace {quoted(lockspace.name)} locks files by their path, "
            "which is for root and the daemon's own user"
        )
