"""The methods of the protocol: names, parameters, access. One table (protocol 6).

Parameters are checked when they are converted. A parameter that is wrong, unknown or
missing never reaches a handler.
"""

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from lockd.errors import InvalidRequestError
from lockd.names import MAX_NAME_BYTES, check_name, is_grant_name, is_utf8
from lockd.protocol.calls import Method
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    EXCLUSIVE,
    MOST_SLOTS,
    SLOT,
    Kind,
    Mode,
    OnDisconnect,
    Until,
    WorkOutcome,
)

PROTOCOL_VERSION: Final = 1

Name = Annotated[str, Meta(min_length=1)]
MsgId = Annotated[int, Meta(ge=0, lt=2**32)]
Token = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Slots = Annotated[int, Meta(ge=1, le=MOST_SLOTS)]
Strand = Annotated[int, Meta(ge=0, lt=2**32)]
Uid = Annotated[int, Meta(ge=0, lt=2**32)]
Pid = Annotated[int, Meta(ge=1, lt=2**31)]
Seconds = Annotated[
    float, Meta(ge=0, le=1e9, description="a number from 0 to 1e9 (seconds)")
]

HoldTime = Annotated[
    float,
    Meta(gt=0, le=1e9, description="a number above 0, at most 1e9 (seconds)"),
]

MAX_TEXT_CHARACTERS: Final = 4_096
"""The longest label or reason."""


