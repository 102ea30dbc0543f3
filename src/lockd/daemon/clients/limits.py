"""How much of the daemon one client, one user, or all may use (`[limits]`).

It checks before a request has any effect: too large a request is refused, and nobody
else notices. Lowering a limit takes nothing away from those above it.
"""

import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final, Protocol

from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import Limits
from lockd.engine.lock_engine import LockEngine
from lockd.engine.usage import PLAIN, Tally, text_bytes
from lockd.errors import LimitError, UnavailableError
from lockd.terms import ResourceKey

RESERVED_DESCRIPTORS: Final = 64
"""Descriptors that neither locks nor sessions of non-admins may take (an eighth, if
there are few): an admin can connect, and an upgrade has room."""

MANY_TOKENS: Final = 2**22
"""With so many fencing tokens left, the tokens for waiting requests need no counting:
there cannot be so many."""

RESERVED: Final = 16
"""Sessions that only root and the daemon's own user may take (an eighth, if there are
few)."""


class Tokens(Protocol):
    """Has the last fencing token that may be given (`Epoch`)."""

    @property
    def reserved(self) -> int:
        """The last token that is reserved."""


class Limiter:
    """Counts sessions and checks limits.

    Args:
        engine: counts locks and waiting requests.
        limits: the limits.
        late_by_user: counts other waiting requests (`Answers.expect`).
        tokens: limits the fencing tokens.
        keeping: knows whether there is memory for more.
        make_room: closes descriptors that nobody needs; returns whether there were any.
    """

    def __init__(
        self,
        engine: LockEngine,
        limits: Limits,
        late_by_user: Tally,
        tokens: Tokens,
        keeping: Keeping,
        make_room: Callable[[], bool],
    ) -> None:
        self.limits = limits
        self.make_room = make_room
        self._keeping = keeping
        self._engine = engine
        self._late_by_user = late_by_user
        self._tokens = tokens
        self._clients = 0
        self._admins = 0
        self._clients_of: Counter[int] = Counter()
        #: Unread bytes of each client that has some, and of each user.
        self.slow: dict[Peer, int] = {}
        self._unread_of: Counter[int] = Counter()
        self._privileged = (0, os.geteuid())
        #: Descriptors from this number on are reserved.
        self.max_fd = unreserved_descriptors()

    def configure(self, limits: Limits) -> None:
        """Sets other limits."""
        self.limits = limits

    @property
    def is_shared(self) -> bool:
        """Whether more than one user is connected."""
        return len(self._clients_of) + bool(self._admins) > 1

    # Sessions.

    def check_session(self, uid: int, *, at_admin_socket: bool) -> None:
        """Raises an error if a user may not have another session.

        Raises:
            LimitError: a limit is reached.
            UnavailableError: there is no memory to record it.
        """
        limits = self.limits
        if at_admin_socket:
            _check("admin_sessions", self._admins, limits.admin_sessions)
            return
        if uid not in self._privileged:  # an admin must get in to fix it
            self._check_memory()
        most, note = limits.sessions, ""
        kept = 0 if uid in self._privileged else most - unreserved_sessions(limits)
        if kept:
            most, note = most - kept, f", less {kept} for root and the daemon's user"
        _check("sessions", self._clients, most, note)
        of_user = self._clients_of[uid]
        _check("sessions_per_user", of_user, limits.sessions_per_user)

    def check_descriptor(self, fd: int, uid: int, *, at_admin_socket: bool) -> None:
        """Raises `LimitError` if a user's session would take a reserved descriptor.

        Args:
            fd: its socket. The kernel gives the lowest free number (accept(2)).
            uid: the user.
            at_admin_socket: whether it arrived at the admin socket.
        """
        if at_admin_socket or uid in self._privileged:
            return
        if fd >= self.max_fd and not self.make_room():
            raise LimitError(
                f"the limit of {self.max_fd} descriptors is reached (LimitNOFILE): "
                "try later, or have an admin raise it",
                {"limit": "LimitNOFILE", "most": self.max_fd},
            )

    def add_session(self, uid: int, *, at_admin_socket: bool) -> None:
        """Counts a new session of a user."""
        if at_admin_socket:
            self._admins += 1
        else:
            self._clients += 1
            self._clients_of[uid] += 1

    def remove_session(self, uid: int, *, at_admin_socket: bool) -> None:
        """Stops counting a session of a user."""
        if at_admin_socket:
            self._admins -= 1
            return
        self._clients -= 1
        self._clients_of[uid] -= 1
        if not self._clients_of[uid]:
            del self._clients_of[uid]

    # Unread bytes.

    def note_unread(self, peer: Peer) -> Iterable[Peer]:
        """Notes how many bytes wait for a client.

        If the clients of its user leave too much unread together, the worst one is
        disconnected.

        Returns:
            The disconnected client, if any.
        """
        user, unread = peer.user, 0 if peer.is_closing else peer.unfinished
        self._unread_of[user] += unread - self.slow.pop(peer, 0)
        if unread:
            self.slow[peer] = unread
        if self._unread_of[user] <= self.limits.unread_bytes_per_user:
            return ()
        of_user = [x for x in self.slow if x.user == user]
        if not of_user:
            return ()
        worst = max(of_user, key=self.slow.__getitem__)
        self._unread_of[user] -= self.slow.pop(worst)
        worst.cut_off(f"the sessions of user {user} leave too much unread")
        return (worst,)

    def forget_unread(self, peer: Peer) -> None:
        """Forgets the unread bytes of a client that has ended."""
        user = peer.user
        if user not in self._unread_of:
            return  # as usual
        self._unread_of[user] -= self.slow.pop(peer, 0)
        if not self._unread_of[user]:
            del self._unread_of[user]

    # Usage.

    def usage(self) -> dict[str, dict[str, int | None]]:
        """Returns how much of each limit is used.

        For a limit of users, it is the usage of the user who uses most.
        """
        limits, engine = self.limits, self._engine
        found = {
            "sessions": _used(self._clients, limits.sessions),
            "admin_sessions": _used(self._admins, limits.admin_sessions),
            "descriptors": _used(used_descriptors(), self.max_fd),
        }
        for key, of_users in (
            ("sessions_per_user", self._clients_of),
            ("locks_per_user", engine.held_by_user),
            ("requests_per_user", self._unanswered_by_user()),
            ("text_bytes_per_user", engine.text_by_user),
        ):
            uid, used = max(of_users.items(), key=itemgetter(1), default=(None, 0))
            found[key] = _used(used, getattr(limits, key), uid)
        return found

    # Requests.

    def check_acquire(
        self,
        session_id: int,
        keys: tuple[ResourceKey, ...],
        label: str | None,
        reason: str | None,
        *,
        waits: bool,
    ) -> None:
        """Raises an error if a request would exceed a limit.

        Args:
            session_id, keys, label, reason: those of the request.
            waits: whether the request would wait if it cannot be granted at once.

        Raises:
            LimitError: for too many locks, too much text, or too many waiting requests.
            UnavailableError: no memory or no fencing token is left.
        """
        self._check_memory()
        limits, engine = self.limits, self._engine
        if engine.last_token + MANY_TOKENS > self._tokens.reserved:
            self._check_tokens(len(keys))
        more = len(keys) - 1
        held = engine.held_by(session_id) + more
        if held >= limits.locks_per_session:
            _check("locks_per_session", held, limits.locks_per_session)
        uid = engine.owner_of(session_id).uid
        held = engine.held_by_user.get(uid, 0) + more
        if held >= limits.locks_per_user:
            _check("locks_per_user", held, limits.locks_per_user)
        if (
            label is not None
            or reason is not None
            or more
            or len(keys[0].resource) > PLAIN
        ):
            said = text_bytes(keys, label, reason)
            used = said and said + engine.text_by_user.get(uid, 0) - 1
            _check("text_bytes_per_user", used, limits.text_bytes_per_user)
        if engine.waiting or self._late_by_user:
            self.check_request(session_id, waits=waits)
            for key in keys if waits else ():
                resource = engine.resources.get(key)
                if resource is not None:
                    length = resource.line_length()
                    _check("queue_length", length, limits.queue_length)

    def _check_tokens(self, wanted: int) -> None:
        """Raises unless each requested lock can get a fencing token.

        Waiting requests have theirs reserved, because nobody can refuse them any more.
        This counts one too many for a request for several locks.
        """
        engine = self._engine
        promised = sum(engine.held_by_user.values()) - engine.held + engine.waiting
        if engine.last_token + promised + wanted > self._tokens.reserved:
            raise UnavailableError(
                "no fencing token is left, because the daemon cannot write its state "
                "directory: have an admin fix the problem that `lockctl status` shows"
            )

    def _check_memory(self) -> None:
        if self._keeping.is_short:
            raise UnavailableError(
                "there is no memory to record it (limits.record_bytes, or the memory "
                "of the host): release something, or try later"
            )

    def check_request(self, session_id: int, *, waits: bool) -> None:
        """Raises `LimitError` if too many requests are unanswered."""
        session = self._engine.sessions[session_id]
        self._check_unanswered(session.owner.identity.uid)
        if waits:
            waiting, most = len(session.requests), self.limits.waiters_per_session
            _check("waiters_per_session", waiting, most)

    def check_late(self, peer: Peer) -> None:
        """Raises `LimitError` if a peer's user has too many unanswered requests.

        It is for a request that does not wait for the lock table; it counts for the
        user who connected.
        """
        self._check_unanswered(peer.user)

    def _check_unanswered(self, uid: int) -> None:
        unanswered = self._engine.waiting_by_user.get(uid, 0)
        unanswered += self._late_by_user.get(uid, 0)
        _check("requests_per_user", unanswered, self.limits.requests_per_user)

    def _unanswered_by_user(self) -> Counter[int]:
        return Counter(self._late_by_user) + Counter(self._engine.waiting_by_user)


