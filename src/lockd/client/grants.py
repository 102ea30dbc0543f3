"""The locks of a connection: the connection's record, and the user's view of it.

A `Hold` is the connection's record of one lock. It is held, then released or lost;
these two are final. A `Grant` shows it to the user, and refers to its connection: a
client lives as long as one of its grants. A hold does not, so no reference cycle keeps
a connection open.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from lockd.client import forking
from lockd.client.reply import Reply
from lockd.errors import LockLostError
from lockd.hints import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from lockd.lean import ref
from lockd.names import quoted
from lockd.terms import ResourceKey, key_of

if TYPE_CHECKING:
    from lockd.terms import Mode

_CAUSES: Final = {
    "broken": "it was broken",
    "owner_died": "its owner's process died",
    "disconnected": "the connection to the daemon ended",
}


class Uncopied:
    """An object of a connection of this process; it cannot be copied or pickled."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"a {name} cannot be copied or pickled, as it belongs to a connection of "
            "this process: pass the name of the lock, or its fencing token"
        )


def shapes_of(result: Any, *, several: bool = False) -> list[Any] | None:
    """Returns the grants of an answer (protocol 7.11); None if it is not valid.

    Args:
        result: the answer.
        several: whether the request was for several resources.
    """
    if not isinstance(result, dict):
        return None
    shapes = result.get("grants") if several else [result.get("grant")]
    if not isinstance(shapes, list):
        return None
    for shape in shapes:
        # A pattern of `match` that says the same takes three times as long.
        if not (
            isinstance(shape, dict)
            and isinstance(shape.get("lockspace"), str)
            and isinstance(shape.get("resource"), str)
            and isinstance(shape.get("mode"), str)
            and isinstance(shape.get("fencing_token"), int)
        ):
            return None
    return shapes


class Hold:
    """The record of one lock that a connection holds or held.

    Attributes:
        released: whether it has been released.
        loss: the cause and the reason of its loss.
        release: the pending request that releases it.
        left: whether its release was sent, and nobody waits for the answer.
        shape: what the daemon said of it when it granted it (protocol 7.11).
        strand: the strand that holds it. 0: the session as a whole.
        told: whether the user has been told of its loss.
    """

    released = False
    loss: tuple[str, str] | None = None
    release: Reply | None = None
    left = False
    told = False
    overdue = wanted = False
    #: The number of the last notice.
    heard = -1
    grant: "ref[AnyGrant] | None" = None

    def __init__(self, shape: Mapping[str, Any], strand: int = 0) -> None:
        self.strand = strand
        self.key = key_of((shape["lockspace"], shape["resource"]))
        self.mode: Mode = shape["mode"]
        self.fencing_token: int = shape["fencing_token"]
        self.shape = shape

    def convert(self, mode: "Mode", reply: Reply) -> None:
        """Sets the mode after a conversion, once."""
        # No call between the test and the store.
        if not reply.grants:
            self.mode = mode

    def release_by(self, reply: Reply, *, left: bool) -> Reply | None:
        """Notes the request that releases it, unless it has one or has ended.

        Returns the request that releases it; None if it has ended.
        """
        # No call between the tests and the stores.
        if self.loss is not None or self.released:
            return None
        if self.release is None:
            self.release = reply
            self.left = left
        return self.release

    def keep_after(self, reply: Reply) -> None:
        """Notes that the release was rejected."""
        # No call between the test and the stores.
        if self.release is reply:
            self.release = None
            self.left = False

    def end(self) -> None:
        """Notes that it has been released, unless it has been lost."""
        # No call between the test and the stores.
        if self.loss is None:
            self.released = True
            self.release = None  # it refers to this

    def lose(self, cause: str, reason: str) -> None:
        """Notes why it was lost, unless it has been released."""
        # No call between the test and the store.
        if not self.released:
            self.loss = self.loss or (cause, reason)

    def hear(self, what: str, number: int) -> None:
        """Takes a notice, unless a later one has been taken.

        Args:
            what: what it says: "overdue", "wanted" or "unwanted".
            number: its number among all messages.
        """
        # No call between the test and the stores.
        if number > self.heard:
            self.heard = number
            if what == "overdue":
                self.overdue = True
            elif what == "wanted":
                self.wanted = True
            elif what == "unwanted":
                self.wanted = False

    def learn(self, other: "Hold") -> None:
        """Takes what another hold of the same lock has heard, if that is more."""
        # No call between the test and the stores.
        if other.heard > self.heard:
            self.heard = other.heard
            self.overdue, self.wanted = other.overdue, other.wanted

    def tell(self) -> bool:
        """Returns whether the user must still hear of its loss; true once."""
        new, self.told = not self.told, True
        return new

    @property
    def held(self) -> bool:
        """Whether it has been neither released nor lost."""
        return self.loss is None and not self.released

    @property
    def lost(self) -> bool:
        """Whether it has ended without a release by this client."""
        return self.loss is not None and not self.released

    def lost_error(self) -> LockLostError:
        """Returns the error that explains the loss."""
        cause, reason = self.loss or ("disconnected", "")
        why = _CAUSES.get(cause, cause)
        if reason:
            why += f" ({quoted(reason)})"
        return LockLostError(
            f"the lock on {quoted(self.key.resource)} was lost: {why}",
            lockspace=self.key.lockspace,
            resource=self.key.resource,
            fencing_token=self.fencing_token,
            cause=cause,
        )


