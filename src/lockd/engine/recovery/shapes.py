"""The shapes of the records: what `records` and `snapshot` decode and return.

A module with a msgspec Struct is not compiled, and those two are.
"""

from typing import Annotated

from msgspec import Meta, Struct

from lockd.engine.commands import AnchorRefused, Owner
from lockd.engine.effects import HolderNotices
from lockd.engine.lock_engine import LockEngine
from lockd.engine.session import WHOLE
from lockd.terms import (
    Create,
    Mode,
    OnDisconnect,
    OutsideHolder,
    ResourceKey,
    Until,
    WorkOutcome,
)


class PendingAnchor(Struct, array_like=True):
    """An anchor that is being opened for a request, or stays open for it."""

    key: ResourceKey
    anchor: Mode | None
    wanted: Mode | None
    whole: bool = False


class Standing(Struct):
    """The fields of a request that say where it stands."""

    order: int
    keys: tuple[ResourceKey, ...]
    converting: bool
    anchors: list[PendingAnchor]


class OwnerName(Struct):
    """The field of an owner that names it."""

    owner_id: int


class GrantRecord(Struct, frozen=True, gc=False, omit_defaults=True):
    """A `Grant`. Each turn that grants encodes one, and few have more than a name."""

    key: ResourceKey
    owner_id: int
    owner: Owner
    session: int
    mode: Mode
    fencing_token: int
    since: float
    count: int = 1
    label: str | None = None
    reason: str | None = None
    strand: int = 0
    whole: bool = False
    notices: HolderNotices | None = None
    slot: int | None = None
    slots: int | None = None
    slots_said_by: Owner | None = None
    inside: tuple[int, ...] = ()


class LastRecord(Struct, frozen=True, gc=False):
    """A `LastHolder`."""

    grant: GrantRecord
    ended: float
    cause: str
    outcome: WorkOutcome = None


class OwnerRecord(Struct):
    """An owner with its grants."""

    owner_id: int
    identity: Owner
    is_process: bool
    on_disconnect: OnDisconnect | None
    fencing: str | None
    ended: bool
    grants: list[GrantRecord]
    until: Until = "either"


class RequestRecord(Struct):
    """A request without its places in the lines."""

    session: int
    owner: int
    number: int
    keys: tuple[ResourceKey, ...]
    refusal: AnchorRefused | None
    outside: OutsideHolder | None
    order: int
    mode: Mode
    uid: int
    since: float
    deadline: float | None
    tries: bool
    converting: bool
    create: Create
    label: str | None
    reason: str | None
    opening: int
    retry_at: float | None
    pause: float
    announced: bool
    answered: bool
    strand: tuple[int, int] = WHOLE
    whole: bool = False
    max_hold: float | None = None
    wanted: bool = False
    slots: int | None = None
    slots_said_by: Owner | None = None
    slot: int | None = None
    inside: list[Annotated[tuple[int, ...], Meta(min_length=1)]] = []


class ResourceRecord(Struct):
    """A resource where somebody waits: it refers to requests by their order."""

    key: ResourceKey
    converting: list[int] = []
    waiting: list[int] = []
    anchor: Mode | None = None
    anchor_wanted: Mode | None = None
    pending: int | None = None
    whole: bool = False

    def opens(
        self, order: int, anchor: Mode | None, wanted: Mode | None, *, whole: bool
    ) -> None:
        """Notes that its anchor is being opened for the request with this order."""
        self.pending, self.whole = order, whole
        self.anchor, self.anchor_wanted = anchor, wanted


class Losses(Struct):
    """What is missing.

    Attributes:
        problems: a sentence each.
        sessions: have lost a grant or a place in a line, or stand where a request may
            be missing. The laws hold after they are closed.
        orphans: owners whose session is missing, or that nobody needs.
    """

    problems: list[str]
    sessions: list[int]
    orphans: list[int]


class Loaded(Struct, frozen=True):
    """The result of `load`.

    Attributes:
        engine: obeys every law after `damaged` and `orphans` have ended.
        problems: what could not be read, a sentence each; normally empty.
        damaged: sessions that lost a grant or a place in a line: close them.
        orphans: owners whose session is missing: disconnect them.
    """

    engine: LockEngine
    problems: list[str]
    damaged: list[int]
    orphans: list[int]