#: What a user can do who has reached a limit, other than release something.
_RELIEFS: Final = {
    "sessions": "try later",
    "admin_sessions": "end another admin's session",
    "sessions_per_user": "end another session of this user",
    "requests_per_user": "wait for other answers first",
    "waiters_per_session": "wait for other answers first",
    "queue_length": "try later",
    "text_bytes_per_user": "shorten label and reason, or release something",
}


def unreserved_sessions(limits: Limits) -> int:
    """Returns how many sessions others than root may have."""
    return limits.sessions - min(RESERVED, limits.sessions // 8)


def shadowed(limits: Limits) -> list[str]:
    """Returns a sentence for each limit that another limit hides."""
    found = [
        f"limits.{key} is {value}, but limits.{other} is {most}: {most} applies"
        for key, other in (
            ("locks_per_session", "locks_per_user"),
            ("waiters_per_session", "requests_per_user"),
            ("unread_bytes", "unread_bytes_per_user"),
        )
        if (value := getattr(limits, key)) > (most := getattr(limits, other))
    ]
    if limits.sessions_per_user > (most := unreserved_sessions(limits)):
        found.append(
            f"limits.sessions_per_user is {limits.sessions_per_user}, but "
            f"limits.sessions is {limits.sessions}, with {limits.sessions - most} "
            f"reserved for root and the daemon's own user: {most} applies to all others"
        )
    return found


def unreserved_descriptors() -> int:
    """Returns how many descriptors we may have, without the reserved ones."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most - min(RESERVED_DESCRIPTORS, most // 8)


def used_descriptors() -> int:
    """Returns about how many descriptors are open, cheaply.

    The kernel gives the lowest free number, and with many locks the numbers are dense.
    """
    try:
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:  # none is left
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.close(fd)
    return fd


def open_descriptors() -> int:
    """Returns how many descriptors are open.

    Before Linux 6.2, this is the estimate of `used_descriptors`, because counting takes
    longer the more there are.
    """
    return os.stat("/proc/self/fd").st_size or used_descriptors()


def _used(used: int, most: int, uid: int | None = None) -> dict[str, int | None]:
    return {"used": used, "most": most, "uid": uid}


def _check(key: str, used: int, most: int, note: str = "") -> None:
    if used >= most:
        raise LimitError(
            f"the limit of {most} is reached (limits.{key}{note}): "
            f"{_RELIEFS.get(key, 'release something')}, or have an admin raise it",
            {"limit": key, "most": most},
        )
