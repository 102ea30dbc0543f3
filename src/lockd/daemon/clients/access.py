"""Who may do what in which lockspace.

Nothing that a client says about itself counts, only what the kernel says of it: uid,
groups, and through which socket it came.
"""

from typing import Final, Literal

from msgspec import Struct

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
from lockd.names import check_ways, quoted
from lockd.protocol.methods import Method
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
"""What anybody may do in a lockspace of which nothing is said; but for direct ones: the
daemon opens files of its clients' choice there, and must not lend them its rights."""

_SAID: Final[dict[Operation, str]] = {
    "acquire": "take exclusive locks in",
    "share": "take locks in",
    "list": "see what is in",
    "details": "see reasons in",
    "break": "break locks in",
}


class Permission(Struct, frozen=True):
    """For whom one operation is."""

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    everybody: bool = False

    def includes(self, peer: Peer) -> bool:
        """Tells whether a peer is one of them."""
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
        """Makes the rights in a lockspace count from now on."""
        self._rights[name] = rights

    def may(self, peer: Peer, operation: Operation, lockspace: str) -> bool:
        """Tells whether a peer may do something in a lockspace that there is."""
        return peer.is_admin or self._rights[lockspace][operation].includes(peer)

    def knows(self, peer: Peer, lockspace: str) -> bool:
        """Tells whether a peer may know that there is such a lockspace."""
        if peer.is_admin or lockspace not in self._rights:
            return lockspace in self._rights
        return any(self.may(peer, operation, lockspace) for operation in OPERATIONS)

    def is_known_to_all(self, lockspace: str) -> bool:
        """Tells whether everybody who can connect may know of a lockspace.

        All know of those that every daemon has.
        """
        if lockspace in (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE):
            return True
        return any(x.everybody for x in self._rights.get(lockspace, {}).values())

    def check(self, peer: Peer, operation: Operation, lockspace: str) -> None:
        """Raises unless a peer may do something in a lockspace.

        Raises:
            NotFoundError: there is no such lockspace, or the peer may not know of it:
                the two look alike.
            DeniedError: it may do other things there.
        """
        if lockspace in self._rights and self.may(peer, operation, lockspace):
            return
        if self.knows(peer, lockspace):
            raise DeniedError(
                f"uid {peer.credentials.uid} may not {_SAID[operation]} "
                f"lockspace {quoted(lockspace)}: an admin can allow it in lockd.toml "
                f"(allow_users, allow_groups)"
            )
        raise not_there(peer, lockspace)


def not_there(peer: Peer, lockspace: str) -> NotFoundError:
    """Returns what is said of a lockspace that is not there, or not for a peer."""
    uid = peer.credentials.uid
    if lockspace == DIRECT_LOCKSPACE:
        # Who names a file has not named a lockspace.
        who = "nobody may" if peer.is_admin else f"uid {uid} may not"
        return NotFoundError(
            f"{who} lock files by their path here: an admin can allow it in "
            "lockd.toml (allow_users, allow_groups)"
        )
    limit = "" if peer.is_admin else f" that uid {uid} may use"
    return NotFoundError(
        f"there is no lockspace {quoted(lockspace)}{limit}: "
        "`lockctl spaces` lists those that there are"
    )


def rights_of(config: LockspaceConfig) -> Rights:
    """Returns who may do what in a lockspace.

    Raises:
        ConfigError: there is no such user or group.
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
    # Nobody can take a lock away without seeing whose it is.
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
    """Raises unless a peer has the rights to files that `DirectLockspace` asks for.

    Or if the ways to them are too long: they are gone here, while everybody waits.

    Here, so that who has none does not even wait in a line, where he would be in the
    way of those who have. What counts is asked again of the very file that is opened; a
    file system that may not answer is asked only then.
    """
    check_ways([key.resource for key in keys])
    user = peer.file_user
    if user is not None:
        for key in keys:
            if not space.anchor_is_slow(key.resource):
                space.check_user(key.resource, mode, user)


def check_method(peer: Peer, method: Method) -> None:
    """Raises `DeniedError` or `RestrictedError` for a method that is not for a peer."""
    if method.access == "always":
        return
    if peer.restricted:
        raise RestrictedError(
            f"this session gave up its rights, and {method.name} with them: "
            "open another one"
        )
    if method.access == "admin" and not peer.is_admin:
        raise DeniedError(
            f"{method.name} is for admins, not for uid {peer.credentials.uid}: "
            "ask as root, or through the admin socket"
        )
