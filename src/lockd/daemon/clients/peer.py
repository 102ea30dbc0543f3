"""One client: its identity, its requests, and whether its connection must end.

It never waits. It reads no requests while the client is behind (`outbox`): a client
that does not read its answers gets no new ones. At the end of a turn, the server closes
the peers that are `is_closing`.
"""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from lockd.daemon.clients.outbox import Outbox
from lockd.daemon.clients.peer_state import PeerState, Position
from lockd.daemon.config.config import Limits
from lockd.daemon.stores.pieces import Apart
from lockd.daemon.stores.streams import PIPE_SIZE, Flow, KeptFlow, PlainFlow
from lockd.daemon.system.credentials import Identity
from lockd.daemon.system.listener import ADMINS, CLIENTS, VIRTLOCKD, Role
from lockd.errors import CodedError, ProtocolError
from lockd.libvirt.connection import Connection as LibvirtConnection
from lockd.lockspaces.rights import User
from lockd.protocol.connection import Connection

logger = logging.getLogger(__name__)

SLICE: Final = 0.001
"""Seconds for the requests of one client before those of others."""

ANSWERS_AT_ONCE: Final = 256 * 1024
"""Bytes of answers after which further requests of a client wait. They wait for the
next turn, and until the socket has accepted these bytes: this limits the memory for a
client."""

READING: Final = select.EPOLLIN | select.EPOLLPRI
"""EPOLLPRI: a byte out of band (send(2), MSG_OOB), which no read would return."""

WRITING: Final = select.EPOLLOUT


Plain = dict[str, Any]
_PLAIN_ATTRIBUTES: Final[tuple[str, ...]] = (
    *("is_closing", "restricted", "client", "claims_itself"),
    *("watched", "is_inheritable"),
)


ARRAY: Final = object()
"""The grants of a request that named its resources in an array (protocol 6.1)."""

RELOAD: Final = object()
"""The result of a reload, which a successor may have to send (protocol 6.19)."""

CHANGE: Final = object()
"""The result of creating or deleting the file of a resource (protocol 6.10)."""


Conversation = Connection | LibvirtConnection
"""A conversation in one of the two protocols."""


def connection_for(
    role: Role,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    on_error: Callable[[str], None] = lambda code: None,
    user: int | None = None,
) -> Conversation:
    """Returns a new conversation in the protocol of a socket."""
    if role == VIRTLOCKD:
        return LibvirtConnection(on_error)
    return Connection(limits.message_bytes, on_error, user)


