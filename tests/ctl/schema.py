"""What `--json` prints, as types: docs/reference/json.md in msgspec's words, version 1.

The tests hold them against the page and against what lockctl prints. lockctl itself
passes on what the daemon answers, so it shows the fields of a newer daemon, too.
"""

from typing import Any, Literal

from msgspec import Struct, field

Mode = Literal["exclusive", "shared", "slot"]
LockedBy = Literal["qemu", "sqlite", "flock", "lease"]


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """Every object that is printed has this."""

    version: Literal[1]


class Party(Struct, forbid_unknown_fields=True, kw_only=True):
    """Somebody with a session."""

    name: str
    uuid: str | None
    id: int | None
    pid: int
    uid: int
    command: str | None
    unit: str | None
    session: int


class Holder(Party, kw_only=True):
    """Somebody who holds a lock."""

    strand: int
    mode: Mode
    slot: int | None
    fencing_token: int
    inside: list[int]
    count: int
    since: float
    held_for: float
    overdue: bool
    label: str | None
    reason: str | None
    on_disconnect: Literal["release", "kill"]


class Waiter(Party, kw_only=True):
    """Somebody who waits for a lock."""

    strand: int
    mode: Mode
    converting: bool
    inside: list[int]
    since: float
    waited: float
    label: str | None
    reason: str | None


class OutsideHolder(Struct, forbid_unknown_fields=True, kw_only=True):
    """Who locks a file that somebody waits for, as far as is known.

    Attributes:
        lockspace, resource: under which other name of the file it is held in lockd;
            missing if it is locked past lockd.
    """

    mode: Mode
    pid: int | None
    command: str | None
    by: LockedBy | None
    start: int | None
    length: int | None
    lockspace: str | None = None
    resource: str | None = None


