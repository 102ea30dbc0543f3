"""The client's side of a conversation: requests, grants and losses.

The core does no I/O and no waiting, and has no threads and no clock. Its shell sends
the bytes in `outgoing`, passes received bytes on, and waits for a `Reply`.

**Other code may run at any call.** Python runs signal handlers and finalizers after any
call. They may use the same connection, and may raise. So no lock may keep a thread from
its own work, and every interrupted step can be completed later:

- An atomic step is one call of a function written in C, or code without a call.
- Received bytes stay in `arrived` until all of them are processed. Code that interrupts
  the processing, or follows an exception, processes them from the start. To process a
  message twice, or late, has no further effect.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, count, repeat

from lockd.client.encoding import cut, encode, refusal, with_number
from lockd.client.grants import AnyGrant, Hold, Holds, shapes_of
from lockd.client.inbox import News
from lockd.client.reply import LeftReleases, Reply
from lockd.client.strands import Program
from lockd.errors import (
    ConnectionLostError,
    LimitError,
    LockdError,
    NotHeldError,
    UnavailableError,
)
from lockd.hints import TYPE_CHECKING, Any, Final
from lockd.protocol.codec import RESPONSE
from lockd.terms import SHARED, ResourceKey

if TYPE_CHECKING:
    from lockd.terms import WorkOutcome

PROTOCOL_VERSION: Final = 1

_MSGIDS: Final = 0xFFFF_FFFF

CLOSED: Final = (
    "the daemon closed the connection: connect again when `lockctl status` says that "
    "it runs"
)


class UnheardError(ConnectionLostError):
    """Raised when a connection ended before the daemon had sent anything on it.

    The daemon carried out no request of it, so the client may try again (protocol 1.5).
    """


_Stage = tuple[int, bytes, int]
"""How far the received bytes have been processed: the number of the last ones, the
incomplete message at their end, and how many messages have been processed.

