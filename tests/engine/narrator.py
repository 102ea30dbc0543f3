"""Tells the engine what a line of a transcript says, and says what it answered.

Everybody who is named has a session of that name. A bare resource is in the memory
lockspace, `files:` needs an anchor, `guarded:` fences who leaves without releasing.
"""

import re
from collections.abc import Callable
from itertools import count

from engine.scene import owner
from engine.snapshots import dump
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    EXCLUSIVE,
    SHARED,
    Mode,
    OutsideHolder,
    ResourceKey,
)

Say = Callable[["Narrator", re.Match[str]], list[str]]
_SENTENCES: list[tuple[re.Pattern[str], Say]] = []


def sentence(pattern: str) -> Callable[[Say], Say]:
    """Registers what is to be done about the lines that match."""

    def register(say: Say) -> Say:
        _SENTENCES.append((re.compile(pattern), say))
        return say

    return register


class Narrator:
    def __init__(self) -> None:
        self.now = 0.0
        self.numbers = count(1)
        self.sessions: dict[str, int] = {}
        self.owners: dict[str, int] = {}
        self.engine = LockEngine()
        self.engine.handle(c.AddLockspace(DEFAULT_LOCKSPACE, False), now=0.0)
        self.engine.handle(c.AddLockspace("files", True), now=0.0)
        self.engine.handle(c.AddLockspace("guarded", False, "kill"), now=0.0)

    def tell(self, line: str) -> str:
        """Does what a line says; returns what the engine said, a line for each."""
        for pattern, say in _SENTENCES:
            if match := pattern.fullmatch(line):
                said = say(self, match)
                check(self.engine)
                return "\n".join(said or ["nothing"])
        raise ValueError(f"what does it mean: {line!r}?")

    def session(self, name: str) -> int:
        if name not in self.sessions:
            number = self.sessions[name] = self.owners[name] = next(self.numbers)
            command = c.OpenSession(number, owner(name, number))
            self.engine.handle(command, now=self.now)
        return self.sessions[name]

    def do(self, command: c.Command) -> list[str]:
        effects = self.engine.handle(command, now=self.now)
        return [self.prose(effect) for effect in effects]

    def name(self, session: int) -> str:
        return next(x for x, number in self.sessions.items() if number == session)

    def owner_name(self, owner_id: int) -> str:
        return next(x for x, number in self.owners.items() if number == owner_id)

    def prose(self, effect: e.Effect) -> str:
        match effect:
            case e.Granted(
                session=session, grants=grants, waited=waited, converted=converted
            ):
                verb = "converted" if converted else "granted"
                after = f" after {waited:g} s" if waited else ""
                locks = ", ".join(map(_grant, grants))
                return f"{verb} {self.name(session)} {locks}{after}"
            case e.Refused():
                return f"refused {self.name(effect.session)}: {_why(effect)}"
            case e.Completed(session=session):
                return f"done {self.name(session)}"
            case e.Queued(session=session, keys=keys, mode=mode, converting=converting):
                names = ", ".join(map(str, keys))
                verb = "to be converted" if converting else "queued"
                return f"{verb} {self.name(session)} {names} {mode}"
            case e.Ended(grant=grant, cause=cause):
                return f"ended {grant.owner.name} {_grant(grant)}: {cause}"
            case e.Lost(session=session, grant=grant, cause=cause, reason=reason):
                words = f"{cause}, {reason}" if reason else cause
                return f"told {self.name(session)} {_grant(grant)} is lost: {words}"
            case e.Overdue(session=session, grant=grant, waiter_count=count):
                who = "told others" if session is None else f"told {self.name(session)}"
                return f"{who} {_grant(grant)} is overdue; {count} wait"
            case e.Wanted(session=session, grant=grant, waiter_count=count):
                return f"told {self.name(session)} {_grant(grant)} is wanted by {count}"
            case e.Unwanted(session=session, grant=grant):
                return f"told {self.name(session)} {_grant(grant)} is wanted no more"
            case e.BreakOverdue(grant=grant):
                return f"break {_grant(grant)}"
            case e.OpenAnchor(key=key, mode=mode):
                return f"open the file of {key} {mode}"
            case e.CloseAnchor(key=key):
                return f"close the file of {key}"
            case e.Fence(owner=who):
                return f"fence {who.name}"
            case e.ForgetOwner(owner_id=owner_id):
                return f"forget {self.owner_name(owner_id)}"


def _grant(grant: e.Grant) -> str:
    times = f" {grant.count} times" if grant.count > 1 else ""
    return f"{grant.key} {grant.mode}{times} fencing_token={grant.fencing_token}"


def _why(refused: e.Refused) -> str:
    words = [refused.code]
    if refused.message:
        words.append(refused.message)
    if refused.outside:
        words.append(f"locked from outside by pid {refused.outside.pid}")
    if refused.cycle:
        links = (f"{link.owner.name} waits for {link.key}" for link in refused.cycle)
        words.append(", ".join(links))
    elif refused.situation:
        words += _situation(refused.situation)
    return "; ".join(words)


