"""Opens, adopts and closes the sessions of clients.

Only this module knows which parts must hear of it, and in which order.
"""

import trio

from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.reader import Reader
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.system.defects import attempt
from lockd.daemon.system.processes import Process
from lockd.engine import commands as c


class Sessions:
    """Tells all parts of a session that begins or ends.

    Args:
        runtime: has the lock table, and the processes of owners.
        answers: has the peers.
        reader: has the unfinished listings of a peer.
        limiter: counts the sessions. It counts a new one when it connects.
        keeping: keeps the state for a successor.
    """

    def __init__(
        self,
        runtime: Runtime,
        answers: Answers,
        reader: Reader,
        limiter: Limiter,
        keeping: Keeping,
    ) -> None:
        self._runtime = runtime
        self._answers = answers
        self._reader = reader
        self._limiter = limiter
        self._keeping = keeping

    def open(self, peer: Peer, name: str, pidfd: int | None) -> None:
        """Opens the session of a client.

        Args:
            peer: the client.
            name: the name of its process.
            pidfd: refers to that process. This object then owns it.
        """
        pid, uid, _ = peer.credentials
        if pidfd is not None:
            sender = None if peer.is_foreign else uid
            process = Process(pid, pidfd, sender=sender)
            self._runtime.processes.add_peer(peer.session, process)
        owner = c.Owner(name, pid, uid)
        self._runtime.carry_out(c.OpenSession(peer.session, owner))
        self._answers.add_peer(peer)
        self._keeping.open_peer(peer)

    def adopt(self, peer: Peer) -> None:
        """Adopts a session of a predecessor. The lock table already has it."""
        self._limiter.add_session(peer.user, at_admin_socket=peer.at_admin_socket)
        self._answers.add_peer(peer)

    def tell_missed(self, peer: Peer) -> None:
        """Tells a client who waits for its locks, if it has read everything again."""
        if not (peer.outbox.is_behind or peer.is_closing):
            notices = self._runtime.engine.wanted_now(peer.session)
            self._answers.tell_missed(peer, notices, trio.current_time())

    def close(self, peer: Peer) -> None:
        """Closes the session of a client, even if it was opened only in part."""
        runtime, session = self._runtime, peer.session
        self._limiter.forget_unread(peer)
        self._limiter.remove_session(peer.user, at_admin_socket=peer.at_admin_socket)
        attempt(runtime.processes.unwatch_peer, session)
        attempt(self._keeping.close_peer, peer)
        attempt(peer.close)
        attempt(self._answers.remove_peer, peer)
        attempt(self._reader.forget, peer)
        engine = runtime.engine
        if session in engine.sessions:
            runtime.carry_out(c.CloseSession(session))
        if peer.claims_itself:
            owner_id = runtime.processes.registered(peer.credentials.pid)
            if owner_id is not None:
                runtime.carry_out(c.DisconnectOwner(owner_id))
        if session not in engine.owners:
            attempt(runtime.processes.forget, session)