Each is a new object, so `is` tells whether other code has processed some in between.
"""


class ClientCore:
    """The state of one connection.

    Args:
        make_grant: returns the grant for a hold.
        kind: what the strands of this program are: "thread" or "task".

    Attributes:
        outgoing: the requests to send. The sender removes what it has sent.
        arrived: received bytes that are not yet processed, each with a number of
            `numbers`.
        left: the releases whose answers nobody waits for.
        program: what the daemon takes this program for.
        ended: why the connection has ended; None: it has not.
        on_end: called at the end of the connection with the error that all calls raise
            from then on.
    """

    def __init__(self, make_grant: Callable[[Hold], AnyGrant], kind: str) -> None:
        self.outgoing: deque[bytes] = deque()
        self.arrived: deque[tuple[bytes, int]] = deque()
        self.numbers = count()
        self.left = LeftReleases()
        self.program = Program(kind)
        self.on_end: list[Callable[[LockdError], None]] = []
        self._make_grant = make_grant
        self._on_lost: Callable[[AnyGrant], None] | None = None
        self._on_event: Callable[[dict[str, Any], int], None] | None = None
        self._news: list[News] = []
        self.ended: str | None = None
        self._stage: _Stage = (-1, b"", 0)
        self._over = False
        self._heard = False
        #: The error that the daemon sent before it closed the connection, if any.
        self._farewell: LockdError | None = None
        self._msgids = count(1)
        self._pending: dict[int, Reply] = {}
        self._holds = Holds(make_grant)

    def __repr__(self) -> str:
        counts = f"{len(self._pending)} pending, {len(self._holds)} held"
        return f"<ClientCore {counts}, {self.ended or 'connected'}>"

    # The interface for the shell.

    def tell_losses_to(self, on_lost: Callable[[AnyGrant], None]) -> None:
        """Sets the function to call with every grant that is lost."""
        self._on_lost = on_lost

    def tell_events_to(self, on_event: Callable[[dict[str, Any], int], None]) -> None:
        """Sets the function to call with every event of a watch, and its number."""
        self._on_event = on_event

    def tell_no_events_to(
        self, on_event: Callable[[dict[str, Any], int], None]
    ) -> None:
        """Removes the function that `tell_events_to` set, unless another is set."""
        if self._on_event == on_event:
            self._on_event = None

    def open_news(self) -> News:
        """Returns an inbox for grants with notices; it has those with earlier ones."""
        news = News(self._holds.grant_of)
        self._news.append(news)
        self.on_end.append(news.end)
        for hold in self._holds.all():
            if hold.overdue or hold.wanted:
                news.put_hold(hold)
        return news

    def close_news(self, news: News) -> None:
        """Stops passing grants to an inbox."""
        with suppress(ValueError):  # a second call after an exception
            self._news.remove(news)
            self.on_end.remove(news.end)

    def token_of(self, key: ResourceKey, strand: int) -> int | None:
        """Returns the fencing token under which a strand holds a resource."""
        return self._holds.token_of(key, strand)

    def check_connected(self) -> None:
        """Raises an error if the connection has ended.

        Raises:
            ConnectionLostError: it has ended.
            LimitError: the daemon ended it: it accepts no more clients.
            UnavailableError: the daemon ended it: it cannot start.
        """
        if self.ended is not None:
            raise self._end_error(self.ended)

    def _end_error(self, reason: str) -> LockdError:
        if isinstance(found := self._farewell, LimitError | UnavailableError):
            return type(found)(found.message, found.facts)
        return ConnectionLostError(reason) if self._heard else UnheardError(reason)

    def start(self, reply: Reply) -> None:
        """Makes a request pending, and adds its bytes to `outgoing`.

        A second call does nothing, or completes a call that an exception interrupted.

        Raises:
            ConnectionLostError: the connection has ended.
            InvalidRequestError: the parameters cannot be sent. Nothing has changed.
        """
        if self.ended is not None:
            raise self._end_error(self.ended)
        if reply.unsent is None:
            msgid = reply.msgid
            while msgid is None or self._pending.setdefault(msgid, reply) is not reply:
                msgid = next(self._msgids) & _MSGIDS
                reply.assign(msgid)
            try:
                reply.keep(
                    encode(msgid, reply.method, reply.params, checked=reply.checked)
                    if reply.rest is None
                    else with_number(msgid, reply.rest)
                )
            except BaseException:
                self._pending.pop(msgid, None)
                raise
        self.outgoing.extend(reply.unsent or ())
        if self.ended is not None:
            self._over = False
            self._finish_end()

    def release(
        self, grant: AnyGrant, outcome: "WorkOutcome" = None, *, wait: bool = True
    ) -> Reply:
        """Makes the release of a grant pending. A second call returns the same reply.

        The reply is done at once if the grant is no longer held. Its outcome is None
        after a release, and `LockLostError` after a loss.

        Args:
            grant: the grant.
            outcome: how the work under the lock ended.
            wait: whether the caller waits for the answer.
        """
        hold = grant.hold
        params: dict[str, Any] = {"fencing_token": hold.fencing_token}
        if outcome is not None:
            params["outcome"] = outcome
        reply = Reply("release", params, holds=(hold,), checked=True)
        pending = hold.release_by(reply, left=not wait)
        if pending is not None:
            reply = pending
            if wait:
                self.left.remove(reply)
            else:
                self.left.add(reply)
            self.start(reply)
        else:
            reply.settle(error=hold.lost_error() if hold.lost else None)
        return reply

    def abandon(self, reply: Reply) -> bool:
        """Gives up a request in any state; releases what it brings.

        Returns:
            Whether a cancel was sent. The answer then comes soon, so the caller should
                wait for it.
        """
        if reply.done:
            self._undo(reply)
            return False
        if reply.msgid is None or not reply.give_up():
            return False
        if reply.method not in ("acquire", "convert"):
            return False
        if reply.unsent is None or list(reply.unsent):
            # None of it is in `outgoing`, and none will be.
            self._pending.pop(reply.msgid, None)
            return False
        self.start(Reply("cancel", {"request": reply.msgid}))
        return True

    def receive(self, data: bytes) -> None:
        """Takes received bytes. No bytes mean that the daemon closed the connection."""
        self.arrived.append((data, next(self.numbers)))
        self.take_in()

    def take_in(self) -> None:
        """Processes the received bytes."""
        while self.arrived and self.ended is None:
            stage, first = self._stage, self.arrived[0]
            data, number = first
            if number > stage[0]:
                self._take_bytes(stage, number, data)
            # No call between the tests and the removal.
            if self.arrived and self.arrived[0] is first:
                self.arrived.popleft()
        if self.ended is not None:
            self._finish_end()

    def _take_bytes(self, stage: _Stage, number: int, data: bytes) -> None:
        if not data:
            self.end(CLOSED)
            return
        self._heard = True
        _, tail, taken = stage
        messages, tail, error = cut(tail + data if tail else data)
        for place, message in enumerate(messages, taken):
            if self._stage is not stage or self.ended is not None:
                return  # other code has run in between and processed all of it
            if not self._take_message(message, place) and self._stage is stage:
                self.end(f"the daemon broke the protocol: it sent {message!r:.200}")
        if error is not None and self._stage is stage:
            self.end(f"the daemon broke the protocol: {error}")
        if self.ended is not None:
            return
        new = (number, tail, taken + len(messages))
        # No call between the test and the store.
        if self._stage is stage:
            self._stage = new
        for message in messages:
            if message[0] == RESPONSE:
                self._pending.pop(message[1], None)

    def end(self, reason: str) -> None:
        """Ends the connection: all holds are lost, all pending requests fail."""
        if self.ended is None:
            self.ended = reason
        self._finish_end()

    def _finish_end(self) -> None:
        # Repeats itself until one run is complete.
        if self._over:
            return
        self.outgoing.clear()
        self.arrived.clear()
        reason = self.ended or ""
        for token in self._holds.tokens():
            self._lose(token, "disconnected", "")
        for msgid, reply in list(self._pending.items()):
            self._fail(reply, self._end_error(reason))
            self._pending.pop(msgid, None)
        self.left.end()
        for on_end in list(self.on_end):
            on_end(self._end_error(reason))
        self._over = True

    def close(self) -> None:
        """Ends the connection on purpose: all holds count as released."""
        if self.ended is None:
            for hold in self._holds.all():
                hold.end()
        self.end("the client is closed: open another one")

    # Processing messages.

    def _take_message(self, message: Any, number: int) -> bool:
        match message:
            case [1, msgid, None, result]:
                reply = self._pending.get(msgid) if isinstance(msgid, int) else None
                if reply is None:
                    return False
                succeed = _SUCCESSES.get(reply.method)
                if succeed is not None and not succeed(self, reply, result):
                    return False
                reply.settle(result)
                if reply.abandoned:
                    self._undo(reply)
            case [1, int() | None as msgid, [_, str(), *_] as error, _]:
                return self._refuse(msgid, error)
            case [
                2,
                "lost",
                [{"fencing_token": int(token), "cause": str(cause), **more}],
            ]:
                self._lose(token, cause, str(more.get("reason") or ""))
            case [2, "notice", [{"fencing_token": int(token), "what": str(what)}]]:
                for hold in self._holds.under(token):
                    hold.hear(what, number)
                    for news in list(self._news):
                        news.put_hold(hold)
            case [2, "event", [dict(event)]]:
                if self._on_event is not None:
                    self._on_event(event, number)
            case [2, str(name), list()]:
                return name not in ("lost", "notice", "event")
            case _:
                return False
        return True

    def _refuse(self, msgid: int | None, error: list[Any]) -> bool:
        if msgid is None:
            # protocol 3.2: this answers no request of ours; the daemon is about to
            # close.
            self._farewell = refusal(error)
            self.end(f"the daemon closes the connection: {error[1]}")
            return True
        reply = self._pending.get(msgid)
        if reply is None:
            return False
        refused = refusal(error, reply.params)
        self._fail(reply, self.program.in_own_words(refused, reply.strand))
        return True

    def _fail(self, reply: Reply, error: LockdError) -> None:
        if reply.holds:
            (hold, *_) = reply.holds
            if hold.lost:
                error = hold.lost_error()
            elif isinstance(error, NotHeldError):
                self._holds.forget(hold)
            else:
                hold.keep_after(reply)
            if self.ended is None:
                self.left.refuse(reply, error)
        reply.settle(error=error)

    def _acquired(self, reply: Reply, result: Any) -> bool:
        shapes = shapes_of(result, several="resources" in reply.params)
        if shapes is None:
            return False
        holds = map(Hold, shapes, repeat(reply.strand))
        reply.bring(tuple(map(self._make_grant, holds)))
        for grant in reply.grants:
            if not reply.done:
                self._holds.add(grant.hold)
        return True

    def _converted(self, reply: Reply, result: Any) -> bool:
        shapes = shapes_of(result)
        if shapes is None:
            return False
        found = new = Hold(*shapes)
        for hold in self._holds.under(new.fencing_token):
            found = hold
            reply.note_mode(hold.mode)
            hold.convert(new.mode, reply)
        # protocol 6.3: another session of the same registered owner may hold it.
        grant = self._holds.grant_of(found)
        reply.bring((grant,))
        return True

    def _released(self, reply: Reply, result: None) -> bool:
        if not reply.holds:
            # A release takes back one count of a shared hold; any of them will do.
            tokens = self._released_tokens(reply.params)
            holds = [self._holds.under(token)[-1:] for token in tokens]
            reply.take(tuple(chain.from_iterable(holds)))
        for hold in reply.holds:
            self._holds.forget(hold)
        self.left.remove(reply)
        return True

    def _released_tokens(self, params: dict[str, Any]) -> list[int]:
        if "fencing_token" in params:
            return [params["fencing_token"]]
        # By name, the daemon releases what the session holds as a whole.
        names = params.get("resources") or [params["resource"]]
        space = params.get("lockspace", "default")
        return [self.token_of(ResourceKey(space, name), 0) or 0 for name in names]

    def _introduced(self, reply: Reply, result: Any) -> bool:
        self.program.hear(reply, result)
        return True

    def _lose(self, token: int, cause: str, reason: str) -> None:
        holds = self._holds.under(token)
        for hold in holds:
            if not hold.released:
                was_wanted = hold.release is None
                hold.lose(cause, reason)
                for news in list(self._news) if was_wanted else ():
                    news.put_hold(hold)
                if was_wanted and self._on_lost is not None:
                    self._on_lost(self._holds.grant_of(hold))
        self._holds.drop(token, holds)

    def _undo(self, reply: Reply) -> None:
        if self.ended is not None:
            return
        if reply.method == "acquire":
            for grant in reply.grants:
                self.release(grant)
        elif reply.give_up_mode():
            self.start(Reply("convert", reply.params | {"mode": SHARED}))


#: For each method: updates the core after a success. False: the result is invalid.
_SUCCESSES: Final[dict[str, Callable[[ClientCore, Reply, Any], bool]]] = {
    "acquire": ClientCore._acquired,
    "convert": ClientCore._converted,
    "hello": ClientCore._introduced,
    "register": ClientCore._introduced,
    "release": ClientCore._released,
}