def _situation(situation: e.Situation) -> list[str]:
    holders = [f"{grant.owner.name} {grant.mode}" for grant in situation.holders]
    waiters = [
        f"{w.owner.name} {'converting to ' * w.converting}{w.mode}"
        for w in situation.waiters
    ]
    words = [f"{situation.key} held by {', '.join(holders) or 'nobody'}"]
    return [*words, f"waiting {', '.join(waiters)}"] if waiters else words


def _keys(text: str) -> tuple[ResourceKey, ...]:
    return tuple(_key(name) for name in text.split(" and "))


def _key(name: str) -> ResourceKey:
    lockspace, colon, resource = name.partition(":")
    return ResourceKey(lockspace, resource) if colon else ResourceKey("default", name)


def _mode(shared: str | None) -> Mode:
    return SHARED if shared else EXCLUSIVE


@sentence(r"(\w+) acquires (.+?)( shared)?(?: within (\d+) s)?( or not at all)?")
def _acquire(self: Narrator, words: re.Match[str]) -> list[str]:
    name, keys, shared, seconds, tries = words.groups()
    timeout = 0 if tries else float(seconds) if seconds else None
    session, number = self.session(name), next(self.numbers)
    return self.do(c.Acquire(session, number, _keys(keys), _mode(shared), timeout))


@sentence(r"(\w+) converts (\S+)(?: to (?:(shared)|exclusive))")
def _convert(self: Narrator, words: re.Match[str]) -> list[str]:
    name, key, shared = words.groups()
    session, number = self.session(name), next(self.numbers)
    return self.do(c.Convert(session, number, _key(key), _mode(shared)))


@sentence(r"(\w+) releases (.+)")
def _release(self: Narrator, words: re.Match[str]) -> list[str]:
    name, keys = words.groups()
    return self.do(c.Release(self.session(name), next(self.numbers), _keys(keys)))


@sentence(r"(\w+) cancels")
def _cancel(self: Narrator, words: re.Match[str]) -> list[str]:
    session = self.session(words[1])
    *_, target = self.engine.sessions[session].requests
    return self.do(c.Cancel(session, next(self.numbers), target))


@sentence(r"(\w+) disconnects")
def _disconnect(self: Narrator, words: re.Match[str]) -> list[str]:
    return self.do(c.CloseSession(self.sessions[words[1]]))


@sentence(r"(\w+) acts for process (\w+)")
def _register(self: Narrator, words: re.Match[str]) -> list[str]:
    session, process = self.session(words[1]), words[2]
    number = self.owners.setdefault(process, next(self.numbers))
    who = owner(process, number)
    return self.do(c.RegisterOwner(session, next(self.numbers), number, who))


@sentence(r"process (\w+) dies")
def _process_dies(self: Narrator, words: re.Match[str]) -> list[str]:
    number = self.owners[words[1]]
    fenced = self.engine.state.owners[number].fencing is not None
    return self.do(c.OwnerFenced(number) if fenced else c.EndOwner(number))


@sentence(r"(\w+) breaks fencing_token=(\d+)")
def _break(self: Narrator, words: re.Match[str]) -> list[str]:
    session, number = self.session(words[1]), next(self.numbers)
    return self.do(c.BreakGrant(session, number, int(words[2]), "it was stuck"))


@sentence(r"the file of (\S+) is opened")
def _anchor_opened(self: Narrator, words: re.Match[str]) -> list[str]:
    return self.do(c.AnchorOpened(_key(words[1])))


@sentence(r"the file of (\S+) is (?:locked from outside|(full))")
def _anchor_refused(self: Narrator, words: re.Match[str]) -> list[str]:
    key = _key(words[1])
    if words[2]:
        return self.do(c.AnchorRefused(key, "io", "No space left on device"))
    outside = OutsideHolder(EXCLUSIVE, 4711, "qemu")
    return self.do(c.AnchorRefused(key, "busy", outside=outside))


@sentence(r"the file of (\S+) is slow")
def _anchor_delayed(self: Narrator, words: re.Match[str]) -> list[str]:
    return self.do(c.AnchorDelayed(_key(words[1])))


@sentence(r"([\d.]+) s pass")
def _time_passes(self: Narrator, words: re.Match[str]) -> list[str]:
    self.now += float(words[1])
    return self.do(c.Tick())


@sentence(r"who has (\S+)\?")
def _who_has(self: Narrator, words: re.Match[str]) -> list[str]:
    return _situation(self.engine.situation(_key(words[1])))


@sentence(r"the daemon is replaced")
def _replaced(self: Narrator, words: re.Match[str]) -> list[str]:
    self.engine = snapshot.load(dump(self.engine)).engine
    return []
