"""The log of what takes long: waits and holds, when they pass a threshold and end.

Nothing is searched: in each lockspace the first that began is the first that passes.
What was told of once is told of once more, when it is over.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from lockd.daemon.activity.counts import Counts, Space, Wait
from lockd.daemon.config.config import LockspaceConfig
from lockd.daemon.replies.sentences import called, how, where
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, Situation
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
}
"""MESSAGE_ID= of the journal, by which lines of a kind are found."""

Fields = dict[str, str]


class Slowness:
    """Tells of what takes long.

    Args:
        counts: knows what waits and what is held, in the order of its beginning.
    """

    def __init__(self, counts: Counts, engine: LockEngine) -> None:
        self._counts = counts
        self._engine = engine
        counts.on_slow_end = self._tell_end

    def adopt(self, now: float) -> None:
        """Takes what is slow already as told of, by the daemon before."""
        self._counts.now = now
        for space in self._counts.spaces.values():
            self._take_slow(space)

    def configure(self, lockspaces: Mapping[str, LockspaceConfig]) -> None:
        """Sets the thresholds of lockspaces, from now on."""
        for name, config in lockspaces.items():
            space = self._counts.space(name)
            space.slow_wait = config.slow_wait
            watched, space.slow_hold = bool(space.slow_hold), config.slow_hold
            if bool(space.slow_hold) is not watched:
                self._counts.watch_holds(space, self._engine)

    def look(self, now: float) -> None:
        """Tells of what has become slow."""
        self._counts.now = now
        for space in self._counts.spaces.values():
            waits, holds = self._take_slow(space)
            for wait in waits:
                self._tell_wait(wait, now)
            for grant in holds:
                self._tell_hold(grant, now)
            space.slow_waits += len(waits)
            space.slow_holds += len(holds)

    def _take_slow(self, space: Space) -> tuple[list[Wait], list[Grant]]:
        now, waits, holds = self._counts.now, list[Wait](), list[Grant]()
        if space.slow_wait:
            waits = space.waiting.take_old(now - space.slow_wait)
        if space.slow_hold:
            holds = space.held.take_old(now - space.slow_hold)
        for wait in waits:
            wait.owner = self._engine.owner_of(wait.session)
        return waits, holds

    def _tell_wait(self, wait: Wait, now: float) -> None:
        owner = wait.owner
        assert owner is not None
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
        """Returns what is in the way of a request: of several, the first held one."""
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

    def _tell_end(self, what: Wait | Grant, outcome: str) -> None:
        took = self._counts.now - what.since
        if isinstance(what, Wait):
            assert what.owner is not None
            key = what.keys[0]
            fields = _fields("wait ended", key, what.owner, what.session, what.mode)
            fields |= _usec("WAITED", took) | {"LOCKD_OUTCOME": outcome}
            message = "the long wait of %s for %s is over after %s: %s"
            owner = what.owner
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