class Params(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a method; protocol 6.1 has a table of the fields."""


class NoParams(Params, frozen=True):
    """No parameters."""


class HelloParams(Params, frozen=True):
    """The name of the client, the version of the protocol, the locks around it."""

    protocol: int
    client: str
    within: Annotated[list[str], Meta(min_length=0, max_length=64)] | None = None

    def __post_init__(self) -> None:
        check_shown(client=self.client)
        for name in self.within or ():
            if not is_grant_name(name):
                raise InvalidRequestError(
                    "each text of `within` is the instance of a daemon, a colon, and a "
                    "fencing token"
                )

    def within_of(self, instance: str) -> tuple[int, ...]:
        """Returns the fencing tokens of `within` that are of this daemon."""
        parts = (name.split(":") for name in self.within or ())
        return tuple(int(token) for daemon, token in parts if daemon == instance)


class OwnerParams(Params, frozen=True):
    """An owner as a client describes it."""

    name: Name
    uuid: str | None = None
    id: int | None = None
    pid: Pid | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_shown(uuid=self.uuid)
        # Every lock of the owner carries it, in answers and records.
        size = len((self.uuid or "").encode())
        if size > MAX_NAME_BYTES:
            raise InvalidRequestError(
                f"`uuid` has {size} bytes, at most {MAX_NAME_BYTES} are allowed"
            )


class RegisterParams(Params, frozen=True):
    """For whom the session acts."""

    owner: OwnerParams
    on_disconnect: OnDisconnect | None = None
    inheritable: bool | None = None
    until: Until | None = None


class AcquireParams(Params, frozen=True):
    """The resources, the mode and the timeout."""

    resource: str | None = None
    resources: Annotated[list[str], Meta(min_length=1, max_length=64)] | None = None
    lockspace: str | None = DEFAULT_LOCKSPACE
    mode: Mode | None = EXCLUSIVE
    timeout: Seconds | None = None
    create: bool | None = None
    label: str | None = None
    reason: str | None = None
    max_waiting: Annotated[int, Meta(ge=0, le=1024)] | None = None
    strand: Strand | None = None
    whole: bool | None = None
    max_hold: HoldTime | None = None
    wanted: bool | None = None
    slots: Slots | bool | None = None

    def __post_init__(self) -> None:
        if (self.resource is None) is (self.resources is None):
            raise InvalidRequestError("`resource` or `resources` is needed, not both")
        if self.mode == SLOT or self.slots is not None:
            self._check_slots()
        if self.resources and len(set(self.resources)) < len(self.resources):
            raise InvalidRequestError("a resource is named twice in `resources`")
        if self.label is not None or self.reason is not None:
            check_shown(label=self.label, reason=self.reason)

    def _check_slots(self) -> None:
        if self.mode != SLOT:
            raise InvalidRequestError(
                '`slots` must be nil or absent, except with the `mode` "slot"'
            )
        if self.slots is False:
            raise InvalidRequestError(
                f"`slots` must be true, or an integer from 1 to {MOST_SLOTS}"
            )
        if self.resources and len(self.resources) > 1:
            raise InvalidRequestError(
                "slots of several resources are not given together: send a request "
                "for each of them"
            )


class ConvertParams(Params, frozen=True):
    """A held lock, by name or by fencing token, and the mode to change it to."""

    mode: Mode
    resource: str | None = None
    fencing_token: Token | None = None
    lockspace: str | None = DEFAULT_LOCKSPACE
    timeout: Seconds | None = None

    def __post_init__(self) -> None:
        if (self.resource is None) is (self.fencing_token is None):
            raise InvalidRequestError(
                "`resource` or `fencing_token` is needed, not both"
            )


class ReleaseParams(Params, frozen=True):
    """The locks to release: by name, or by fencing token."""

    resource: str | None = None
    resources: Annotated[list[str], Meta(min_length=1, max_length=64)] | None = None
    fencing_token: Token | None = None
    lockspace: str | None = DEFAULT_LOCKSPACE
    outcome: WorkOutcome = None

    def __post_init__(self) -> None:
        absent = (self.resource, self.resources, self.fencing_token).count(None)
        if absent != 2:
            raise InvalidRequestError(
                "exactly one of `resource`, `resources`, `fencing_token` is needed"
            )


class CancelParams(Params, frozen=True):
    """The request to cancel."""

    request: MsgId


class ResourceParams(Params, frozen=True):
    """One resource."""

    resource: str
    lockspace: str | None = DEFAULT_LOCKSPACE


class ResourceFileParams(Params, frozen=True):
    """The file of a resource."""

    lockspace: str
    resource: str


class CheckParams(Params, frozen=True):
    """A fencing token to check."""

    resource: str
    fencing_token: Token
    lockspace: str | None = DEFAULT_LOCKSPACE


Limit = Annotated[int, Meta(ge=1, le=256)]
"""The most entries of a page. A page may be shorter (protocol 6.9)."""

Number = Annotated[int, Meta(ge=-1, le=2**62)]


ResourcePlace = Annotated[
    tuple[str | int, ...],
    Meta(
        min_length=2,
        max_length=3,
        description="the `next` of another page: an array of text, text, and perhaps "
        "an integer",
    ),
]
"""Lockspace and resource; and the last holder named, if more of them follow."""


class ListParams(Params, frozen=True):
    """A page of the resources. Filters combine with AND."""

    lockspace: str | None = None
    after: ResourcePlace | None = None
    limit: Limit | None = None
    owner: str | None = None
    uid: Uid | None = None
    pid: Pid | None = None
    unit: str | None = None
    path: str | None = None
    inode: tuple[int, int] | None = None
    fencing_token: Token | None = None
    waiting: bool | None = None

    def __post_init__(self) -> None:
        kinds = [type(part) for part in self.after or ()]
        if kinds not in ([], [str, str], [str, str, int]):
            raise InvalidRequestError("`after` must be the `next` of another page")


class ListWaitersParams(Params, frozen=True):
    """A page of the waiting requests."""

    lockspace: str | None = None
    after: tuple[str, str, Number] | None = None
    limit: Limit | None = None


class ListSessionsParams(Params, frozen=True):
    """A page of the sessions."""

    after: Number | None = None
    limit: Limit | None = None


class ListLockspacesParams(Params, frozen=True):
    """A page of the lockspaces."""

    after: str | None = None
    limit: Limit | None = None


ListingParams = (
    ListParams | ListWaitersParams | ListSessionsParams | ListLockspacesParams
)


class CreateLockspaceParams(Params, frozen=True):
    """A new lockspace."""

    name: Name
    kind: Kind
    path: str | None = None

    def __post_init__(self) -> None:
        check_shown(path=self.path)


class WatchParams(Params, frozen=True):
    """The lockspace to watch; all lockspaces if None."""

    lockspace: str | None = None


class BreakParams(Params, frozen=True):
    """The grant to break, and the reason."""

    fencing_token: Token
    reason: str

    def __post_init__(self) -> None:
        check_shown(reason=self.reason)


class DisconnectParams(Params, frozen=True):
    """The session to end, and the reason."""

    session: int
    reason: str

    def __post_init__(self) -> None:
        check_shown(reason=self.reason)


def check_shown(**texts: str | None) -> None:
    """Raises `InvalidRequestError` for a text that is too long or not UTF-8."""
    for name, text in texts.items():
        if text is None:
            continue
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidRequestError(
                f"`{name}` has {len(text)} characters, "
                f"at most {MAX_TEXT_CHARACTERS} are allowed"
            )
        if not is_utf8(text):
            raise InvalidRequestError(f"`{name}` is not UTF-8")


METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        Method("hello", HelloParams, "always"),
        Method("register", RegisterParams),
        Method("restrict", NoParams),
        Method("acquire", AcquireParams),
        Method("convert", ConvertParams),
        Method("release", ReleaseParams, "always"),
        Method("cancel", CancelParams, "always"),
        Method("query", ResourceParams, "always"),
        Method("check", CheckParams, "always"),
        Method("list", ListParams),
        Method("create_resource", ResourceFileParams, "admin"),
        Method("delete_resource", ResourceFileParams, "admin"),
        Method("create_lockspace", CreateLockspaceParams, "admin"),
        Method("list_waiters", ListWaitersParams),
        Method("list_lockspaces", ListLockspacesParams),
        Method("list_sessions", ListSessionsParams),
        Method("statistics", NoParams),
        Method("metrics", NoParams, "admin"),
        Method("reload", NoParams, "admin"),
        Method("watch", WatchParams),
        Method("break", BreakParams),
        Method("disconnect", DisconnectParams, "admin"),
    )
}
"""All methods by name."""


def method_of(name: Any) -> Method | None:
    """Returns a method by its name, which may be str or bin (protocol 2.2)."""
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    return METHODS.get(name) if isinstance(name, str) else None
