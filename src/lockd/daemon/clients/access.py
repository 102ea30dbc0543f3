"""Who may do what in which lockspace.

It relies only on what the kernel says about a client: uid, groups, and the socket. What
a client says about itself does not matter.
"""

from typing import Final, Literal

from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import (
    EVERYBODY,
    Allowed,
    LockspaceConfig,
    Who,
    group_ids,
    user_ids,
)
from lockd.errors import DeniedError, NotFoundError, RestrictedError
from lockd.lockspaces.base import Lockspace
from lockd.names import check_ways, plain, quoted
from lockd.protocol.calls import Method
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE, Mode, ResourceKey

Operation = Literal["acquire", "share", "list", "details", "break"]

OPERATIONS: Final[tuple[Operation, ...]] = (
    "acquire",
    "share",
    "list",
    "details",
    "break",
)
_FOR_EVERYBODY: Final = ("acquire", "share", "list")
"""The default rights of everybody. Direct lockspaces have none: the daemon opens files
there that its clients choose, and must not lend them its rights."""

_SAID: Final[dict[Operation, str]] = {
    "acquire": "take exclusive locks in",
    "share": "take locks in",
    "list": "see what is in",
    "details": "see reasons in",
    "break": "break locks in",
}


class Permission:
    """The users and groups that may do one operation."""

    __slots__ = ("everybody", "groups", "users")

    def __init__(
        self,
        users: frozenset[int] = frozenset(),
        groups: frozenset[int] = frozenset(),
        everybody: bool = False,
    ) -> None:
        self.users = users
        self.groups = groups
        self.everybody = everybody

    def includes(self, peer: Peer) -> bool:
        """Returns whether a peer is one of them."""
        return (
            self.everybody
            or peer.credentials.uid in self.users
            or not self.groups.isdisjoint(peer.groups)
        )

    def __or__(self, other: "Permission") -> "Permission":
        return Permission(
            self.users | other.users,
            self.groups | other.groups,
            self.everybody or other.everybody,
        )


Rights = dict[Operation, Permission]


class Access:
    """The rights in every lockspace."""

    def __init__(self) -> None:
        self._rights: dict[str, Rights] = {}

    def set_rights(self, name: str, rights: Rights) -> None:
        """Sets the rights in a lockspace."""
        self._rights[name] = rights

    def may(self, peer: Peer, operation: Operation, lockspace: str) -> bool:
        """Returns whether a peer may do an operation in an existing lockspace."""
        return peer.is_admin or self._rights[lockspace][operation].includes(peer)

    def knows(self, peer: Peer, lockspace: str) -> bool:
        """Returns whether a lockspace exists and a peer may know of it."""
        if peer.is_admin or lockspace not in self._rights:
            return lockspace in self._rights
        return any(self.may(peer, operation, lockspace) for operation in OPERATIONS)

    def is_known_to_all(self, lockspace: str) -> bool:
        """Returns whether all users may know of a lockspace.

        All know of the built-in lockspaces.
        """
        if lockspace in (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE):
            return True
        return any(x.everybody for x in self._rights.get(lockspace, {}).values())

    def check(self, peer: Peer, operation: Operation, lockspace: str) -> None:
        """Raises an error unless a peer may do an operation in a lockspace.

        Raises:
            NotFoundError: the lockspace does not exist, or the peer may not know of it.
                The two look the same.
            DeniedError: the peer may only do other operations there, or it names a
                file and may not do that with files.
        """
        if lockspace in self._rights and self.may(peer, operation, lockspace):
            return
        if self.knows(peer, lockspace):
            raise DeniedError(
                f"uid {peer.credentials.uid} may not {_SAID[operation]} "
                f"lockspace {quoted(lockspace)}: {_remedy(peer, operation, lockspace)}"
            )
        raise not_there(peer, lockspace, operation)


def not_there(
    peer: Peer, lockspace: str, operation: Operation = "acquire"
) -> NotFoundError | DeniedError:
    """Returns the error for a lockspace that is missing, or hidden from a peer.

    All know of the lockspace `direct`, so there the peer is only denied.
    """
    uid = peer.credentials.uid
    if lockspace == DIRECT_LOCKSPACE:
        # A peer that names a file has not named a lockspace.
        who = "nobody may" if peer.is_admin else f"uid {uid} may not"
        what = "see locks on" if operation == "list" else "lock"
        return DeniedError(
            f"{who} {what} files by their path here: "
            f"{_remedy(peer, operation, lockspace)}"
        )
    limit = "" if peer.is_admin else f" that uid {uid} may use"
    return NotFoundError(
        f"there is no lockspace {quoted(lockspace)}{limit}: "
        "`lockctl spaces` lists the lockspaces"
    )


def _remedy(peer: Peer, operation: Operation, lockspace: str) -> str:
    bare = lockspace.replace("-", "_").isidentifier() and lockspace.isascii()
    table = lockspace if bare else f'"{plain(lockspace)}"'
    return (
        f"an admin can allow it in lockd.toml, under [lockspaces.{table}], with "
        f"allow_users.{operation} = [{peer.credentials.uid}]"
    )


def rights_of(config: LockspaceConfig) -> Rights:
    """Returns the rights in a lockspace.

    Raises:
        ConfigError: a user or group does not exist.
    """
    rights: Rights = {
        operation: _permission(
            _who(config.allow_users, operation),
            _who(config.allow_groups, operation),
            usual=operation in _FOR_EVERYBODY and config.kind != "direct",
        )
        for operation in OPERATIONS
    }
    rights["share"] |= rights["acquire"]
    # Breaking a lock takes seeing its holder.
    rights["list"] |= rights["break"]
    return rights


def _who(allowed: Allowed, operation: Operation) -> Who | None:
    fields: dict[Operation, Who | None] = {
        "acquire": allowed.acquire,
        "share": allowed.share,
        "list": allowed.list_,
        "details": allowed.details,
        "break": allowed.break_,
    }
    return fields[operation]


def _permission(users: Who | None, groups: Who | None, *, usual: bool) -> Permission:
    if users is None and groups is None:
        return Permission(everybody=usual)
    users, groups = users or [], groups or []
    everybody = EVERYBODY in users or EVERYBODY in groups
    return Permission(user_ids(users), group_ids(groups), everybody)


def check_files(
    peer: Peer, space: Lockspace, keys: tuple[ResourceKey, ...], mode: Mode
) -> None:
    """Raises an error unless a peer has the rights to files of a direct lockspace.

    It also raises if the paths are too long: the daemon walks them here, and everybody
    waits.

    A peer without the rights must not even wait in the queue, where it would delay
    peers who have them. The lockspace checks the file again when it opens it. For a
    file system that may not answer, only that check happens.
    """
    check_ways([key.resource for key in keys])
    user = peer.file_user
    if user is not None:
        for key in keys:
            if not space.anchor_is_slow(key.resource):
                space.check_user(key.resource, mode, user)


def check_method(peer: Peer, method: Method) -> None:
    """Raises `DeniedError` or `RestrictedError` if a peer may not call a method."""
    if method.access == "always":
        return
    if peer.restricted:
        raise RestrictedError(
            f"this session gave up its right to {method.name}: open another one"
        )
    if method.access == "admin" and not peer.is_admin:
        raise DeniedError(
            f"{method.name} is for admins, not for uid {peer.credentials.uid}: "
            "ask as root, or through the admin socket"
        )
