"""Turns new connections into peers, or rejects them.

It accepts every connection at once. The connection then waits here, in a queue for each
user. The kernel has one queue for all, so a user who floods it would keep everybody
else out.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain

import trio

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.gate import Gate
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer, connection_for, shut_down
from lockd.daemon.stores.streams import Flow
from lockd.daemon.system.credentials import (
    Credentials,
    Identity,
    identify,
    peer_credentials,
)
from lockd.daemon.system.defects import attempt, defect
from lockd.daemon.system.listener import ADMINS, VIRTLOCKD, Role
from lockd.daemon.system.poller import Poller
from lockd.errors import DeniedError, RequestError
from lockd.procs import name_of


class Newcomer:
    """A new connection: counted, and kept if possible, but not yet admitted.

    Its user is that of the credentials.
    """

    def __init__(
        self,
        session: int,
        sock: socket.socket,
        role: Role,
        credentials: Credentials,
        flow: Flow,
    ) -> None:
        self.session = session
        self.sock = sock
        self.role = role
        self.credentials = credentials
        self.flow = flow


class Admitted:
    """A client whose session can be opened.

    Attributes:
        peer: the client.
        name: the name of its process.
        pidfd: refers to that process; None if it cannot be found.
    """

    def __init__(self, peer: Peer, name: str, pidfd: int | None) -> None:
        self.peer = peer
        self.name = name
        self.pidfd = pidfd


class Admission:
    """Admits new connections. An error ends only the connection it concerns.

    Args:
        poller: will watch the connections.
        life: numbers the sessions.
        keeping: keeps the connections.
        limiter: limits their number.
        gate: counts the rejected ones.
        on_error: called with the code of each error that is sent.
    """

    def __init__(
        self,
        poller: Poller,
        life: Life,
        keeping: Keeping,
        limiter: Limiter,
        gate: Gate,
        on_error: Callable[[str], None],
    ) -> None:
        self._poller = poller
        self._life = life
        self._keeping = keeping
        self._limiter = limiter
        self._gate = gate
        self._on_error = on_error
        self._admins = (0, os.geteuid())
        #: Like `trio.current_time`, which looks the clock up each time.
        self._now = trio.lowlevel.current_clock().current_time
        #: The waiting connections by uid, the oldest first.
        self.newcomers: dict[int, deque[Newcomer]] = {}

    def arrive(self, sock: socket.socket, role: Role) -> None:
        """Queues a new connection, or rejects it.

        Args:
            sock: the connection, which this object then owns.
            role: the socket at which it arrived.
        """
        session = self._life.new_number()
        admin = role == ADMINS
        try:
            sock.setblocking(False)
            credentials = peer_credentials(sock)
            uid = credentials.uid
            self._limiter.check_session(uid, at_admin_socket=admin)
            self._limiter.check_descriptor(sock.fileno(), uid, at_admin_socket=admin)
            # Keep it before anything that takes time: a kill would lose it.
            flow = self._open_flow(session, sock, role)
        except Exception as error:
            self._dismiss(sock, role, error)
            return
        self._limiter.add_session(uid, at_admin_socket=admin)
        waiting = self.newcomers.setdefault(uid, deque())
        newcomer = Newcomer(session, sock, role, credentials, flow)
        # An admin does not wait behind other connections of the same user.
        (waiting.appendleft if admin else waiting.append)(newcomer)

    def _open_flow(self, session: int, sock: socket.socket, role: Role) -> Flow:
        try:
            return self._keeping.open_flow(session, sock, role)
        except OSError:
            if not self._limiter.make_room():
                raise
        return self._keeping.open_flow(session, sock, role)

    def admit(self, newcomer: Newcomer) -> Admitted | None:
        """Returns a client to serve; None if it was rejected.

        Args:
            newcomer: the oldest connection of its user.
        """
        session, sock, role = newcomer.session, newcomer.sock, newcomer.role
        credentials, flow = newcomer.credentials, newcomer.flow
        self._remove(newcomer)
        identity: Identity | None = None
        try:
            identity = identify(sock, credentials)
            name = name_of(identity.credentials.pid)
            peer = self._make_peer(session, sock, identity, role, flow)
        except Exception as error:
            if identity is not None and identity.pidfd is not None:
                os.close(identity.pidfd)
            uid = credentials.uid
            self._limiter.remove_session(uid, at_admin_socket=role == ADMINS)
            self._dismiss(sock, role, error)
            attempt(self._keeping.abandon_flow, session, role, flow)
            return None
        return Admitted(peer, name, identity.pidfd)

    def _remove(self, newcomer: Newcomer) -> None:
        uid = newcomer.credentials.uid
        waiting = self.newcomers[uid]
        first = waiting.popleft()
        assert first is newcomer, "who waits longest comes first"
        if not waiting:
            del self.newcomers[uid]

    def close(self) -> None:
        """Closes the waiting connections."""
        for newcomer in chain.from_iterable(self.newcomers.values()):
            newcomer.sock.close()
        self.newcomers.clear()

    def _dismiss(self, sock: socket.socket, role: Role, error: Exception) -> None:
        """Sends the error and closes the connection."""
        if isinstance(error, RequestError):
            farewell = connection_for(role)
            farewell.send_error(None, error)
            with suppress(OSError):  # it has disconnected, or reads later
                sock.send(farewell.data_to_send())
        elif not isinstance(error, OSError):
            defect(error)
        # It sees the end even if somebody keeps a copy of the descriptor.
        shut_down(sock)
        sock.close()
        self._gate.complain(error)

    def _make_peer(
        self,
        session: int,
        sock: socket.socket,
        identity: Identity,
        role: Role,
        flow: Flow,
    ) -> Peer:
        uid = identity.credentials.uid
        is_privileged = uid in self._admins and not identity.is_foreign
        if role == VIRTLOCKD and not is_privileged:
            raise DeniedError(
                f"pid {identity.credentials.pid}, uid {uid}, may not connect here: "
                "the socket for libvirt serves root only"
            )
        return Peer(
            session,
            sock,
            identity,
            self._now(),
            partial(self._poller.change, sock.fileno()),
            role=role,
            is_admin=is_privileged or (role == ADMINS and not identity.is_foreign),
            limits=self._limiter.limits,
            flow=flow,
            on_error=self._on_error,
        )
