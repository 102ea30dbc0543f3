"""Sentences for refusals: the obstacle, its holder, since when, and what to do."""

from collections.abc import Mapping
from itertools import chain
from typing import Final

from lockd.engine.commands import AddLockspace, Owner
from lockd.engine.effects import Grant, Mismatch, Refused, Situation, WaitEdge
from lockd.names import plain, quoted
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, OutsideHolder
from lockd.text import counted, duration, exact_duration

NAMED: Final = 3
"""How many holders a sentence names."""

_OPENINGS: Final[Mapping[str, str]] = {
    "timeout": "{name} was not granted within {waited}",
    "cancelled": "the wait for {name} was cancelled",
    "deadlock": "waiting for {name} would never end",
    "not_held": "you do not hold {name}",
    "already_held": "you already hold or wait for {name}",
    "in_use": "{name} cannot be converted",
}

_CROWDED: Final = "as many wait for {name} as `max_waiting` allows ({most})"

NEXT_STEPS: Final[Mapping[str, str]] = {
    "busy": "ask with a timeout to wait in line",
    "timeout": "ask again with a longer timeout, or have the holder release it",
    "deadlock": "release something first, or ask for everything in one request",
    "not_held": "acquire it again if it is still needed",
    "already_held": "use `convert` to change its mode",
    "in_use": "release it until you hold it once",
}
"""The next step after a refusal by the lock table, by code."""


_OWN_LOCK: Final = (
    "this program itself has locked it: acquire it before you lock or open the file, "
    'or set outside = "byte" for the lockspace'
)


_ONE_SLOT: Final = (
    "each thread, task or command holds one slot at most: release it first, or ask "
    "from another one"
)

_NESTED: Final[Mapping[str, tuple[str, str]]] = {
    SHARED: (
        "{name} is held shared by the command that this is part of",
        "take it exclusively there",
    ),
    SLOT: (
        "{name} is held in a slot by the command that this is part of",
        "ask for a slot here, or take it there as you need it here",
    ),
    EXCLUSIVE: (
        "{name} is held exclusively by the command that this is part of",
        "ask for it without a slot",
    ),
    "whole": (
        "{name} is held by the command that this is part of",
        "take it whole there",
    ),
    "in_use": (
        "{name} cannot be converted while a program inside it holds it",
        "try again when that has ended",
    ),
}
"""How a refusal begins, and the next step, if one is inside what the other holds."""

_INSIDE: Final = (
    "take the lock in one place only, or unset LOCKD_WITHIN for a program whose end "
    "nobody waits for"
)
"""The next step where a program waits for the end of another that it started."""


def sentence(
    refused: Refused, now: float, *, advises: bool = True, pid: int | None = None
) -> str:
    """Returns the sentence of a refusal.

    Args:
        refused: the refusal.
        now: the time.
        advises: whether to add the next step.
        pid: the process that is refused.
    """
    parts = [refused.message]
    if refused.mismatch is not None:
        return _other_slots(refused.mismatch)
    if refused.situation is not None:
        parts = _explanation(refused, refused.situation, now)
    if _has_locked_it(refused.outside, pid):
        parts.append(_OWN_LOCK)
    elif advises and refused.max_waiting is not None:
        parts.append("ask again later, or with a greater `max_waiting`")
    elif advises and refused.nested:
        parts.append(_nested(refused)[1])
    elif advises and any(edge.inside is not None for edge in refused.cycle):
        parts.append(_INSIDE)
    elif advises:
        parts.append(_next_step(refused))
    return "; ".join(filter(None, parts))


def _next_step(refused: Refused) -> str:
    found = refused.situation
    has_slots = found is not None and found.slots is not None
    if has_slots and refused.code == "already_held":
        return _ONE_SLOT
    return NEXT_STEPS.get(refused.code, "")


def _nested(refused: Refused) -> tuple[str, str]:
    if refused.code != "already_held":
        return _NESTED[refused.code]
    held = refused.situation.holders if refused.situation is not None else ()
    return _NESTED["whole" if refused.message else held[0].mode if held else SHARED]


def _has_locked_it(outside: OutsideHolder | None, pid: int | None) -> bool:
    """Returns whether a process has itself locked bytes at which lockd only looks."""
    return (
        outside is not None and outside.pid == pid is not None and bool(outside.start)
    )


_CONFIGURED: Final = {
    "now": "as configured",
    "before": "as configured before",
}


def _other_slots(found: Mismatch) -> str:
    name = quoted(str(found.key))
    if found.slots is None:
        return (
            f"nobody has said how many slots {name} has: give their number (in lockctl "
            "--slots N), or set it in `slots` of lockd.toml(5)"
        )
    why = ""
    if found.configured is not None:
        why = f" ({_CONFIGURED[found.configured]})"
    elif found.owner is not None:
        why = f" ({plain(found.owner.name)}, pid {found.owner.pid}, said so)"
    return (
        f"{name} has {counted(found.slots, 'slot')}{why}; {found.asked} were asked "
        f"for; ask for {found.slots}, or give no number"
    )


def unchangeable(found: Situation, now: float) -> str:
    """Returns the sentence for a file that cannot change because it is in use."""
    parts = [f"the file of {quoted(str(found.key))} is in use"]
    if found.holder_count:
        parts.append(_is_held(found, "it", now))
    if found.waiter_count:
        parts.append(_waiting(found, "it"))
    return "; ".join([*parts, "try again when nobody holds it or waits for it"])


