"""Turns requests of the wire into commands of the engine.

`Reader` answers the requests about locks that change nothing. Requests that change the
lock table become commands of the engine, for `Runtime.carry_out`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, Final, Protocol

import trio
from msgspec import to_builtins

from lockd import __version__
from lockd.daemon.activity.health import Health
from lockd.daemon.activity.life import Life
from lockd.daemon.clients.access import (
    Access,
    Operation,
    check_files,
    check_method,
    rights_of,
)
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import ARRAY, CHANGE, Peer
from lockd.daemon.clients.redaction import is_own
from lockd.daemon.config.config import LockspaceConfig
from lockd.daemon.replies import refusals, statistics
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.reader import Reader, facts_of
from lockd.daemon.requests.registration import Registration
from lockd.daemon.requests.reloads import hindrance
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.system.defects import defect
from lockd.daemon.system.logs import AUDIT
from lockd.engine import commands as c
from lockd.errors import ConfigError, InvalidRequestError, RequestError
from lockd.lockspaces.base import Lockspace
from lockd.names import check_lockspace_name, quoted
from lockd.protocol import methods as m
from lockd.protocol.calls import MethodCall
from lockd.terms import (
    EXCLUSIVE,
    SHARED,
    SLOT,
    Kind,
    Mode,
    OnDisconnect,
    ResourceKey,
)
from lockd.text import duration

logger = logging.getLogger(__name__)

_OPERATION_OF_MODE: Final[dict[Mode, Operation]] = {
    EXCLUSIVE: "acquire",
    SHARED: "share",
    SLOT: "acquire",
}


class LockspaceMaker(Protocol):
    """Creates lockspaces."""

    def __call__(
        self,
        name: str,
        kind: Kind,
        path: str | None,
        *,
        on_disconnect: OnDisconnect = "release",
    ) -> Lockspace:
        """Creates a lockspace.

        Raises:
            ConfigError: it cannot be served.
        """


Handler = Callable[[Peer, int, Any], None]
"""Handles a request: takes the peer, the msgid and the parameters."""


class Dispatcher:
    """Handles the requests of all peers.

    Args:
        runtime: carries out commands.
        answers: has the peers.
        access: has the rights.
        limiter: checks limits.
        reader: handles the requests that only read.
        finder: finds lockspaces and resources by name.
        keeping: knows what would survive a crash.
        life: numbers owners.
        epoch: the epoch of this start.
        instance: the name of this daemon (`system.instance`).
        make_lockspace: creates a lockspace.
        health: has the problems.
    """

    def __init__(
        self,
        runtime: Runtime,
        answers: Answers,
        access: Access,
        limiter: Limiter,
        reader: Reader,
        finder: Finder,
        keeping: Keeping,
        life: Life,
        epoch: int,
        instance: str,
        make_lockspace: LockspaceMaker,
        health: Health,
    ) -> None:
        self._runtime = runtime
        self._answers = answers
        self._counts = answers.counts
        self._access = access
        self._limiter = limiter
        self._redaction = answers.redaction
        self._engine = runtime.engine
        self._finder = finder
        self._key = finder.key
        self._registration = Registration(
            runtime.engine, runtime.processes, life.new_number
        )
        self._keeping = keeping
        self._life = life
        self._epoch = epoch
        self._instance = instance
        self._make_lockspace = make_lockspace
        self._health = health
        self._handlers: dict[str, Handler] = {
            "hello": self._hello,
            "register": self._register,
            "restrict": self._restrict,
            "acquire": self._acquire,
            "convert": self._convert,
            "release": self._release,
            "cancel": self._cancel,
            "create_resource": partial(
                self._change_file, attrgetter("create_resource")
            ),
            "delete_resource": partial(
                self._change_file, attrgetter("delete_resource")
            ),
            "create_lockspace": self._create_lockspace,
            "statistics": self._statistics,
            "watch": self._watch,
            "break": self._break,
            "disconnect": self._disconnect,
            **reader.handlers,
        }
        for method in self._handlers:
            self._counts.requests[method] = 0

    def add_handler(self, method: str, handler: Handler) -> None:
        """Sets the handler of a method."""
        self._handlers[method] = handler
        self._counts.requests[method] = 0

    def is_done_with(self, peer: Peer) -> bool:
        """Returns whether a peer without further requests gets nothing more."""
        session = self._engine.sessions[peer.session]
        busy = peer.outbox.is_behind or peer.has_more or peer.watched is not None
        return not (busy or session.owner.grants or session.requests or peer.late)

    # Requests for the engine.

    def take(self, peer: Peer, call: MethodCall) -> None:
        """Carries out a request, or rejects it."""
        method, msgid = call.method, call.msgid
        try:
            # protocol 2.1: two answers with the same msgid would look the same.
            is_waiting = self._engine.has_request(peer.session, msgid)
            if is_waiting or msgid in peer.late:
                raise InvalidRequestError(refusals.MSGID_IN_USE)
            if method.access != "always":
                check_method(peer, method)
            self._counts.requests[method.name] += 1
            self._handlers[method.name](peer, msgid, call.params)
        except RequestError as error:
            peer.send_error(msgid, error)
        except Exception as error:
            if self._runtime.is_broken:
                raise
            peer.send_error(msgid, defect(error))

    def _acquire(self, peer: Peer, msgid: int, params: m.AcquireParams) -> None:
        mode = params.mode or EXCLUSIVE
        operation = _OPERATION_OF_MODE[mode]
        space = self._finder.lockspace(peer, params.lockspace, operation)
        resources, whole = params.resources, params.whole
        keys = self._finder.keys(space, params.resource, resources)
        if space.on_disconnect == "kill":
            self._registration.check_can_end(peer)
        if space.kind == "direct":
            check_files(peer, space, keys, mode)
        elif whole:
            raise refusals.not_whole(space)
        if mode == SLOT and space.anchored:
            raise refusals.no_slots(space)
        label, reason, slots = params.label, params.reason, params.slots
        timeout, max_waiting = params.timeout, params.max_waiting
        waits = timeout != 0 and max_waiting != 0
        self._limiter.check_acquire(peer.session, keys, label, reason, waits=waits)
        if resources is not None:
            peer.expected[msgid] = ARRAY
        self._runtime.carry_out(
            c.Acquire(
                peer.session,
                msgid,
                keys,
                mode,
                timeout,
                "temporary" if params.create and peer.is_libvirt else params.create,
                label,
                reason,
                max_waiting,
                params.strand or 0,
                bool(whole),
                params.max_hold,
                bool(params.wanted),
                # True stands for as many as there are.
                None if slots is True else slots,
            )
        )

    def _convert(self, peer: Peer, msgid: int, params: m.ConvertParams) -> None:
        mode, token = params.mode, params.fencing_token
        operation = _OPERATION_OF_MODE[mode]
        key = None
        if params.resource is not None:
            key = self._key(peer, params.lockspace, params.resource, operation)
            self._check_file(peer, key, mode)
        elif grant := self._engine.sessions[peer.session].owner.grants.get(token or 0):
            self._finder.lockspace(peer, grant.key.lockspace, operation)
            self._check_file(peer, grant.key, mode)
        self._limiter.check_request(peer.session, waits=params.timeout != 0)
        self._runtime.carry_out(
            c.Convert(peer.session, msgid, key, mode, params.timeout, token)
        )

    def _check_file(self, peer: Peer, key: ResourceKey, mode: Mode) -> None:
        space = self._runtime.lockspaces[key.lockspace]
        if space.kind == "direct":
            check_files(peer, space, (key,), mode)

    def _release(self, peer: Peer, msgid: int, params: m.ReleaseParams) -> None:
        session, token, outcome = peer.session, params.fencing_token, params.outcome
        if token is None:
            space = self._finder.lockspace_of_holder(peer, params.lockspace)
            keys = self._finder.keys(space, params.resource, params.resources)
            self._runtime.carry_out(c.Release(session, msgid, keys, outcome=outcome))
        elif self._is_of_another(peer, token):
            self._runtime.carry_out(c.ReleaseForOwner(session, msgid, token, outcome))
        else:
            self._runtime.carry_out(c.Release(session, msgid, (), token, outcome))

    def _is_of_another(self, peer: Peer, token: int) -> bool:
        """Returns whether a grant belongs to another owner of the peer's user."""
        if token in self._engine.sessions[peer.session].owner.grants or peer.restricted:
            return False
        grant = self._engine.grant_of(token)
        return grant is not None and is_own(grant.owner, peer)

    def _cancel(self, peer: Peer, msgid: int, params: m.CancelParams) -> None:
        self._runtime.carry_out(c.Cancel(peer.session, msgid, params.request))

    def _break(self, peer: Peer, msgid: int, params: m.BreakParams) -> None:
        token = params.fencing_token
        grant = self._engine.grant_of(token)
        # A grant that does not exist and one that is hidden look the same.
        if grant is None or not self._access.may(peer, "list", grant.key.lockspace):
            raise refusals.no_grant(token)
        self._access.check(peer, "break", grant.key.lockspace)
        since = duration(trio.current_time() - grant.since)
        victim = f"{_who(grant.owner, grant.session)} ({grant.mode}, for {since})"
        what = f"the lock {quoted(str(grant.key))}, fencing token {token}, of"
        self._audit(peer, f"breaks {what} {victim}", params.reason)
        # If nobody can end the holder's process, the admin takes the lock nevertheless.
        fence = self._runtime.processes.can_end(grant.owner_id)
        command = c.BreakGrant(peer.session, msgid, token, params.reason, fence)
        self._runtime.carry_out(command)

    # Owners.

    def _register(self, peer: Peer, msgid: int, params: m.RegisterParams) -> None:
        named, own_pid, uid = params.owner, peer.credentials.pid, peer.credentials.uid
        pid = own_pid if named.pid is None else named.pid
        kill = params.on_disconnect == "kill"
        if pid == own_pid and not peer.is_libvirt:
            owner_id = peer.session
            if kill:
                self._registration.check_can_end(peer)
        else:
            owner_id, uid = self._registration.owner_of(peer, pid, kill=kill)
        owner = c.Owner(named.name, pid, uid, named.uuid, named.id)
        result = {"owner": to_builtins(owner)}
        peer.expected[msgid] = result
        self._runtime.carry_out(
            c.RegisterOwner(
                *(peer.session, msgid, owner_id, owner, params.on_disconnect),
                until=params.until or "either",
            )
        )
        session = self._engine.sessions[peer.session]
        if session.owner.identity is owner and named.pid == own_pid:
            peer.claim_itself()
        if params.inheritable:
            peer.make_inheritable()
        if owner_id not in self._engine.owners:
            self._runtime.processes.forget(owner_id)

    def has_registered(self, peer: Peer) -> bool:
        """Returns whether a peer has registered an owner."""
        return self._engine.has_registered(peer.session)

    def owner_pid(self, peer: Peer) -> int:
        """Returns the process for which a peer acts."""
        return self._engine.owner_of(peer.session).pid

    def _restrict(self, peer: Peer, msgid: int, params: m.NoParams) -> None:
        peer.restrict()
        peer.send_result(msgid)

    # Requests that only read.

    def _hello(self, peer: Peer, msgid: int, params: m.HelloParams) -> None:
        if params.protocol != m.PROTOCOL_VERSION:
            raise refusals.other_protocol(params.protocol, m.PROTOCOL_VERSION)
        if peer.connection.greeted:
            raise InvalidRequestError("this session already sent hello: send it once")
        if params.within:
            if self._engine.sessions[peer.session].requests:
                raise InvalidRequestError("give `within` while no request waits")
            tokens = params.within_of(self._instance)
            self._runtime.carry_out(c.EnterGrants(peer.session, tokens))
        peer.introduce(params.client)
        result = {
            "protocol": m.PROTOCOL_VERSION,
            "server": f"lockd {__version__}",
            "session": peer.session,
            "epoch": self._epoch,
            "instance": self._instance,
        }
        peer.send_result(msgid, result)

    def _statistics(self, peer: Peer, msgid: int, params: m.NoParams) -> None:
        result = statistics.program() | statistics.counts(self._engine)
        result["kept"] = statistics.kept(self._engine, self._keeping)
        result["epoch"] = self._epoch
        result["upgrades"] = self._life.upgrades
        result["limits"] = statistics.limits(self._limiter, self._keeping)
        why_not = hindrance(self._runtime.changes, is_stuck=self._keeping.is_stuck)
        result["upgrade"] = statistics.upgrade(why_not)
        # A problem may name something that others may not see.
        result["problems"] = self._health.problems if peer.is_admin else []
        result["uptime"] = trio.current_time() - self._life.started
        peer.send_result(msgid, result)

    def _watch(self, peer: Peer, msgid: int, params: m.WatchParams) -> None:
        self.watch(peer, params.lockspace)
        peer.send_result(msgid)

    def watch(self, peer: Peer, lockspace: str | None) -> None:
        """Makes a peer watch one lockspace, or all that it may see."""
        self._answers.add_watcher(peer, self._finder.visible(peer, lockspace))
        peer.begin_watching(lockspace)

    # Lockspaces, files, other sessions.

    def _create_lockspace(
        self, peer: Peer, msgid: int, params: m.CreateLockspaceParams
    ) -> None:
        check_lockspace_name(params.name)
        if params.name in self._runtime.lockspaces:
            raise refusals.exists(self._runtime.lockspaces[params.name])
        try:
            made = self._make_lockspace(params.name, params.kind, params.path)
        except ConfigError as error:
            raise InvalidRequestError(str(error)) from None
        self._runtime.add_lockspace(made)
        rights = rights_of(LockspaceConfig(params.kind))
        self._access.set_rights(params.name, rights)
        peer.send_result(msgid)

    def _change_file(
        self,
        change: Callable[[Lockspace], Callable[[str], None]],
        peer: Peer,
        msgid: int,
        params: m.ResourceFileParams,
    ) -> None:
        """Creates or deletes the file of a resource.

        Raises:
            InUseError: the resource has a holder or a waiter.
        """
        key = self._key(peer, params.lockspace, params.resource, "acquire")
        if key in self._engine.resources:
            found = self._redaction.situation(self._engine.situation(key), peer)
            facts = facts_of(self._engine, key, self._redaction, peer)
            raise refusals.in_use(found, trio.current_time(), facts)
        self._limiter.check_late(peer)
        done = self._answers.expect(peer, msgid, CHANGE)
        space = self._runtime.lockspaces[params.lockspace]
        self._runtime.change_file(space, params.resource, change(space), done)

    def _disconnect(self, peer: Peer, msgid: int, params: m.DisconnectParams) -> None:
        other = self._answers.peers.get(params.session)
        if other is None:
            raise refusals.no_session(params.session)
        victim = self._engine.owner_of(other.session)
        what = f"disconnects {_who(victim, other.session)}"
        self._audit(peer, what, params.reason)
        other.close_after_answers()
        self._answers.behind.add(other)
        peer.send_result(msgid)

    def _audit(self, peer: Peer, what: str, reason: str) -> None:
        """Logs an admin's action, its victim and the reason.

        This line is never dropped.
        """
        who = _who(self._engine.owner_of(peer.session), peer.session)
        by = f"uid {peer.credentials.uid}, {who}"
        logger.warning("%s, %s: %s", by, what, quoted(reason, 1000), extra=AUDIT)


def _who(owner: c.Owner, session: int) -> str:
    return f"{quoted(owner.name)} (pid {owner.pid}, uid {owner.uid}, session {session})"
