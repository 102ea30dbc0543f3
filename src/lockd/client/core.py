"""One client's side of a conversation: what was asked, what is held, what was lost.

No I/O, no threads, no clock, and no waiting: whoever drives a `ClientCore` sends what
is in `outgoing`, gives it the bytes that come, and is woken through `Reply.wake`.

A `Reply` goes through these states: new (in no collection), pending (in `_pending`),
done. A done reply has either a result or an error, and never changes again. A reply may
be abandoned at any moment, because whoever waited for it was cancelled: what it brings
then is given back, so that nothing is held that nobody knows of.

A `Grant` is held (in `_held`), releasing (still in `_held`, its release is on its way),
released, or lost. It leaves the last two never.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from lockd.client.encoding import RequestEncoder, refusal
from lockd.errors import (
    ConnectionLostError,
    LimitError,
    LockdError,
    LockLostError,
    NotHeldError,
    ProtocolError,
    UnavailableError,
)
from lockd.names import quoted
from lockd.protocol.codec import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_ELEMENTS,
    NOTIFICATION,
    RESPONSE,
    Decoder,
)
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

PROTOCOL_VERSION: Final = 1

_HELD: Final = "held"
_RELEASING: Final = "releasing"
_RELEASED: Final = "released"
_LOST: Final = "lost"

_CAUSES: Final = {
    "broken": "it was broken by an administrator",
    "owner_died": "its owner's process died",
    "disconnected": "the connection to the daemon ended",
}


class UnheardError(ConnectionLostError):
    """Raised when a connection ended before the daemon had said anything on it.

    Nothing was done of what was asked there: it may be opened again (protocol 1.5).
    """


class Grant:
    """One lock that this connection holds, or held.

    Attributes:
        lockspace: where the resource is.
        resource: what is locked.
        mode: "exclusive" or "shared"; a conversion changes it.
        fencing_token: rises strictly from grant to grant; a third party can refuse
            a token that is lower than one it has seen, or ask `check`.
        waited: how long the request waited, in seconds.
    """

    __slots__ = (
        "_reason",
        "_state",
        "cause",
        "fencing_token",
        "lockspace",
        "mode",
        "resource",
        "waited",
    )

    def __init__(self, shape: Mapping[str, Any]) -> None:
        self.lockspace: str = shape["lockspace"]
        self.resource: str = shape["resource"]
        self.mode: Mode = shape["mode"]
        self.fencing_token: int = shape["fencing_token"]
        self.waited: float = shape.get("waited") or 0.0
        self.cause: str | None = None
        self._reason: str | None = None
        self._state: str = _HELD

    def __repr__(self) -> str:
        key = ResourceKey(self.lockspace, self.resource)
        return f"<Grant {key} {self.mode} {self.fencing_token} {self._state}>"

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as has been heard from the daemon."""
        return self._state in (_HELD, _RELEASING)

    @property
    def lost(self) -> bool:
        """Whether the lock ended though nobody here released it."""
        return self._state == _LOST

    def check(self) -> None:
        """Checks that the lock has not been lost, as far as has been heard.

        Raises:
            LockLostError: it has.
        """
        if self.lost:
            raise self._lost_error()

    def _lost_error(self) -> LockLostError:
        cause = self.cause or "disconnected"
        why = _CAUSES.get(cause, cause)
        if self._reason:
            why += f" ({quoted(self._reason)})"
        return LockLostError(
            f"the lock on {quoted(self.resource)} was lost: {why}",
            lockspace=self.lockspace,
            resource=self.resource,
            fencing_token=self.fencing_token,
            cause=cause,
        )