class Peer:
    """The daemon's end of one session.

    Args:
        session: its number.
        sock: its socket.
        identity: the process at the other end.
        since: when it connected.
        watch: called with the events to watch from now on.
        role: the socket at which it arrived.
        is_admin: whether it may do everything.
        limits: the limits of its messages and unread bytes.
        flow: the flow of its bytes; None for a plain one.
        on_error: called with the code of each error that is sent.

    Attributes:
        user: the user for its limits and its share of a turn.
        outbox: the bytes on their way to it.
        restricted: whether it has given up its rights.
        is_libvirt: whether it uses libvirt's protocol.
        client: its name in `hello`.
        claims_itself: whether it has registered its own process by pid.
        is_closing: whether to close it at the end of the turn.
        is_leaving: whether to do nothing but close it: nothing more is sent, read or
            recorded.
        has_said_all: whether no more requests can come: the client has shut down its
            sending side. It keeps its locks until the connection ends.
        is_inheritable: whether the session survives the death of the process that
            connected, while another one has its socket.
        is_orphaned: whether that process has died and the session therefore ends.
        expected: by msgid, the result of a request after the lock table has carried it
            out, if it is not just its grant or nil. `ARRAY` means an array of grants.
        late: by msgid, what a request waits for outside the lock table: `RELOAD` or
            `CHANGE` (`Answers.expect`).
    """

    def __init__(
        self,
        session: int,
        sock: socket.socket,
        identity: Identity,
        since: float,
        watch: Callable[[int], None],
        *,
        role: Role = CLIENTS,
        is_admin: bool = False,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        flow: Flow | None = None,
        on_error: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.session = session
        self.flow = flow or PlainFlow(sock)
        self.outbox = Outbox(self.flow, limits.unread_bytes)
        self.credentials = identity.credentials
        self.groups = identity.groups
        self.is_foreign = identity.is_foreign
        self.user = identity.user
        self.is_admin = is_admin
        self.role = role
        self.since = since
        self.connection = connection_for(role, limits, on_error, identity.user)
        self.restricted = False
        self.client: str | None = None
        self.claims_itself = False
        self.is_closing = self.is_leaving = False
        self.has_said_all = self.is_orphaned = False
        # libvirtd passes its connections on to the guests.
        self.is_libvirt = self.is_inheritable = role == VIRTLOCKD
        self.expected: dict[int, Any] = {}
        self.late: dict[int, object] = {}
        #: The watched lockspace; "" for all that it may see.
        self.watched: str | None = None
        self._sock = sock
        #: Requests that were read but not yet carried out.
        self._requests: Iterator[Any] | None = None
        self._watch = watch
        #: How many bytes were received, before this process and since.
        self._received_before = self._received = 0

    @property
    def file_user(self) -> User | None:
        """The user whose rights to files count; None for an admin, who needs none."""
        return None if self.is_admin else User(self.credentials.uid, self.groups)

    def __repr__(self) -> str:
        return (
            f"<Peer {self.session} pid={self.credentials.pid} "
            f"uid={self.credentials.uid} unsent={len(self.outbox)}>"
        )

    def dump(self) -> Plain:
        """Returns its identity as plain data, which never changes (`handover`)."""
        return {
            "session": self.session,
            "credentials": list(self.credentials),
            "groups": list(self.groups),
            "is_foreign": self.is_foreign,
            "user": self.user,
            "role": self.role,
            "is_admin": self.is_admin,
            "since": self.since,
            "slot": self.flow.slot,
        }

    def dump_state(
        self, claims: int | None = None, apart: Apart | None = None
    ) -> tuple[Position, PeerState]:
        """Returns the position of its session, and the rest of its state.

        Requests that were read but not carried out are not in it. With `KeptFlow` they
        are still in the socket.

        Args:
            claims: `Session.claims`, if it is recorded.
            apart: takes long data; None to have all of it in the result.
        """
        connection = self.connection.dump()
        done = self._received
        if self._requests is not None:
            done = self._received_before + self.connection.begun_at
            connection = connection | {"partial": b""}
        pieces = None if apart is None else apart.unsent
        unsent_apart, unsent, piled_up = self.outbox.dump(pieces)
        partial_apart = 0
        if apart is not None:
            half = connection["partial"]
            partial_apart, rest = apart.partial.note(done - len(half), half)
            if partial_apart:
                connection = connection | {"partial": rest}
        state = PeerState(
            0,
            0,
            connection,
            b"",
            piled_up,
            self._arrays,
            self.is_closing,
            self.restricted,
            self.client,
            self.claims_itself,
            self.watched,
            None,
            unsent_apart,
            partial_apart,
            self.reloads,
            self.is_inheritable,
            self.outbox.missed_notices,
            True,
        )
        return Position(done, self.flow.sent, unsent, claims), state

    @property
    def _arrays(self) -> list[int]:
        """The msgids of the requests that expect an array of grants."""
        if not self.expected:
            return []  # as in almost every turn
        return [msgid for msgid, what in self.expected.items() if what is ARRAY]

    @property
    def reloads(self) -> tuple[int, ...]:
        """The msgids of the requests that wait for the end of a reload."""
        if not self.late:
            return ()
        return tuple(msgid for msgid, what in self.late.items() if what is RELOAD)

    def load_state(self, state: PeerState) -> None:
        """Restores the state of a session.

        Raises:
            OSError: the connection is broken.
            ValueError: its positions are unknown (`KeptFlow.resume`).
        """
        for name in _PLAIN_ATTRIBUTES:
            setattr(self, name, getattr(state, name))
        self.expected = dict.fromkeys(state.arrays, ARRAY)
        self.late = dict.fromkeys(state.reloads, RELOAD)
        self.connection.load(state.connection)
        self._received = state.done
        self._received_before = state.done - len(state.connection["partial"])
        unsent = state.unsent
        if isinstance(self.flow, KeptFlow):
            end = state.sent + len(unsent)
            self.flow.resume(state.done, range(state.sent, end))
            unsent = unsent[self.flow.sent - state.sent :]
        self.outbox.load(unsent, state.piled_up, state.missed_notices)

    def introduce(self, client: str | None) -> None:
        """Notes its `hello`, and its name there."""
        self.connection.greet()
        self.client = client

    def restrict(self) -> None:
        """Takes its rights away for ever."""
        self.restricted = True

    def claim_itself(self) -> None:
        """Notes that its own process is registered by pid."""
        self.claims_itself = True

    def make_inheritable(self) -> None:
        """Lets its session survive the process that connected."""
        self.is_inheritable = True

    def begin_watching(self, lockspace: str | None) -> None:
        """Notes the lockspace that it watches; None for all that it may see."""
        self.watched = lockspace or ""

    @property
    def at_admin_socket(self) -> bool:
        """Whether it counts as an admin's session."""
        return self.role == ADMINS

    @property
    def wanted_events(self) -> int:
        """The events to watch its socket for; a hang-up is always reported."""
        if self.outbox.is_behind:
            return WRITING
        # The end of the client's bytes would be reported again and again.
        return 0 if self.has_said_all else READING

    def finish_receiving(self, take: Callable[[Peer, Any], None]) -> None:
        """Carries out the requests that were left for later."""
        while self._requests is not None and not self.is_closing:
            self.receive(take)

    def receive(self, take: Callable[[Peer, Any], None]) -> None:
        """Reads bytes, and passes each request on.

        The end of the bytes closes the peer.

        If it takes too long, the rest is left for later (`has_more`). After any other
        exception than a protocol error the peer cannot continue: `abandon` it. A
        closing peer reads nothing, because a successor would get that as half a
        message.
        """
        if self.is_closing:
            return
        if self._requests is None:
            data = self._read()
            if data is None:
                return
            self._received += len(data)
            self._requests = self.connection.receive(data)
        until = monotonic() + SLICE
        try:
            for request in self._requests:
                take(self, request)
                is_much = self.connection.outgoing_bytes > ANSWERS_AT_ONCE
                if is_much or monotonic() > until:
                    return
        except ProtocolError as error:
            logger.info("session %d is closed: %s", self.session, error.message)
            self.is_closing = True
        self._requests = None

    def send_result(self, msgid: int, result: Any = None) -> None:
        """Answers a request with its result, at the end of the turn."""
        self.connection.send_result(msgid, result)

    def send_error(self, msgid: int | None, error: CodedError) -> None:
        """Answers with an error, at the end of the turn (`Connection.send_error`)."""
        self.connection.send_error(msgid, error)

    def close_after_answers(self) -> None:
        """Closes it at the end of the turn, after its answers."""
        self.is_closing = True

    def leave(self) -> None:
        """Notes that nothing remains but to close it."""
        self.is_closing = self.is_leaving = True

    def abandon(self) -> None:
        """Ends it at once, after a defect.

        It discards all that the client has sent: the same request might end each next
        daemon.
        """
        self.leave()
        self._requests = None
        self.shut_down()
        with suppress(OSError):
            while self._sock.recv(PIPE_SIZE):
                pass

    def _read(self) -> bytes | None:
        try:
            data = self.flow.receive()
        except BlockingIOError:
            return None
        except OSError:
            self.is_closing = True
            return None
        if not data:
            self._end_requests()
        return data or None

    def _end_requests(self) -> None:
        """Notes that no more requests come (protocol 1.1)."""
        self.has_said_all = True
        # Another process may have shut the socket down. Only a hang-up is the end.
        if self.is_orphaned or has_hung_up(self.fileno()):
            self.is_closing = True
        elif not self.outbox.is_behind:
            self._watch(self.wanted_events)

    def end_with_process(self) -> None:
        """Ends it after all requests of its dead process are carried out."""
        if self.is_inheritable:
            return
        self.is_orphaned = True
        if self.outbox.is_behind or self.has_said_all:
            self.is_closing = True
        else:
            # Accept nothing more: only another process could send it.
            shut_down(self._sock, socket.SHUT_RD)

    @property
    def unfinished(self) -> int:
        """How many bytes wait for the client: to be read, or to be completed."""
        return self.outbox.unread + self.connection.partial_bytes

    def cut_off(self, why: str) -> None:
        """Ends the connection, and drops its unread bytes."""
        logger.warning("session %d is closed: %s", self.session, why)
        # Shut down before a record is written: a successor must not continue with a
        # gap.
        self.shut_down()
        self.outbox.forget()
        self.is_closing = True

    @property
    def has_more(self) -> bool:
        """Whether requests were left for later and can be carried out."""
        return not (self._requests is None or self.outbox.is_behind or self.is_closing)

    def collect(self) -> None:
        """Takes the new answers from the conversation."""
        self.outbox.add(self.connection.data_to_send())

    def flush(self) -> None:
        """Sends as many bytes as the socket accepts."""
        outbox, was_behind = self.outbox, self.outbox.is_behind
        try:
            outbox.send(self.connection.data_to_send())
            if self._requests is None and not self.is_closing:
                self.flow.settle()
        except OSError:
            self.is_closing = True
            return
        if outbox.is_behind is not was_behind:
            if outbox.is_behind and self.is_orphaned:
                self.is_closing = True  # nobody reads it
            else:
                self._watch(self.wanted_events)
        elif was_behind and outbox.leaves_too_much:
            why = f"it left {outbox.unasked} bytes unread"
            logger.warning("session %d is closed: %s", self.session, why)
            self.is_closing = True

    def tell_resumed(self, epoch: int) -> None:
        """Tells a client that said hello that another process serves it now."""
        if self.connection.greeted:
            self.connection.send_notification("resumed", {"epoch": epoch})

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self._sock.fileno()

    def shut_down(self) -> None:
        """Ends the connection. The client sees EOF even if others have the socket."""
        shut_down(self._sock)

    def close(self) -> None:
        """Ends the connection, and closes the socket."""
        self.shut_down()
        self._sock.close()


def shut_down(sock: socket.socket, what: int = socket.SHUT_RDWR) -> None:
    """Shuts a connection down. Does nothing if it has ended."""
    with suppress(OSError):  # the client was faster
        sock.shutdown(what)


def has_hung_up(fd: int) -> bool:
    """Returns whether a connection has ended in both directions, by either side."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