def _explanation(refused: Refused, situation: Situation, now: float) -> list[str]:
    # The process outside lockd says more than the message.
    parts = ["" if refused.outside else refused.message]
    name = quoted(str(situation.key))
    if label := _label(situation):
        name += f" ({plain(label)})"
    if refused.nested:
        parts.insert(0, _nested(refused)[0].format(name=name))
        name = "it"
    elif refused.code in _OPENINGS:
        waited = exact_duration(refused.waited or 0)
        parts.insert(0, _OPENINGS[refused.code].format(name=name, waited=waited))
        name = "it"
    if refused.max_waiting is not None:
        parts.insert(0, _CROWDED.format(name=name, most=refused.max_waiting))
        name = "it"
    if refused.cycle:
        parts.append(_circle(refused.cycle))
    elif situation.holder_count:
        parts.append(_is_held(situation, name, now))
        name = "it"
    if outside := refused.outside or situation.outside:
        parts.append(f"{name} is {_held_outside(outside)}")
        name = "it"
    if situation.waiter_count:
        parts.append(_waiting(situation, name))
    return parts


def where(found: Situation, now: float) -> str:
    """Returns the holder of a resource, for a sentence."""
    if found.holder_count:
        return f"held {_by(found, now)}"
    if found.outside is not None:
        return _held_outside(found.outside)
    return "held by nobody in lockd"


def _label(found: Situation) -> str | None:
    """Returns the label of a resource, which often is the path that was hashed."""
    labels = (grant.label for grant in found.holders)
    return next(filter(None, labels), None)


def _is_held(found: Situation, name: str, now: float) -> str:
    """Returns who holds a resource, as a sentence."""
    if found.holders[0].mode != SLOT:
        return f"{name} is held {_by(found, now)}"
    return f"{name} has {_slots(found)} taken by {_holders(found, now)}"


def _by(found: Situation, now: float) -> str:
    mode = found.holders[0].mode
    adverb = f"in {_slots(found)}" if mode == SLOT else how(mode)
    return f"{adverb} by {_holders(found, now)}"


def _slots(found: Situation) -> str:
    """Returns which of its slots are held."""
    taken = f"{found.slots_taken} of {found.slots} slots"
    if not found.slots_removed:
        return taken
    return f"{taken} and {counted(found.slots_removed, 'removed slot')}"


def _holders(found: Situation, now: float) -> str:
    holders = [_holder(grant, now) for grant in found.holders[:NAMED]]
    if found.holder_count > NAMED:
        holders.append(f"{found.holder_count - NAMED} more")
    return ", ".join(holders)


def _holder(grant: Grant, now: float) -> str:
    reason = f": {plain(grant.reason)}" if grant.reason else ""
    return f"{called(grant.owner)} for {duration(now - grant.since)}{reason}"


def _waiting(found: Situation, name: str) -> str:
    first = called(found.waiters[0].owner)
    if found.waiter_count == 1:
        return f"{first} waits for {name}"
    return f"{found.waiter_count} wait for {name}, first {first}"


_ADVERBS: Final[Mapping[Mode, str]] = {
    EXCLUSIVE: "exclusively",
    SHARED: "shared",
    SLOT: "in a slot",
}
_IN_USE: Final = {"qemu": "QEMU", "sqlite": "SQLite"}
_WORKS: Final[Mapping[Mode, str]] = {EXCLUSIVE: "it writes", SHARED: "it reads"}


def _held_outside(outside: OutsideHolder) -> str:
    command = plain(outside.command or "a process")
    who = f"{command} (pid {outside.pid})"
    if outside.pid is None:
        who = "a process that the kernel does not name"
    if outside.key is not None:
        by = f" by {who}" if outside.pid is not None else ""
        return f"held {how(outside.mode)}{by} under the name {quoted(str(outside.key))}"
    if outside.by in _IN_USE:
        of = "" if outside.pid is None else f"; {command}, pid {outside.pid}"
        program, works = _IN_USE[outside.by], _WORKS[outside.mode]
        return f"in use by {program} ({works}{of}), outside lockd"
    if outside.by == "flock":
        return f"locked {how(outside.mode)} with flock(2), outside lockd"
    if outside.by == "lease":
        return "under a lease of a program outside lockd"
    return f"held {how(outside.mode)} by {who}, outside lockd"


def _circle(cycle: tuple[WaitEdge, ...]) -> str:
    first = called(cycle[0].owner)
    waits = [f"waits for {_wanted(edge)}, {_obstacle(edge)}" for edge in cycle]
    others = [called(edge.owner) + ", who" for edge in cycle[1:]]
    return " ".join(chain(*zip([first, *others], waits, strict=True), [first]))


def _obstacle(edge: WaitEdge) -> str:
    if edge.inside is None:
        return "held or queued for by"
    by = called(edge.inside.owner)
    return f"held or queued for by {by}, which waits for the end of"


def _wanted(edge: WaitEdge) -> str:
    return quoted(str(edge.key)) if edge.key.resource else "something"


def how(mode: Mode) -> str:
    """Returns the adverb for a mode."""
    return _ADVERBS[mode]


def called(owner: Owner) -> str:
    """Returns the name, pid and uid of an owner."""
    return f"{plain(owner.name)} (pid {owner.pid}, uid {owner.uid})"


def why_overdue(grant: Grant, lockspaces: Mapping[str, AddLockspace]) -> str:
    """Returns why the daemon breaks an overdue lock: whose `max_hold` has passed."""
    notices, rules = grant.notices, lockspaces[grant.key.lockspace]
    due = notices.due if notices is not None else None
    limit = exact_duration(rules.max_hold or 0)
    space = plain(rules.name)
    allowed = limit if due is None else exact_duration(due - grant.since)
    if allowed == limit:
        return f"held for longer than the max_hold ({limit}) of lockspace {space}"
    return (
        f"held for longer than its max_hold ({allowed}), and lockspace {space} breaks "
        "overdue locks"
    )
