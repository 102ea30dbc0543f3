"""Makes a peer of whoever connected, or says why it is not taken in.

Who connects is accepted at once, and waits here for its turn, apart for each user. The
kernel has one line for all: who floods that would keep everybody else out.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple

import trio

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.gate import Gate
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer, connection_for, shut_down
from lockd.daemon.stores.streams import Flow
from lockd.daemon.system.credentials import Identity, identify, peer_credentials
from lockd.daemon.system.defects import attempt, defect
from lockd.daemon.system.listener import ADMINS, VIRTLOCKD, Role
from lockd.daemon.system.poller import Poller
from lockd.errors import DeniedError, RequestError
from lockd.procs import name_of


class Newcomer(NamedTuple):
    """Who has connected, and is to be taken in; counted, and kept if that can be."""

    session: int
    sock: socket.socket
    role: Role
    user: int
    flow: Flow


class Admitted(NamedTuple):
    """A client whose session is to be opened.

    Attributes:
        name: what its process is called.
        pidfd: refers to that process; None if there is none to be found.
    """

    peer: Peer
    name: str
    pidfd: int | None


class Admission:
    """Looks at each who connected; whatever goes wrong costs this one its connection.

    Args:
        poller: where it will be watched.
        life: has the numbers of sessions.
        keeping: keeps their connections.
        limiter: knows how many there may be.
        gate: is told of those who were turned away.
        on_error: called with the code of each error that one of them is told.
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
        #: Who is to be taken in, by the user's uid; who waits longest first.
        self.newcomers: dict[int, deque[Newcomer]] = {}

    def arrive(self, sock: socket.socket, role: Role) -> None:
        """Has a client wait to be taken in, or tells it why it is not.

        Args:
            sock: ours from now on.
        """
        session = self._life.new_number()
        admin = role == ADMINS
        try:
            sock.setblocking(False)
            uid = peer_credentials(sock).uid
            self._limiter.check_session(uid, at_admin_socket=admin)
            self._limiter.check_descriptor(sock.fileno(), uid, at_admin_socket=admin)
            # Before anything that takes time: if we are killed first, it is lost.
            flow = self._keeping.open_flow(session, sock, role)
        except Exception as error:
            self._dismiss(sock, role, error)
            return
        self._limiter.add_session(uid, at_admin_socket=admin)
        waiting = self.newcomers.setdefault(uid, deque())
        newcomer = Newcomer(session, sock, role, uid, flow)
        # An admin does not wait behind what else its user has started.
        (waiting.appendleft if admin else waiting.append)(newcomer)

    def admit(self, newcomer: Newcomer) -> Admitted | None:
        """Returns who is to be served; None if that one was told why not.

        Args:
            newcomer: waits no longer.
        """
        session, sock, role, user, flow = newcomer
        self._remove(newcomer)
        identity: Identity | None = None
        try:
            identity = identify(sock)
            name = name_of(identity.credentials.pid)
            peer = self._make_peer(session, sock, identity, role, flow)
        except Exception as error:
            if identity is not None and identity.pidfd is not None:
                os.close(identity.pidfd)
            self._limiter.remove_session(user, at_admin_socket=role == ADMINS)
            self._dismiss(sock, role, error)
            attempt(self._keeping.abandon_flow, session, role, flow)
            return None
        return Admitted(peer, name, identity.pidfd)

    def _remove(self, newcomer: Newcomer) -> None:
        waiting = self.newcomers[newcomer.user]
        first = waiting.popleft()
        assert first is newcomer, "who waits longest comes first"
        if not waiting:
            del self.newcomers[newcomer.user]

    def close(self) -> None:
        """Closes the connections of those who wait: they see the end."""
        for newcomer in chain.from_iterable(self.newcomers.values()):
            newcomer.sock.close()
        self.newcomers.clear()

    def _dismiss(self, sock: socket.socket, role: Role, error: Exception) -> None:
        """Ends the connection of somebody who is not taken in."""
        if isinstance(error, RequestError):
            farewell = connection_for(role)
            farewell.send_error(None, error)
            with suppress(OSError):  # it is gone, or reads later: it sees the end
                sock.send(farewell.data_to_send())
        elif not isinstance(error, OSError):
            defect(error)
        # It sees the end although a copy of it may be kept.
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
                f"pid {identity.credentials.pid}, uid {uid}, takes us for virtlockd, "
                "who serves root only"
            )
        return Peer(
            session,
            sock,
            identity,
            trio.current_time(),
            partial(self._poller.change, sock.fileno()),
            role=role,
            is_admin=is_privileged or (role == ADMINS and not identity.is_foreign),
            limits=self._limiter.limits,
            flow=flow,
            on_error=self._on_error,
        )