class Resource(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is held or waited for; in a listing at most 4 of each party are named."""

    lockspace: str
    resource: str
    holders: list[Holder]
    holder_count: int
    waiters: list[Waiter]
    waiter_count: int
    slots: int | None
    slots_taken: int | None
    slots_removed: int | None
    outside: OutsideHolder | None


class LastHolder(Struct, forbid_unknown_fields=True, kw_only=True):
    """Who held a lock last, and how that ended."""

    name: str
    uuid: str | None
    id: int | None
    pid: int
    uid: int
    mode: Mode
    fencing_token: int
    label: str | None
    reason: str | None
    held_for: float
    ended: Literal["released", "disconnected", "owner_died", "broken"]
    outcome: Literal["ok", "failed", "died"] | None
    ended_ago: float


class PastEvent(Struct, forbid_unknown_fields=True, kw_only=True):
    """Something that happened to a lock."""

    event: Literal["waiting", "refused", "granted", "converted", "released"]
    since: float
    ago: float
    session: int
    name: str
    pid: int
    uid: int
    mode: Mode | None
    fencing_token: int | None = None
    waited: float | None = None
    code: str | None = None
    cause: str | None = None
    held_for: float | None = None


class Story(Resource, kw_only=True):
    """All about one resource."""

    last_holder: LastHolder | None
    history: list[PastEvent]


class List(Document, kw_only=True):
    """`list`."""

    resources: list[Resource]


class Outsider(Struct, forbid_unknown_fields=True, kw_only=True):
    """A lock on a file that is not lockd's, and one process that has it."""

    kind: str
    mode: str
    waits: bool
    from_: int = field(name="from")
    to: int | None
    by: LockedBy | None
    pid: int | None
    uid: int | None
    command: str | None
    unit: str | None
    perhaps_lockd: bool


class Show(Document, kw_only=True):
    """`show`."""

    resource: Story
    outside: list[Outsider]
    elsewhere: list[Story]


class Test(Document, kw_only=True):
    """`test`."""

    free: bool
    resource: Story
    outside: list[Outsider]
    elsewhere: list[Story]


class FoundHolder(Holder, kw_only=True):
    """A holder, and of what."""

    lockspace: str
    resource: str


class Who(Document, kw_only=True):
    """`who`."""

    name: str
    holders: list[FoundHolder]
    holder_count: int
    outside: list[Outsider]


class Before(Struct, forbid_unknown_fields=True, kw_only=True):
    """Who must go before a waiter."""

    owner: int
    name: str
    pid: int
    uid: int
    session: int
    strand: int
    mode: Mode
    fencing_token: int | None


class PlacedWaiter(Waiter, kw_only=True):
    """A waiter in its line."""

    lockspace: str
    resource: str
    owner: int
    place: int
    behind: list[Before]
    outside: OutsideHolder | None


class Waiters(Document, kw_only=True):
    """`waiters`."""

    waiters: list[PlacedWaiter]


class Node(Struct, forbid_unknown_fields=True, kw_only=True):
    """An owner in the graph, or one of its strands."""

    owner: int
    name: str
    pid: int
    uid: int
    strand: int


class Edge(Struct, forbid_unknown_fields=True, kw_only=True):
    """A wait in the graph: for the owners in `behind`, who hold the resource."""

    owner: int
    behind: list[int]
    outside: str | None
    lockspace: str
    resource: str
    place: int
    converting: bool
    mode: Mode
    waited: float
    inside: list[int]


class Graph(Document, kw_only=True):
    """`graph`."""

    owners: list[Node]
    waits: list[Edge]
    longest_chain: list[int]


class Session(Party, kw_only=True):
    """A connection."""

    client: str | None
    since: float
    connected_for: float
    held: int
    waiting: int


class Sessions(Document, kw_only=True):
    """`sessions`."""

    sessions: list[Session]


class SlotRule(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many slots the locks have whose names match."""

    pattern: str
    slots: int


class Lockspace(Struct, forbid_unknown_fields=True, kw_only=True):
    """A lockspace."""

    name: str
    kind: Literal["memory", "directory", "direct"]
    path: str | None
    file_system: str | None
    on_disconnect: Literal["release", "kill"]
    outside: Literal["file", "byte"] | None
    max_hold: float | None
    on_overdue: Literal["notice", "break"]
    slots: list[SlotRule]
    held: int | None


class Spaces(Document, kw_only=True):
    """`spaces`."""

    lockspaces: list[Lockspace]


class Kept(Struct, forbid_unknown_fields=True, kw_only=True):
    """What would survive a crash."""

    by: str | None
    locks: int
    connections: int
    in_flight: int
    bytes: int


class Limit(Struct, forbid_unknown_fields=True, kw_only=True):
    """How full a limit is."""

    used: int
    most: int
    uid: int | None


class Upgrade(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether a live upgrade could be tried now."""

    ready: bool
    why: str | None


class Statistics(Struct, kw_only=True):
    """How the daemon is; it may say more than this."""

    version: str
    pid: int
    unit: str | None
    uptime: float
    epoch: int
    upgrades: int
    upgrade: Upgrade
    sessions: int
    owners: int
    resources: int
    held: int
    waiting: int
    granted: int
    refused: int
    released: int
    last_fencing_token: int
    kept: Kept
    limits: dict[str, Limit]
    problems: list[str] = []


class Status(Document, kw_only=True):
    """`status`."""

    socket: str
    other_sockets: list[str]
    status: Statistics
    lockspaces: list[Lockspace]


class Broken(Document, kw_only=True):
    """`break`."""

    broken: FoundHolder
    inside: list[Holder]


class Disconnected(Document, kw_only=True):
    """`disconnect`."""

    disconnected: Session


class Grant(Struct, forbid_unknown_fields=True, kw_only=True):
    """A lock that was granted."""

    lockspace: str
    resource: str
    mode: Mode
    slot: int | None
    slots: int | None
    fencing_token: int
    inside: list[int]
    waited: float


class Acquired(Document, kw_only=True):
    """`acquire`."""

    pid: int
    grants: list[Grant]


class Released(Document, kw_only=True):
    """`release`."""

    released: list[FoundHolder]


class Run(Document, kw_only=True):
    """What `run` writes to its `--status-fd`."""

    outcome: str
    exit_status: int
    signal: int | None
    lockspace: str
    names: list[str]
    fencing_token: int | None
    fencing_tokens: list[int]
    slot: int | None
    slots: int | None
    waited: float | None
    held: float | None


class Event(Document, kw_only=True):
    """One line of `watch`; of its first, and after a pause, only the first fields."""

    at: float
    event: Literal["watching", "granted", "converted", "waiting", "refused", "released"]
    epoch: int | None = None
    missed: bool | None = None
    lockspace: str | None = None
    resource: str | None = None
    session: int | None = None
    name: str | None = None
    pid: int | None = None
    uid: int | None = None
    mode: Mode | None = None
    slot: int | None = None
    slots: int | None = None
    fencing_token: int | None = None
    inside: list[int] | None = None
    code: str | None = None
    cause: str | None = None


class VirtlockdCheck(Document, kw_only=True):
    """`virtlockd-check`."""

    safe: bool
    virtlockd: list[int]
    locks: list[dict[str, Any]]


COMMANDS = {
    "list": List,
    "show": Show,
    "who": Who,
    "test": Test,
    "waiters": Waiters,
    "graph": Graph,
    "watch": Event,
    "sessions": Sessions,
    "spaces": Spaces,
    "status": Status,
    "break": Broken,
    "disconnect": Disconnected,
    "acquire": Acquired,
    "release": Released,
    "run": Run,
    "virtlockd-check": VirtlockdCheck,
}
"""What each command prints; `watch` one a line, `run` to its `--status-fd`."""
