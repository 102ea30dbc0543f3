"""Logs slow waits and holds: when they pass a threshold, and when they end.

It need not search, because the oldest in each lockspace passes first.
"""

import logging
from collections.abc import Iterable
from typing import Final

from lockd.daemon.activity.counts import Space, Wait
from lockd.daemon.replies.sentences import called, how, where
from lockd.daemon.system.logs import AUDIT
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, Overdue, Situation
from lockd.engine.lock_engine import LockEngine
from lockd.names import plain, quoted
from lockd.terms import ResourceKey
from lockd.text import duration

logger = logging.getLogger(__name__)

MESSAGE_IDS: Final = {
    "wait": "ab297c8f06a74c54850857414796bb8f",
    "wait ended": "ce12a48a8c494052bfa2fc731a07afa0",
    "hold": "062eaecbf1bb4f0aa6e364370dea9880",
    "hold ended": "3b489ea728d444cca6b4a109c2a95339",
    "overdue": "0c4f1d5f0c0f4c3c9e5b7a3f6d2e81b7",
}
"""MESSAGE_ID= in the journal; it finds the lines of a kind."""

Fields = dict[str, str]


class SlowLog:
    """Logs slow waits and holds (`Counts`)."""

    def __init__(self, engine: LockEngine) -> None:
        self._engine = engine

    def tell_slow(self, spaces: Iterable[Space], now: float) -> None:
        """Logs what has become slow."""
        for space in spaces:
            waits, holds = space.take_slow(now)
            for wait in waits:
                self._tell_wait(wait, now)
            for grant in holds:
                self._tell_hold(grant, now)

    def _tell_wait(self, wait: Wait, now: float) -> None:
        owner = self._engine.owner_of(wait.session)
        situation = self._obstacle(wait.keys)
        fields = _fields("wait", situation.key, owner, wait.session, wait.mode)
        fields |= _usec("WAITED", now - wait.since)
        for grant in situation.holders[:1]:
            fields |= {
                "LOCKD_HOLDER": grant.owner.name,
                "LOCKD_HOLDER_PID": str(grant.owner.pid),
                "LOCKD_HOLDER_UID": str(grant.owner.uid),
                "LOCKD_HOLDER_FENCING_TOKEN": str(grant.fencing_token),
            }
        if situation.outside is not None and situation.outside.pid is not None:
            fields["LOCKD_OUTSIDE_PID"] = str(situation.outside.pid)
        logger.warning(
            "%s has waited %s for %s, %s; it is %s",
            called(owner),
            duration(now - wait.since),
            quoted(str(situation.key)),
            wait.mode,
            where(situation, now),
            extra={"fields": fields},
        )

    def _obstacle(self, keys: Iterable[ResourceKey]) -> Situation:
        """Returns the obstacle of a request: of several resources, a held one."""
        situations = [self._engine.situation(key) for key in keys]
        return next((x for x in situations if x.holder_count), situations[0])

    def _tell_hold(self, grant: Grant, now: float) -> None:
        situation = self._engine.situation(grant.key)
        fields = _of_grant("hold", grant) | _usec("HELD", now - grant.since)
        fields["LOCKD_WAITERS"] = str(situation.waiter_count)
        reason = f" ({plain(grant.reason)})" if grant.reason else ""
        logger.warning(
            "%s has held %s %s for %s%s; %s",
            called(grant.owner),
            quoted(str(grant.key)),
            how(grant.mode),
            duration(now - grant.since),
            reason,
            _waited_for(situation.waiter_count),
            extra={"fields": fields},
        )

    def tell_overdue(self, effect: Overdue, now: float) -> None:
        """Logs a grant that is held for longer than it may be, once."""
        grant = effect.grant
        fields = _of_grant("overdue", grant) | _usec("HELD", now - grant.since)
        fields["LOCKD_WAITERS"] = str(effect.waiter_count)
        breaks = self._engine.lockspaces[grant.key.lockspace].on_overdue == "break"
        audit = AUDIT if breaks else {}
        logger.warning(
            "%s is overdue: it has held %s %s for %s; %s%s",
            called(grant.owner),
            quoted(str(grant.key)),
            how(grant.mode),
            duration(now - grant.since),
            _waited_for(effect.waiter_count),
            "; lockd breaks the lock" if breaks else "",
            extra={"fields": fields, **audit},
        )

    def tell_end(self, what: Wait | Grant, outcome: str, now: float) -> None:
        """Logs the end of a slow wait or hold. Its session must still exist."""
        took = now - what.since
        if isinstance(what, Wait):
            owner, key = self._engine.owner_of(what.session), what.keys[0]
            fields = _fields("wait ended", key, owner, what.session, what.mode)
            fields |= _usec("WAITED", took) | {"LOCKD_OUTCOME": outcome}
            message = "the long wait of %s for %s is over after %s: %s"
        else:
            owner, key = what.owner, what.key
            fields = _of_grant("hold ended", what) | _usec("HELD", took)
            fields["LOCKD_OUTCOME"] = outcome
            message = "the long hold of %s on %s is over after %s: %s"
        logger.info(
            message,
            called(owner),
            quoted(str(key)),
            duration(took),
            outcome,
            extra={"fields": fields},
        )


def _waited_for(count: int) -> str:
    if count == 0:
        return "nobody waits for it"
    return "1 waits for it" if count == 1 else f"{count} wait for it"


def _fields(
    what: str, key: ResourceKey, owner: Owner, session: int, mode: str
) -> Fields:
    return {
        "MESSAGE_ID": MESSAGE_IDS[what],
        "LOCKD_EVENT": what,
        "LOCKD_LOCKSPACE": key.lockspace,
        "LOCKD_RESOURCE": key.resource,
        "LOCKD_MODE": mode,
        "LOCKD_OWNER": owner.name,
        "LOCKD_OWNER_PID": str(owner.pid),
        "LOCKD_OWNER_UID": str(owner.uid),
        "LOCKD_SESSION": str(session),
    }


def _of_grant(what: str, grant: Grant) -> Fields:
    found = _fields(what, grant.key, grant.owner, grant.session, grant.mode)
    found["LOCKD_FENCING_TOKEN"] = str(grant.fencing_token)
    optional = {"LOCKD_REASON": grant.reason, "LOCKD_LABEL": grant.label}
    return found | {name: text for name, text in optional.items() if text}


def _usec(what: str, seconds: float) -> Fields:
    return {f"LOCKD_{what}_USEC": str(round(seconds * 1e6))}
