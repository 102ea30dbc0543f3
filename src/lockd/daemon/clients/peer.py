"""One client: its socket, its unsent answers, and whether its connection is to end.

Never waits. Bytes that the socket does not take at once are kept until it is writable.
Meanwhile no requests are read from this client: a client that does not read its answers
gets no new ones. The server closes it at the end of the turn in which it `is_closing`.
"""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from msgspec import Struct

from lockd.daemon.config.config import Limits
from lockd.daemon.stores.pieces import Apart
from lockd.daemon.stores.streams import PIPE_SIZE, Flow, KeptFlow, PlainFlow
from lockd.daemon.system.credentials import Identity
from lockd.daemon.system.listener import ADMINS, CLIENTS, VIRTLOCKD, Role
from lockd.errors import ProtocolError
from lockd.libvirt.connection import Connection as LibvirtConnection
from lockd.lockspaces.rights import User
from lockd.protocol.connection import Connection

logger = logging.getLogger(__name__)

SLICE: Final = 0.001
"""Seconds for which one client's requests are carried out before the others'."""

ANSWERS_AT_ONCE: Final = 256 * 1024
"""Bytes of answers after which a client's further requests have to wait for the next
turn, and until the socket has taken these: what it makes us keep has an end."""

READING: Final = select.EPOLLIN | select.EPOLLPRI
"""EPOLLPRI: a byte out of band (send(2), MSG_OOB), which no read would ever return."""

WRITING: Final = select.EPOLLOUT


Plain = dict[str, Any]
_PLAIN_ATTRIBUTES: Final = (
    "is_closing",
    "restricted",
    "client",
    "claims_itself",
    "watched",
    "is_inheritable",
)


class PeerState(Struct, frozen=True, array_like=True, gc=False):
    """Where a session stands, as plain data (`Peer.dump_state`).

    Attributes:
        done: how many bytes of requests were carried out, or are in `connection`.
        sent: how many bytes of answers left before those in `unsent`.
        arrays: the msgids of requests that expect an array of grants.
        claims: what it holds and waits for, as `Session.claims`; where it is recorded
            apart from that, so that it can be seen whether some of it is missing.
        unsent_apart: bytes that come before `unsent`, and are recorded in `Pieces`.
        partial_apart: the same, before the half message in `connection`.
        reloads: the msgids of requests that expect the end of a reload.
        is_inheritable: as of a `Peer`; what an older daemon served was always so.
    """

    done: int
    sent: int
    connection: Plain
    unsent: bytes
    piled_up: int
    arrays: list[int]
    is_closing: bool
    restricted: bool
    client: str | None
    claims_itself: bool
    watched: str | None
    claims: int | None = None
    unsent_apart: int = 0
    partial_apart: int = 0
    reloads: tuple[int, ...] = ()
    is_inheritable: bool = True


ARRAY: Final = object()
"""The grants of a request that named its resources in an array (protocol 6.1)."""

RELOAD: Final = object()
"""How a reload ended, which a successor may have to tell (protocol 6.19)."""

CHANGE: Final = object()
"""Whether the file of a resource could be made or removed (protocol 6.10)."""


Conversation = Connection | LibvirtConnection
"""What a peer says and hears, in one tongue or the other."""


def connection_for(
    role: Role,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    on_error: Callable[[str], None] = lambda code: None,
) -> Conversation:
    """Returns a new conversation in the tongue that is spoken at a socket."""
    if role == VIRTLOCKD:
        return LibvirtConnection(on_error)
    return Connection(limits.message_bytes, on_error)