class Reply:
    """One request and, once it is done, its answer.

    Attributes:
        done: whether the answer is here, or will never come.
        grants: of an acquire, what was granted; of a release, what it is to release.
        wake: called once, when the reply gets done; for whoever waits.
    """

    __slots__ = (
        "abandoned",
        "done",
        "error",
        "grants",
        "method",
        "msgid",
        "params",
        "result",
        "undo_mode",
        "wake",
    )

    def __init__(
        self, method: str, params: dict[str, Any], grants: tuple[Grant, ...] = ()
    ) -> None:
        self.method = method
        self.params = params
        self.grants = grants
        self.msgid: int | None = None
        self.done = False
        self.abandoned = False
        self.result: Any = None
        self.error: LockdError | None = None
        self.undo_mode: Mode | None = None
        self.wake: Callable[[], None] | None = None

    def settle(self, result: Any = None, error: LockdError | None = None) -> None:
        """Makes the reply done and wakes whoever waits for it."""
        self.result, self.error, self.done = result, error, True
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()

    def outcome(self) -> Any:
        """Returns the result of a reply that is done, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.result


class ClientCore:
    """The state of one connection.

    Attributes:
        outgoing: bytes to be sent; whoever sends some removes them from its front.
        on_lost: called with every grant that gets lost while it is held.
        on_event: called with every event that a watch brings.
        on_end: called when the connection ends, with what to raise from then on.
    """

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self.on_lost: Callable[[Grant], None] | None = None
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self.on_end: list[Callable[[LockdError], None]] = []
        self._ended: str | None = None
        self._heard = False
        #: What the daemon said before it ended the connection, if it said anything.
        self._farewell: LockdError | None = None
        self._last_msgid = 0
        self._pending: dict[int, Reply] = {}
        # Several grants of one token are one shared hold, counted. `_tokens` finds the
        # token of a resource; both have the same tokens.
        self._held: dict[int, list[Grant]] = {}
        self._tokens: dict[tuple[str, str], int] = {}
        self._encoder = RequestEncoder()
        self._decoder = Decoder(MAX_ANSWER_BYTES, MAX_ANSWER_ELEMENTS, MAX_ANSWER_BYTES)

    def __repr__(self) -> str:
        counts = f"{len(self._pending)} pending, {len(self._held)} held"
        return f"<ClientCore {counts}, {self._ended or 'connected'}>"

    # What the shell asks for.

    @property
    def ended(self) -> bool:
        """Whether the connection is over."""
        return self._ended is not None

    def check_connected(self) -> None:
        """Checks that the connection goes on, as far as has been heard.

        Raises:
            ConnectionLostError: it is over.
            LimitError: it is over because the daemon takes in no further client.
            UnavailableError: it is over because the daemon cannot start.
        """
        if self._ended is not None:
            raise self._end_error(self._ended)

    def _end_error(self, reason: str) -> LockdError:
        if isinstance(found := self._farewell, LimitError | UnavailableError):
            return type(found)(found.message, found.facts)
        return ConnectionLostError(reason) if self._heard else UnheardError(reason)

    def start(self, reply: Reply) -> None:
        """Makes a request pending; `outgoing` then holds its bytes too.

        Raises:
            ConnectionLostError: the connection is over.
            InvalidRequestError: the parameters cannot be sent; nothing has changed.
        """
        self.check_connected()
        msgid = self._unused_msgid()
        data = self._encoder.encode(msgid, reply.method, reply.params)
        reply.msgid = msgid
        self._pending[msgid] = reply
        self.outgoing += data

    def release(self, grant: Grant) -> Reply:
        """Makes the release of a grant pending.

        The reply is done at once if the grant is no longer held: with nothing if it was
        released here, with `LockLostError` if it was lost.
        """
        reply = Reply("release", {"fencing_token": grant.fencing_token}, (grant,))
        if grant._state == _HELD:
            self.start(reply)
            grant._state = _RELEASING
        else:
            reply.settle(error=grant._lost_error() if grant.lost else None)
        return reply

    def abandon(self, reply: Reply) -> bool:
        """Gives up a request, whatever its state; what it brings is given back.

        Returns:
            Whether the daemon was asked to cancel it: its answer is then near, and
            is worth waiting for.
        """
        if reply.done:
            self._undo(reply)
            return False
        if reply.msgid is None or reply.abandoned:
            return False
        reply.abandoned = True
        if reply.method not in ("acquire", "convert"):
            return False
        self.start(Reply("cancel", {"request": reply.msgid}))
        return True

    def receive(self, data: bytes) -> None:
        """Takes bytes as they came; no bytes: the daemon closed the connection."""
        if not data:
            self.end(
                "the daemon closed the connection: connect again when `lockctl status` "
                "says that it runs"
            )
        elif self._ended is None:
            self._heard = True
            try:
                for message in self._decoder.receive(data):
                    self._receive_message(message)
            except (ProtocolError, LookupError, TypeError, ValueError) as error:
                self.end(f"the daemon cannot be understood: {error}")

    def end(self, reason: str) -> None:
        """Ends the connection: what is held is lost, what is pending fails."""
        if self._ended is not None:
            return
        self._ended = reason
        self.outgoing.clear()
        for token in list(self._held):
            self._lose(token, "disconnected", None)
        for reply in list(self._pending.values()):
            self._fail(reply, self._end_error(reason))
        self._pending.clear()
        for on_end in self.on_end:
            on_end(self._end_error(reason))

    def close(self) -> None:
        """Ends the connection on purpose: what is held is released, not lost."""
        for token in list(self._held):
            for grant in self._drop(token):
                grant._state = _RELEASED
        self.end("the client is closed: open another one")

    # What the daemon says.

    def _receive_message(self, message: list[Any]) -> None:
        if message[0] == RESPONSE:
            self._receive_answer(*message[1:])
        elif message[:2] == [NOTIFICATION, "lost"]:
            (lost,) = message[2]
            self._lose(lost["fencing_token"], lost["cause"], lost.get("reason"))
        elif message[:2] == [NOTIFICATION, "event"] and self.on_event is not None:
            self.on_event(*message[2])

    def _receive_answer(self, msgid: int | None, error: Any, result: Any) -> None:
        if msgid is None:
            # protocol 3.2: no request of ours is meant; the daemon is about to close.
            self._farewell = refusal(error)
            raise ProtocolError(error[1])
        reply = self._pending.pop(msgid)
        if error is not None:
            self._fail(reply, refusal(error))
            return
        if reply.method in _SUCCESSES:
            _SUCCESSES[reply.method](self, reply, result)
        reply.settle(result)
        if reply.abandoned:
            self._undo(reply)

    def _fail(self, reply: Reply, error: LockdError) -> None:
        if reply.method == "release" and reply.grants:
            (grant,) = reply.grants
            if grant.lost:
                error = grant._lost_error()
            elif isinstance(error, NotHeldError):
                self._forget(grant)
            else:
                grant._state = _HELD
        reply.settle(error=error)

    def _acquired(self, reply: Reply, result: dict[str, Any]) -> None:
        shapes = result["grants"] if "resources" in reply.params else [result["grant"]]
        reply.grants = tuple(Grant(shape) for shape in shapes)
        for grant in reply.grants:
            self._held.setdefault(grant.fencing_token, []).append(grant)
            self._tokens[grant.lockspace, grant.resource] = grant.fencing_token

    def _converted(self, reply: Reply, result: dict[str, Any]) -> None:
        grant = Grant(result["grant"])
        for held in self._held.get(grant.fencing_token, ()):
            reply.undo_mode, held.mode = held.mode, grant.mode
            grant = held
        # protocol 6.3: it may be another session's, for the same registered owner.
        reply.grants = (grant,)

    def _released(self, reply: Reply, result: None) -> None:
        if "fencing_token" in reply.params:
            grants = reply.grants or self._held_under(reply.params["fencing_token"])
        else:
            names = reply.params.get("resources") or [reply.params["resource"]]
            lockspace = reply.params.get("lockspace", "default")
            tokens = [self._tokens.get((lockspace, name), 0) for name in names]
            grants = tuple(g for token in tokens for g in self._held_under(token))
        for grant in grants:
            self._forget(grant)

    # What is held.

    def _held_under(self, token: int) -> tuple[Grant, ...]:
        # A release takes back one count of a shared hold; which one is all the same.
        return tuple(self._held.get(token, ())[-1:])

    def _forget(self, grant: Grant) -> None:
        if not grant.lost:
            grant._state = _RELEASED
        grants = self._held.get(grant.fencing_token, [])
        if grant in grants:
            grants.remove(grant)
        if not grants:
            self._drop(grant.fencing_token)

    def _drop(self, token: int) -> list[Grant]:
        grants = self._held.pop(token, [])
        for grant in grants:
            self._tokens.pop((grant.lockspace, grant.resource), None)
        return grants

    def _lose(self, token: int, cause: str, reason: str | None) -> None:
        for grant in self._drop(token):
            was, grant._state = grant._state, _LOST
            grant.cause, grant._reason = cause, reason
            if was == _HELD and self.on_lost is not None:
                self.on_lost(grant)

    def _undo(self, reply: Reply) -> None:
        if self._ended is not None:
            return
        if reply.method == "acquire":
            for grant in reply.grants:
                if grant._state == _HELD:
                    self.release(grant)
        elif reply.undo_mode == SHARED and reply.params["mode"] == EXCLUSIVE:
            reply.undo_mode = None
            self.start(Reply("convert", reply.params | {"mode": SHARED}))

    # The wire.

    def _unused_msgid(self) -> int:
        msgid = self._last_msgid
        while True:
            msgid = msgid + 1 & 0xFFFF_FFFF
            if msgid not in self._pending:
                self._last_msgid = msgid
                return msgid


#: What the success of a request changes in the core.
_SUCCESSES: Final[dict[str, Callable[[ClientCore, Reply, Any], None]]] = {
    "acquire": ClientCore._acquired,
    "convert": ClientCore._converted,
    "release": ClientCore._released,
}
