"""One episode of the comparison with virtlockd: random steps, and what came of them."""

import fcntl
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from campaigns import mischief
from campaigns.allowed import ALLOWED, Allowed
from campaigns.events import NAME_OF, Event
from campaigns.holdings import Holdings
from campaigns.twins import (
    DEATH_SECONDS,
    Line,
    Owner,
    Persona,
    Twins,
    Unexpected,
    is_locked,
    pid_of,
)
from support import libvirt_client as lc

PERSONAS: Final = 5
LINES: Final = 9
RULES_AT_ONCE: Final = 4
STEPS_SHOWN: Final = 25


def _owner(pid: int, _: int) -> bytes:
    return lc.owner(pid)


class Episode:
    """Some hundred steps that begin with empty directories and new processes.

    Args:
        twins: the two daemons.
        chance: all that is chosen is chosen by it.
        allowed: counts differences that were allowed, by reason.
        happened: counts what happened.
        is_strict: whether nothing is allowed.
    """

    def __init__(
        self,
        twins: Twins,
        chance: random.Random,
        allowed: Counter[str],
        happened: Counter[str],
        is_strict: bool,
    ) -> None:
        self.twins = twins
        self.chance = chance
        self.holdings = Holdings(twins, is_strict=is_strict)
        self.personas: list[Persona] = []
        self.lines: list[Line] = []
        self.is_over = False
        self._allowed = allowed
        self._happened = happened
        self._is_strict = is_strict
        self._outside: list[int] = []
        self.story: list[str] = []

    def run(self, calls: int) -> None:
        """Goes on for so many calls, or until a difference that ends the episode."""
        last = self.twins.calls + calls
        self._prepare()
        steps, weights = zip(*self._steps(), strict=True)
        while self.twins.calls < last and not self.is_over:
            (step,) = self.chance.choices(steps, weights)
            step()
        if not self.is_over:
            self._end()

    def abandon(self) -> None:
        """Ends what is left of it."""
        for persona in self.personas:
            for guest in persona.guests:
                guest.close()
        for line in self.lines:
            self.twins.close_line(line)
        self._unlock_outside()
        self.twins.settle()

    def last_steps(self) -> list[str]:
        """Tells what came before a difference, and who is dead now, and for whom."""
        dead = [
            f"{persona} is dead at {side.name}'s"
            for persona in self.personas
            for guest, side in zip(persona.guests, self.twins.sides, strict=True)
            if guest.wait_until_dead()
        ]
        return [*self.story[-STEPS_SHOWN:-1], *dead]

    def _steps(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self._acquire, 36),
            (self._release, 26),
            (self._register, 3),
            (self._restrict, 0.7),
            (self._create_resource, 4),
            (self._delete_resource, 3),
            (self._make_lockspace, 4),
            (self._malformed, 5),
            (self._open, 7),
            (self._close, 5),
            (self._death, 0.7),
            (self._change_files, 5),
            (self._lock_outside, 3),
        ]

    def _prepare(self) -> None:
        for side in self.twins.sides:
            mischief.furnish(side.root)
        for _ in range(3):
            self._open()
        self._space(lc.CREATE_LOCKSPACE, b"@/one", self._line())

    def _acquire(self) -> None:
        flags = self.chance.choices(
            (0, lc.SHARED, lc.AUTOCREATE, lc.AUTOCREATE | lc.SHARED, 4, 0xFFFFFFFF),
            (30, 20, 30, 20, 0.5, 0.5),
        )[0]
        space, name = self._resource()
        self._call(self._line(), lc.ACQUIRE, space, name, flags)

    def _release(self) -> None:
        flags = self.chance.choices((0, 1, 8), (100, 1, 1))[0]
        if self.holdings.of and self.chance.random() < 0.8:
            key = self.chance.choice(list(self.holdings.of))
            hold = self.chance.choice(self.holdings.of[key])
            if own := [line for line in self.lines if line.owner == hold.owner]:
                self._call(self.chance.choice(own), lc.RELEASE, *key, flags)
                return
        self._call(self._line(), lc.RELEASE, *self._resource(), flags)

    def _create_resource(self) -> None:
        space, name = self._resource()
        if name.endswith(b"fifo"):
            return  # virtlockd opens it for writing, and waits for a reader for ever
        flags = self.chance.choices((0, 2), (20, 1))[0]
        self._call(self._line(), lc.CREATE_RESOURCE, space, name, flags)

    def _delete_resource(self) -> None:
        flags = self.chance.choices((0, 1), (20, 1))[0]
        self._call(self._line(), lc.DELETE_RESOURCE, *self._resource(), flags)

    def _make_lockspace(self) -> None:
        space = self.chance.choice(mischief.ODD_SPACES + mischief.SPACES * 8)
        procedure = lc.CREATE_LOCKSPACE
        if space in mischief.SPACES and self.chance.random() < 0.5:
            procedure = lc.NEW  # virtlockd dies of one that cannot be made
        self._space(procedure, space, self._line())

    def _space(self, procedure: int, space: bytes, line: Line) -> None:
        event = Event(NAME_OF[procedure], line, procedure, space)
        event.answers = self.twins.call(
            line,
            procedure,
            lambda side: lc.text(self.twins.fill(space, side)) + lc.flags(),
        )
        self._judge(event)

    def _register(self) -> None:
        self._register_line(self._line())

    def _register_line(self, line: Line) -> None:
        chosen: Owner = line.persona
        if self.chance.random() < 0.3:
            chosen = self.chance.choice(self.personas)
        elif self.chance.random() < 0.1:
            chosen = self.chance.choice(mischief.STRANGERS)
        number, flags = self.chance.choices(((1, 0), (0, 0), (7, 1)), (30, 1, 1))[0]
        event = Event(f"REGISTER id {number} flags {flags}", line, lc.REGISTER)
        event.owner, event.flags = chosen, flags
        event.answers = self.twins.call(
            line,
            lc.REGISTER,
            lambda side: lc.owner(pid_of(chosen, side), id=number, flags=flags),
        )
        if self._judge(event) == "ok":
            line.owner = chosen

    def _restrict(self) -> None:
        line, flags = self._line(), self.chance.choices((0, 1), (3, 1))[0]
        event = Event(f"RESTRICT flags {flags}", line, lc.RESTRICT, flags=flags)
        event.answers = self.twins.call(line, lc.RESTRICT, lambda _: lc.flags(flags))
        if self._judge(event) == "ok":
            line.is_restricted = True

    def _malformed(self) -> None:
        line, message = self._line(), mischief.malformed(self.chance)
        event = Event(f"bytes {message[:64].hex()}..({len(message)})", line)
        event.answers = self.twins.send(line, message)
        if "closed" in event.answers[0] + event.answers[1]:
            self._expect_end(line, event)
        self._judge(event)

    def _open(self) -> None:
        if len(self.lines) >= LINES:
            return
        living = [persona for persona in self.personas if not persona.is_dead]
        if not living or (len(living) < PERSONAS and self.chance.random() < 0.6):
            living.append(self.twins.persona(len(self.personas)))
            self.personas.append(living[-1])
        self.lines.append(self.twins.open(self.chance.choice(living)))
        if self.chance.random() < 0.9:
            self._register_line(self.lines[-1])
        else:
            self.twins.settle()  # it must be taken before its process may die

    def _close(self) -> None:
        line = self._line()
        if self.holdings.is_owning(line) and self.chance.random() < 0.8:
            return  # virtlockd needs 200 ms for it
        event = Event("close", line)
        self._expect_end(line, event)
        self._judge(event)

    def _expect_end(self, line: Line, event: Event) -> None:
        """Closes a connection, and waits for the death of those who must die by it."""
        must_die, self.holdings.gone = self.holdings.is_owning(line), []
        event.is_held_otherwise = must_die and self.holdings.shares_a_file(line.owner)
        self.twins.close_line(line)
        self.lines.remove(line)
        persona = line.persona
        if must_die:
            event.what += f", which ends persona {persona.number}"
            self._happened["guests that were killed for closing"] += 1
            for guest in persona.guests:
                guest.wait_until_dead(DEATH_SECONDS)
            self.holdings.forget([persona])
        self.twins.settle()
        self._wait_for_release()
        first, second = (
            " killed" * guest.wait_until_dead() for guest in persona.guests
        )
        event.answers = (event.answers[0] + first, event.answers[1] + second)
        if first and second:
            persona.is_dead = True

    def _wait_for_release(self) -> None:
        """Returns when lockd, which releases after a death, has nothing more of it."""
        end = time.monotonic() + DEATH_SECONDS
        while self.holdings.gone and time.monotonic() < end:
            first, second = self.twins.look()
            if not any(
                is_locked(s) and not is_locked(first.get(p, ""))
                for p, s in second.items()
            ):
                return
            self.twins.settle()

    def _death(self) -> None:
        if not (living := [p for p in self.personas if not p.is_dead]):
            return
        persona = self.chance.choice(living)
        persona.is_dead = True
        for guest in persona.guests:
            guest.kill()
        self._happened["guests that died by themselves"] += 1
        for line in [line for line in self.lines if line.persona is persona]:
            self.twins.close_line(line)
            self.lines.remove(line)
        self.twins.settle()
        event = Event("death", owner=persona)
        event.is_held_otherwise = self.holdings.shares_a_file(persona)
        self.holdings.forget([persona])
        self._judge(event)

    def _change_files(self) -> None:
        name = self.chance.choice(mischief.CHANGED)
        place = self.chance.choice(("one", "disks"))
        self.holdings.see_change(place, name)
        for side in self.twins.sides:
            mischief.change(side.root / place, name)
        self._judge(Event(f"from outside: {place}/{name} comes or goes"))

    def _lock_outside(self) -> None:
        if self._outside:
            self._unlock_outside()
            self._judge(Event("the lock from outside goes"))
            return
        place = self.chance.choice(("one/a", "one/b", "disks/a", "disks/b"))
        kind = self.chance.choice((fcntl.F_WRLCK, fcntl.F_RDLCK))
        got = [
            mischief.lock_from_outside(s.root / place, kind) for s in self.twins.sides
        ]
        self._outside = [fd for fd in got if fd is not None]
        event = Event(f"a lock from outside on {place}")
        event.answers = (str(got[0] is not None), str(got[1] is not None))
        self._judge(event)

    def _unlock_outside(self) -> None:
        for descriptor in self._outside:
            os.close(descriptor)
        self._outside = []

    def _end(self) -> None:
        """All die, all connections end: nothing may be locked any more."""
        self._release_for_strangers()
        for persona in self.personas:
            for guest in persona.guests:
                guest.kill()
            persona.is_dead = True
        for line in self.lines:
            self.twins.close_line(line)
        self.lines = []
        self.twins.settle()  # a file that is locked from outside is not removed
        self._unlock_outside()
        self.holdings.forget([*self.personas, *mischief.STRANGERS])
        self._judge(Event("all die"))
        if self._is_strict:
            return
        for path, said in self.twins.look()[1].items():
            if is_locked(said):
                raise Unexpected(f"{path} is still locked when all are dead: {said}")

    def _release_for_strangers(self) -> None:
        """Releases what is held for a process that will live on."""
        for key, holds in list(self.holdings.of.items()):
            for owner in [h.owner for h in holds if isinstance(h.owner, int)]:
                line = self.twins.open(self.twins.persona(-1))
                self.twins.call(line, lc.REGISTER, partial(_owner, owner))
                line.owner = owner
                self._call(line, lc.RELEASE, *key, 0)
                for guest in line.persona.guests:
                    guest.close()
                self.twins.close_line(line)

    # How it is chosen.

    def _line(self) -> Line:
        while not self.lines:
            self._open()
        line = self.chance.choice(self.lines)
        if line.is_restricted and self.chance.random() < 0.8:
            return self.chance.choice(self.lines)  # there is little to learn of it
        return line

    def _resource(self) -> tuple[bytes, bytes]:
        odd = self.chance.random()
        space = self.chance.choice(
            mischief.ODD_SPACES if odd < 0.04 else mischief.SPACES
        )
        if 0.04 < odd < 0.045:
            return b"", self.chance.choice(mischief.ODD_PATHS)
        name = self.chance.choice(mischief.ODD_NAMES if odd > 0.93 else mischief.NAMES)
        return space, name if space else b"@/disks/" + name

    # What must come of it.

    def _call(
        self, line: Line, procedure: int, space: bytes, name: bytes, flags: int
    ) -> None:
        fill = self.twins.fill
        event = Event(NAME_OF[procedure], line, procedure, space, name, flags)
        event.owner = line.owner
        event.is_held_otherwise = self.holdings.is_held_otherwise(event)
        event.answers = self.twins.call(
            line,
            procedure,
            lambda side: lc.resource(fill(space, side), fill(name, side), flags),
        )
        if self._judge(event) == "ok":
            self._happened[NAME_OF[procedure]] += 1
            self.holdings.remember(event)

    def hang_up(self, line: Line) -> None:
        """Closes a connection that one of the two cannot use any more."""
        self.twins.close_line(line)
        self.lines.remove(line)
        self.twins.settle()

    def _judge(self, event: Event) -> str:
        """Compares what came of a step; returns the answer that both gave at last."""
        self.story.append(str(event))
        event.files = self.twins.look()
        if not event.is_same():
            # A descriptor may be closed after the answer that says so.
            self.twins.settle()
            event.files = self.twins.look()
            self._happened["looked at again"] += event.is_same()
        rounds = 0
        while not event.is_same() or (self.holdings.gone and not self._is_strict):
            rule = self._rule(event)
            if rule is None:
                break
            rounds += 1
            if rounds > RULES_AT_ONCE:
                raise Unexpected(f"{event}: {rule.reason!r} did not help")
            self._allowed[rule.reason] += 1
            rule.heal(event, self)
            if self.is_over:
                break
            event.files = self.twins.look()
            event.is_healed = True
        return "undone" if event.is_undone or self.is_over else event.answers[1]

    def _rule(self, event: Event) -> Allowed | None:
        """Returns the rule that allows a difference; None if there is none left."""
        if not self._is_strict:
            for rule in ALLOWED:
                if rule.applies(event, self):
                    return rule
        if event.is_same():
            return None  # the dead left nothing
        raise Unexpected(f"{event} {self.twins.sentences}")