class Peer:
    """The daemon's end of one session.

    Args:
        identity: who it is.
        watch: called with the events that are wanted from now on.
        flow: how its bytes come and go; plainly, if nothing else is said.
        on_error: called with the code of each error that the client is told.

    Attributes:
        user: for whose limits and turns it counts.
        role: through which socket it came.
        is_admin: whether it may do everything.
        restricted: whether it gave up its rights.
        client: what it called itself in `hello`.
        claims_itself: whether it registered its own process by pid.
        is_closing: whether it is to be closed when the turn ends.
        is_leaving: whether its end is all that is left to be done: nothing is sent to
            it, nothing read from it, nothing recorded of it.
        has_said_all: whether no further request can come: the client shut down its
            sending side. What it holds it holds until the connection has ended.
        is_inheritable: whether the session goes on when the process that connected
            has died, as long as another one has its socket.
        is_orphaned: whether that process has died, and the session ends therefore.
        expected: what a request gets when the lock table has carried it out, by msgid,
            if that is not just its grant or nil: `ARRAY` for an array of grants, or a
            result.
        late: what a request waits for that is not the lock table's, by msgid: `RELOAD`
            or `CHANGE` (`Answers.expect`).
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
        self.credentials = identity.credentials
        self.groups = identity.groups
        self.is_foreign = identity.is_foreign
        self.user = identity.user
        self.is_admin = is_admin
        self.role = role
        self._max_unread_bytes = limits.unread_bytes
        self.since = since
        self.connection = connection_for(role, limits, on_error)
        #: Answers and refusals leave when the turn ends.
        self.send_result = self.connection.send_result
        self.send_error = self.connection.send_error
        self.restricted = False
        self.client: str | None = None
        self.claims_itself = False
        self.is_closing = self.is_leaving = False
        self.has_said_all = self.is_orphaned = False
        # libvirtd hands its connections on to the guests.
        self.is_inheritable = role == VIRTLOCKD
        self.expected: dict[int, Any] = {}
        self.late: dict[int, object] = {}
        #: The lockspace that it watches; "" for all that it may see.
        self.watched: str | None = None
        self._sock = sock
        #: What was read and not yet carried out.
        self._requests: Iterator[Any] | None = None
        self._watch = watch
        #: How many bytes were received, before it was this peer's and since then.
        self._received_before = self._received = 0
        self._unsent = bytearray()
        #: Whether the socket did not take all there was, and is watched for more room.
        self.is_behind = False
        #: Bytes that came meanwhile: the client did not ask for them.
        self._piled_up = 0

    @property
    def file_user(self) -> User | None:
        """Whose own rights to files count; None for an admin, who needs none."""
        return None if self.is_admin else User(self.credentials.uid, self.groups)

    def __repr__(self) -> str:
        return (
            f"<Peer {self.session} pid={self.credentials.pid} "
            f"uid={self.credentials.uid} unsent={len(self._unsent)}>"
        )

    def dump(self) -> Plain:
        """Returns who it is as plain data, which never changes (`handover`)."""
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
    ) -> PeerState:
        """Returns where its session stands: what was done and said, and what was not.

        What was read and left for later has not been done; with `KeptFlow` it is still
        in the socket.

        Args:
            apart: takes what is long; None to have all of it here.
        """
        connection = self.connection.dump()
        done = self._received
        if self._requests is not None:
            done = self._received_before + self.connection.begun_at
            connection["partial"] = b""
        unsent_apart = partial_apart = 0
        if apart is None:
            unsent = bytes(self._unsent)
        else:
            unsent_apart, unsent = apart.unsent.note(self.flow.sent, self._unsent)
            partial = connection["partial"]
            start = done - len(partial)
            partial_apart, connection["partial"] = apart.partial.note(start, partial)
        return PeerState(
            done,
            self.flow.sent,
            connection,
            unsent,
            self._piled_up,
            [x for x, what in self.expected.items() if what is ARRAY],
            self.is_closing,
            self.restricted,
            self.client,
            self.claims_itself,
            self.watched,
            claims,
            unsent_apart,
            partial_apart,
            self.reloads,
            self.is_inheritable,
        )

    @property
    def reloads(self) -> tuple[int, ...]:
        """The msgids of the requests that wait for the end of a reload."""
        return tuple(msgid for msgid, what in self.late.items() if what is RELOAD)

    def load_state(self, state: PeerState) -> None:
        """Goes on where the session stood that `dump_state` described.

        Raises:
            OSError: the connection is broken.
            ValueError: how far it came cannot be told (`KeptFlow.resume`).
        """
        for name in _PLAIN_ATTRIBUTES:
            setattr(self, name, getattr(state, name))
        self.expected = dict.fromkeys(state.arrays, ARRAY)
        self.late = dict.fromkeys(state.reloads, RELOAD)
        self.connection.load(state.connection)
        self._received = state.done
        self._received_before = state.done - len(state.connection["partial"])
        self._unsent += state.unsent
        if isinstance(self.flow, KeptFlow):
            end = state.sent + len(state.unsent)
            self.flow.resume(state.done, range(state.sent, end))
            del self._unsent[: self.flow.sent - state.sent]
        self._piled_up = state.piled_up
        self.is_behind = bool(self._unsent)

    def introduce(self, client: str | None) -> None:
        """Notes its `hello`, and what it calls itself there."""
        self.connection.greet()
        self.client = client

    def restrict(self) -> None:
        """Takes its rights away, for ever."""
        self.restricted = True

    def claim_itself(self) -> None:
        """Notes that its own process is registered by pid."""
        self.claims_itself = True

    def make_inheritable(self) -> None:
        """Has its session outlive the process that connected."""
        self.is_inheritable = True

    def begin_watching(self, lockspace: str | None) -> None:
        """Notes which lockspace it watches; None for all that it may see."""
        self.watched = lockspace or ""

    @property
    def at_admin_socket(self) -> bool:
        """Whether it is counted among the admins' sessions."""
        return self.role == ADMINS

    @property
    def is_libvirt(self) -> bool:
        """Whether it takes us for virtlockd, and has to be treated as by it."""
        return self.role == VIRTLOCKD

    @property
    def wanted_events(self) -> int:
        """For what its socket is to be watched; a hang-up is told in any case."""
        if self.is_behind:
            return WRITING
        # The end of what it sends would be told again and again.
        return 0 if self.has_said_all else READING

    def finish_receiving(self, take: Callable[[Peer, Any], None]) -> None:
        """Carries out what was read and left for later."""
        while self._requests is not None and not self.is_closing:
            self.receive(take)

    def receive(self, take: Callable[[Peer, Any], None]) -> None:
        """Reads what there is, and hands each request on; the end closes the peer.

        What takes too long is left for later (`has_more`). After an exception that is
        none of the conversation the peer cannot go on: `abandon` it. Of one that is to
        be closed nothing is read: a successor would get it as half a message.
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
                if (
                    monotonic() > until
                    or self.connection.outgoing_bytes > ANSWERS_AT_ONCE
                ):
                    return
        except ProtocolError as error:
            logger.info("session %d is closed: %s", self.session, error.message)
            self.is_closing = True
        self._requests = None

    def close_after_answers(self) -> None:
        """Has it closed when the turn ends and its answers have left."""
        self.is_closing = True

    def leave(self) -> None:
        """Leaves nothing to be done but its end."""
        self.is_closing = self.is_leaving = True

    def abandon(self) -> None:
        """Ends it where it stands, after a defect.

        Whoever comes after us finds nothing of this client but its end: what it asked
        for might end each next daemon, too.
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
        """Knows that no further request comes (protocol 1.1)."""
        self.has_said_all = True
        # Others may have the socket, and shut it down: only the hang-up is the end.
        if self.is_orphaned or has_hung_up(self.fileno()):
            self.is_closing = True
        elif not self.is_behind:
            self._watch(self.wanted_events)

    def end_with_process(self) -> None:
        """Ends it when all is carried out that its process sent, which has died."""
        if self.is_inheritable:
            return
        self.is_orphaned = True
        if self.is_behind or self.has_said_all:
            self.is_closing = True
        else:
            # Nobody adds to it: whoever has the socket now is somebody else.
            shut_down(self._sock, socket.SHUT_RD)

    @property
    def unread(self) -> int:
        """How many bytes wait until the client reads what it got before."""
        return len(self._unsent) if self.is_behind else 0

    @property
    def unfinished(self) -> int:
        """How many bytes wait for the client: to read them, or to say the rest."""
        return self.unread + self.connection.partial_bytes

    def cut_off(self, why: str) -> None:
        """Ends the connection, and forgets what waits to be read."""
        logger.warning("session %d is closed: %s", self.session, why)
        # Before anything is recorded of it: it must not go on with a gap.
        self.shut_down()
        self._unsent.clear()
        self.is_behind = False
        self.is_closing = True

    @property
    def has_more(self) -> bool:
        """Whether requests were left for later, and may be carried out now."""
        return not (self._requests is None or self.is_behind or self.is_closing)

    def collect(self) -> None:
        """Takes what is to be sent out of the conversation."""
        data = self.connection.data_to_send()
        if self.is_behind:
            self._piled_up += len(data)
        self._unsent += data

    def flush(self) -> None:
        """Sends what there is, as far as the socket takes it."""
        self.collect()
        unsent = self._unsent
        try:
            if unsent:
                del unsent[: self.flow.send(unsent)]
            if self._requests is None and not self.is_closing:
                self.flow.settle()
        except OSError:
            self.is_closing = True
            return
        if self.is_behind:
            self._catch_up()
        elif unsent and self.is_orphaned:
            self.is_closing = True  # nobody reads it
        elif unsent:
            self.is_behind = True
            self._watch(self.wanted_events)

    def _catch_up(self) -> None:
        # protocol 3.4: its own answers, however long, are not held against it.
        unread = min(len(self._unsent), self._piled_up)
        if not self._unsent:
            self._piled_up = 0
            self.is_behind = False
            self._watch(self.wanted_events)
        elif unread > self._max_unread_bytes:
            logger.warning(
                "session %d is closed: it left %d bytes unread", self.session, unread
            )
            self.is_closing = True

    def tell_resumed(self, epoch: int) -> None:
        """Tells a client that said hello that another process serves it from now on."""
        if self.connection.greeted:
            self.connection.send_notification("resumed", {"epoch": epoch})

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self._sock.fileno()

    def shut_down(self) -> None:
        """Ends the connection: the client sees EOF even if others have the socket."""
        shut_down(self._sock)

    def close(self) -> None:
        """Ends the connection, and closes the socket."""
        self.shut_down()
        self._sock.close()


def shut_down(sock: socket.socket, what: int = socket.SHUT_RDWR) -> None:
    """Has whoever is at the other end see EOF; does nothing if that has ended."""
    with suppress(OSError):  # the client was faster
        sock.shutdown(what)


def has_hung_up(fd: int) -> bool:
    """Tells whether a connection has ended in both directions, by us or its client."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