class Holds:
    """What a connection holds, by token, and by resource and strand.

    Several holds with one token are one shared lock with a count.

    Args:
        make_grant: returns the grant for a hold.
    """

    def __init__(self, make_grant: "Callable[[Hold], AnyGrant]") -> None:
        self._make_grant = make_grant
        self._by_token: dict[int, dict[Hold, None]] = {}
        self._tokens: dict[tuple[ResourceKey, int], int] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def add(self, hold: Hold) -> None:
        """Adds a hold. It knows what another one with its token has heard."""
        token = hold.fencing_token
        if token in self._by_token:
            for other in self.under(token):
                hold.learn(other)
        self._by_token.setdefault(token, {})[hold] = None
        self._tokens[hold.key, hold.strand] = token

    def tokens(self) -> list[int]:
        """Returns all tokens."""
        return list(self._by_token)

    def all(self) -> list[Hold]:
        """Returns all holds."""
        return [hold for token in self.tokens() for hold in self.under(token)]

    def under(self, token: int) -> list[Hold]:
        """Returns the holds with a token."""
        return list(self._by_token.get(token, ()))

    def token_of(self, key: ResourceKey, strand: int) -> int | None:
        """Returns the fencing token under which a strand holds a resource."""
        return self._tokens.get((key, strand))

    def grant_of(self, hold: Hold) -> "AnyGrant":
        """Returns the grant that shows a hold; a new one if the user dropped it."""
        grant = hold.grant() if hold.grant is not None else None
        return grant if grant is not None else self._make_grant(hold)

    def forget(self, hold: Hold) -> None:
        """Notes that a hold was released."""
        hold.end()
        holds = self._by_token.get(hold.fencing_token)
        if holds is not None:
            holds.pop(hold, None)
            if not holds:
                self.drop(hold.fencing_token, [hold])

    def drop(self, token: int, holds: list[Hold]) -> None:
        """Removes holds that have ended."""
        for hold in holds:
            key = hold.key, hold.strand
            if self._tokens.get(key) == token:
                self._tokens.pop(key, None)
        self._by_token.pop(token, None)


class Link(Protocol):
    """The connection of a grant."""

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child, and the session its parent's."""

    def catch_up(self) -> None:
        """Processes all that has been received; never waits."""


class AnyGrant(Uncopied):
    """A lock that a client holds or held.

    Its attributes reflect all that the daemon has sent so far.
    """

    __slots__ = ("__weakref__", "hold", "link")

    def __init__(self, hold: Hold, link: Link) -> None:
        self.hold = hold
        self.link = link
        hold.grant = ref(self)

    def __repr__(self) -> str:
        hold = self.hold
        state = "of the parent process" if self.link.forked else self._state()
        return f"<Grant {hold.key} {hold.mode} {hold.fencing_token} {state}>"

    def _state(self) -> str:
        self.link.catch_up()
        if self.hold.held:
            return "held" if self.hold.release is None else "releasing"
        return "lost" if self.hold.lost else "released"

    @property
    def lockspace(self) -> str:
        """The lockspace of the resource."""
        return self.hold.key.lockspace

    @property
    def resource(self) -> str:
        """The name of the locked resource."""
        return self.hold.key.resource

    @property
    def mode(self) -> "Mode":
        """The mode, "exclusive", "shared" or "slot". A conversion changes it."""
        return self.hold.mode

    @property
    def slot(self) -> int | None:
        """Which slot it is, from 0 to `slots` - 1; None in another mode."""
        return self.hold.shape.get("slot")

    @property
    def slots(self) -> int | None:
        """How many slots the resource had when this one was granted."""
        return self.hold.shape.get("slots")

    @property
    def fencing_token(self) -> int:
        """A number that is greater for each new grant.

        A third party can reject a token that is lower than one it has seen, or ask
        `Client.check`.
        """
        return self.hold.fencing_token

    @property
    def inside(self) -> tuple[int, ...]:
        """The fencing tokens of the locks around this one, the outermost first.

        A command around this program holds the same lock, and waits for its end
        (`lockctl run`). Then the lock is granted inside that one. Empty for any other.
        What is guarded by tokens must see one token from all of them: the first.
        """
        return tuple(self.hold.shape.get("inside") or ())

    @property
    def waited(self) -> float:
        """Seconds that the request waited."""
        return self.hold.shape.get("waited") or 0.0

    @property
    def previous(self) -> Mapping[str, Any] | None:
        """The last hold of the resource, if it did not end well: protocol 7.11.

        Then there may be something to repair. None if the daemon remembers no such
        hold.
        """
        found = self.hold.shape.get("previous")
        return MappingProxyType(found) if isinstance(found, dict) else None

    @property
    def cause(self) -> str | None:
        """The cause of its loss: "broken", "owner_died" or "disconnected"."""
        return self.hold.loss[0] if self.lost and self.hold.loss else None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock. False in a forked child.

        False, too, once it is released and nobody waits for the answer.
        """
        if self.link.forked:
            return False
        self.link.catch_up()
        return self.hold.held and not self.hold.left

    @property
    def lost(self) -> bool:
        """Whether the lock has ended without a release by this client."""
        if not self.link.forked:
            self.link.catch_up()
        return self.hold.lost

    @property
    def overdue(self) -> bool:
        """Whether it has been held for longer than its `max_hold`.

        The daemon tells this once the lock was acquired with `max_hold`. The limit of
        the lockspace counts too, if it is shorter.
        """
        return self._known().overdue

    @property
    def wanted(self) -> bool:
        """Whether others wait for it, if it was acquired with `wanted`."""
        return self._known().wanted

    def _known(self) -> Hold:
        if not self.link.forked:
            self.link.catch_up()
        return self.hold

    def check(self) -> None:
        """Raises an error if the lock has been lost.

        Raises:
            LockLostError: it has been lost.
            ForkedSessionError: it is the parent's.
        """
        if self.link.forked:
            raise forking.forked()
        if self.lost:
            raise self.hold.lost_error()
