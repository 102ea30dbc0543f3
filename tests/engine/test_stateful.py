"""The engine under random commands: against the naive model, and before a witness."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from engine.ledger import Ledger
from engine.model import Ask, Hold, Model, Who
from engine.scene import owner
from engine.snapshots import dump
from engine.strategies import SLOTS, Crowd, Step, anchor_steps, memory_steps
from engine.witness import Witness, who_holds
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine import lock_state
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.engine.recovery.shapes import Loaded
from lockd.terms import (
    EXCLUSIVE,
    SHARED,
    SLOT,
    Mode,
    OnDisconnect,
    OnOverdue,
    ResourceKey,
    WorkOutcome,
)

FEW_LAST_HOLDERS = 1
"""So that the memory of last holders overflows with two names."""

SAID: tuple[tuple[None, str | None, str | None], ...] = (
    (None, None, None),
    (None, "ö", None),
    (None, "", "why"),
)
"""What each slot says when it acquires: what to create, label, reason."""

WISHES: tuple[tuple[float | None, bool], ...] = (
    (None, False),
    (1.5, True),
    (None, True),
)
"""What a session asks to hear when it acquires: after how many seconds that it is
overdue, and whether somebody waits. The number of the request says which of these."""

LIMITS: tuple[tuple[float | None, OnOverdue], ...] = (
    (None, "notice"),
    (None, "notice"),
    (1.0, "notice"),
    (2.0, "break"),
)
"""How long a lockspace lets a lock be held, and what happens then."""

T = TypeVar("T")


class Machine(RuleBasedStateMachine):
    """Drives one engine, shows every effect to a witness, and counts what happened."""

    tally: ClassVar[Counter[str]]
    lockspace: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.engine = LockEngine()
        self.witness = Witness(FEW_LAST_HOLDERS)
        self.ledger = Ledger()
        self.ledger.begin(self.engine)
        self.now = 0.0
        self.numbers = count(1)
        self.sessions = [0] * len(SLOTS)
        self.strands = [0] * len(SLOTS)
        self.process = 0
        self.happened: set[str] = set()

    def handle(self, command: c.Command) -> list[e.Effect]:
        effects = self.engine.handle(command, now=self.now)
        self.witness.follow(command, effects, self.now)
        assert self.engine.last_holders == self.witness.last_holders
        check(self.engine)
        self.ledger.follow(self.engine)
        self.happened.update(_story(command, effects))
        tokens = set(self.tokens())
        if any(not tokens.issuperset(x.inside) for x in self.engine.grants()):
            self.happened.add("held inside what is over")
        return effects

    def keys(self, *names: str) -> tuple[ResourceKey, ...]:
        return tuple(ResourceKey(self.lockspace, name) for name in names)

    def open_session(self, slot: int) -> None:
        session = self.sessions[slot] = next(self.numbers)
        self.strands[slot] = 0
        self.handle(c.OpenSession(session, owner(f"s{session}", session)))

    def enter(self, slot: int, acts_for_process: bool) -> None:
        self.open_session(slot)
        if acts_for_process:
            self.act_for_process(slot)

    def act_for_process(self, slot: int) -> None:
        """Lets a session act for the process that others act for, or for a new one."""
        if not self.process_lives():
            self.process = next(self.numbers)
        self.register(slot, self.process)

    def register(
        self, slot: int, owner_id: int, on_disconnect: OnDisconnect | None = None
    ) -> None:
        session, number = self.sessions[slot], next(self.numbers)
        who = owner(f"o{owner_id}", owner_id)
        self.handle(c.RegisterOwner(session, number, owner_id, who, on_disconnect))

    def acquire(
        self,
        slot: int,
        names: tuple[str, ...],
        mode: Mode,
        timeout: float | None,
        most: int | None = None,
        slots: int | None = None,
    ) -> None:
        raise NotImplementedError

    def convert_name(
        self, slot: int, name: str, mode: Mode, timeout: float | None
    ) -> None:
        raise NotImplementedError

    def close_session(self, session: int) -> None:
        raise NotImplementedError

    def reconnect(self, slot: int, acts_for_process: bool) -> None:
        """Closes a session; each slot that acted in it has a new one of its own."""
        crowd = self.sharers(slot)
        self.close_session(self.sessions[slot])
        for other in crowd:
            self.enter(other, acts_for_process and other == slot)

    def sharers(self, slot: int) -> list[int]:
        return [x for x in SLOTS if self.sessions[x] == self.sessions[slot]]

    def join(self, slot: int, other: int) -> None:
        """Makes a slot a strand of another slot's session, or of its own."""
        if other in self.sharers(slot):
            self.strands[slot] = 1
        else:
            if self.sharers(slot) == [slot]:
                self.close_session(self.sessions[slot])
            self.sessions[slot] = self.sessions[other]
            self.strands[slot] = 2 + slot
        self.happened.add("acted as a strand")

    def release_names(self, slot: int, names: tuple[str, ...]) -> None:
        raise NotImplementedError

    def release_for_owner(self, slot: int, pick: int) -> None:
        raise NotImplementedError

    def break_grant(self, pick: int) -> None:
        raise NotImplementedError

    def time_passes(self, pause: float) -> None:
        raise NotImplementedError

    def process_ends(self, dead: bool) -> None:
        raise NotImplementedError

    def whose(self, pick: int) -> tuple[int | None, str]:
        """Picks a grant, and tells which slot may act for its owner."""
        raise NotImplementedError

    def convert(self, pick: int, slot: int, mode: Mode, timeout: float | None) -> None:
        actor, name = self.whose(pick)
        self.convert_name(slot if actor is None else actor, name, mode, timeout)

    def crowd(
        self,
        name: str,
        crowd: Crowd,
        timeout: float | None,
        most: int | None = None,
    ) -> None:
        for slot, mode in crowd:
            self.acquire(slot, (name,), mode, timeout, most)

    def cross(self, crowd: Crowd) -> None:
        """Lets two sessions ask for what the other one got."""
        (first, mode), (second, other_mode), *_ = crowd
        self.acquire(first, ("a",), mode, None)
        self.acquire(second, ("b",), other_mode, None)
        self.acquire(first, ("b",), other_mode, None)
        self.acquire(second, ("a",), mode, None)

    def clear(self) -> None:
        """Begins anew: few plots lead anywhere in the middle of another one."""
        self.process_ends(dead=True)
        company = [self.sharers(slot)[0] for slot in SLOTS]
        for slot in set(company):
            self.reconnect(slot, False)
        for slot, other in enumerate(company):
            if slot != other:
                self.join(slot, other)

    def upgrade(self, crowd: Crowd, leaves: bool) -> None:
        """Lets one of two holders upgrade before a waiter."""
        (first, _), (second, _), (third, mode) = crowd
        self.clear()
        self.acquire(first, ("a",), SHARED, None)
        self.acquire(second, ("a",), SHARED, None)
        self.acquire(third, ("a",), EXCLUSIVE, None)
        self.convert_name(first, "a", EXCLUSIVE, None)
        if leaves:
            self.release_names(second, ("a",))
        else:
            self.convert_name(second, "a", mode, None)

    def barge(self, crowd: Crowd) -> None:
        """Lets one ask for what is shared, while a holder waits to have it alone."""
        (first, _), (second, _), (third, mode) = crowd
        self.clear()
        self.acquire(first, ("a",), SHARED, None)
        self.acquire(second, ("a",), SHARED, None)
        self.convert_name(first, "a", EXCLUSIVE, None)
        self.acquire(third, ("a",), mode, None)

    def ring(self, crowd: Crowd) -> None:
        """Lets each session ask for what the next one got."""
        self.clear()
        for name, (slot, mode) in zip("abc", crowd, strict=True):
            self.acquire(slot, (name,), mode, None)
        for name, (slot, mode) in zip("bca", crowd, strict=True):
            self.acquire(slot, (name,), mode, None)

    def wait_too_long(self, crowd: Crowd, pause: float) -> None:
        """Lets two sessions wait behind a holder, for longer and for less long."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.clear()
        self.acquire(first, ("a",), EXCLUSIVE, None)
        self.acquire(second, ("a",), mode, pause)
        self.acquire(third, ("a",), other_mode, 2 * pause)
        self.time_passes(pause)

    def break_and_take(self, pick: int, slot: int, mode: Mode) -> None:
        """Lets a session take what was broken, unless others wait for it."""
        self.break_grant(pick)
        for name in "ab":
            self.acquire(slot, (name,), mode, 0)

    def leave(self, crowd: Crowd, pick: int) -> None:
        """Lets a session leave a lock to a process; another one releases it."""
        (first, mode), (second, other_mode), (third, _) = crowd
        self.clear()
        self.reconnect(first, True)
        self.acquire(first, ("a",), mode, None)
        self.acquire(second, ("a",), other_mode, None)
        self.release_for_owner(third, pick)
        self.reconnect(first, False)
        self.release_for_owner(third, pick)

    def pile(self, crowd: Crowd, most: int) -> None:
        """Lets a session ask for two locks; others wait for one of them."""
        (first, mode), (second, other_mode), (third, _) = crowd
        self.clear()
        self.acquire(first, ("a", "b"), mode, None)
        self.acquire(second, ("b",), EXCLUSIVE, None)
        self.acquire(third, ("a", "b"), other_mode, None, most)

    def snare(self, crowd: Crowd, joins: bool, waits: bool) -> None:
        """Lets a session upgrade what another one wants together with more.

        If it waits elsewhere for that other one, it closes a circle.
        """
        (first, mode), (second, _), (third, _) = crowd
        self.clear()
        self.acquire(third, ("b",), EXCLUSIVE, None)
        self.acquire(second, ("c",), EXCLUSIVE, None)
        self.acquire(first, ("a",), SHARED, None)
        if joins:
            self.acquire(third, ("a",), SHARED, None)
        self.acquire(second, ("a", "b"), SHARED, None)
        if waits:
            self.acquire(first, ("c",), mode, None)
        self.convert_name(first, "a", EXCLUSIVE, None)
        self.release_names(third, ("b",))

    def twins(self, crowd: Crowd) -> None:
        """Lets two sessions of a process ask under one number for the same lock."""
        (first, mode), (second, other_mode), _ = crowd
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, slot in (first, second))
            self.join(slot, slot)
        self.acquire(first, ("a",), mode, None)
        self.acquire(second, ("a",), other_mode, None)

    def take_slot(
        self, slot: int, name: str, slots: int | None, timeout: float | None
    ) -> None:
        self.acquire(slot, (name,), SLOT, timeout, slots=slots)

    def pool(self, crowd: Crowd, slots: int) -> None:
        """Lets each ask for a slot; the last asks in another mode, and once more."""
        (first, mode), (second, other_mode), (third, _) = crowd
        self.clear()
        self.take_slot(first, "a", slots, None)
        self.acquire(second, ("a",), other_mode, None)
        self.take_slot(third, "a", None, None)
        self.release_names(first, ("a",))
        self.take_slot(first, "a", slots, None)
        self.acquire(second, ("b",), mode, None)

    def knot(self, crowd: Crowd, slots: int, ties: bool) -> None:
        """Lets two wait for each other, one of them for any slot; or all for all."""
        (first, mode), (second, _), (third, _) = crowd
        self.clear()
        self.take_slot(first, "a", slots, None)
        self.acquire(second, ("b",), EXCLUSIVE, None)
        self.take_slot(third, "a", slots, None)
        self.acquire(first, ("b",), mode, None)
        self.take_slot(second, "a", slots, None)
        if ties:
            self.acquire(third, ("b",), mode, None)

    def shrink(self, crowd: Crowd) -> None:
        """Takes the slot away that one waits for whom another waits for."""
        self.knot(crowd, 2, ties=False)
        self.configure("a", 1)

    def grow(self, crowd: Crowd) -> None:
        """Configures more slots while some wait for one."""
        self.clear()
        self.configure("a", 1)
        for slot, _ in crowd:
            self.take_slot(slot, "a", None, None)
        self.configure("a", 2)
        self.configure("a", 3)

    def configure(self, name: str, slots: int | None) -> None:
        raise NotImplementedError

    def overtaken(self, crowd: Crowd, ties: bool) -> None:
        """Lets one ask for a slot behind another that waits for it."""
        (first, mode), (second, _), (third, _) = crowd
        self.clear()
        self.take_slot(first, "a", 1, None)
        self.take_slot(second, "a", 1, None)
        self.acquire(third, ("b",), EXCLUSIVE, None)
        if ties:
            self.acquire(second, ("b",), mode, None)
        self.take_slot(third, "a", 1, None)

    def enter_grants(self, slot: int, tokens: tuple[int, ...]) -> None:
        raise NotImplementedError

    def tokens(self) -> list[int]:
        return [grant.fencing_token for grant in self.engine.grants()]

    def nest(self, slot: int, *picks: int) -> None:
        """Begins a session inside some grants, or inside what is none."""
        self.reconnect(slot, False)
        found = [_pick(self.tokens(), pick) or 0 for pick in picks]
        self.enter_grants(slot, tuple(dict.fromkeys(found)))
        self.happened.add("was inside a grant")

    def trees(self, crowd: Crowd) -> None:
        """Lets a program wait for what another has that waits for its parent."""
        (first, mode), (second, other_mode), (child, _) = crowd
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, False)
        self.acquire(first, ("a",), mode, None)
        self.acquire(second, ("b",), other_mode, None)
        self.enter_grants(child, tuple(self.tokens()[:1]))
        self.acquire(child, ("b",), mode, None)
        self.acquire(second, ("a",), EXCLUSIVE, None)

    def family(self, crowd: Crowd, name: str) -> None:
        """Begins anew, with one that holds a lock, and two that are inside."""
        (first, mode), *others = crowd
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, False)
        self.acquire(first, (name,), mode, None)
        for slot, _ in others:
            self.enter_grants(slot, tuple(self.tokens()))

    def siblings(self, crowd: Crowd, first_ends: bool, pause: bool) -> None:
        """Lets two ask for what both are inside of; the holder ends early or late."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(crowd, "a")
        self.acquire(second, ("a",), mode, None)
        self.acquire(third, ("a",), other_mode, None)
        if pause:
            self.time_passes(1.0)
        ends = (first, second, third) if first_ends else (second, third, first)
        for slot in ends:
            self.release_names(slot, ("a",))

    def siblings_in_a_slot(self, crowd: Crowd, slots: int, first_ends: bool) -> None:
        """Lets two ask for the slot that both are inside of."""
        (first, _), (second, mode), (third, _) = crowd
        self.family_in_a_slot(crowd, slots)
        self.take_slot(second, "a", None, None)
        self.take_slot(third, "a", slots, None)
        self.acquire(second, ("b",), mode, None)
        ends = (first, second, third) if first_ends else (second, first, third)
        for slot in ends:
            self.release_names(slot, ("a",))

    def neighbour_of_a_slot(self, crowd: Crowd, slots: int, ties: bool) -> None:
        """Lets one from outside ask for what others hold inside a slot."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family_in_a_slot(crowd, slots)
        self.reconnect(third, False)
        self.acquire(third, ("b",), other_mode, None)
        self.take_slot(second, "a", None, None)
        if ties:
            self.acquire(third, ("a",), mode, None)
        self.take_slot(third, "a", None, None)
        self.acquire(second, ("b",), mode, None)
        self.release_names(first, ("a",))
        self.release_names(second, ("a",))

    def grandchild_in_a_slot(self, crowd: Crowd, slots: int, outwards: bool) -> None:
        """Lets one hold a slot inside what another holds inside it."""
        (first, _), (second, mode), (third, _) = crowd
        self.family_in_a_slot(crowd, slots)
        self.take_slot(second, "a", None, None)
        self.reconnect(third, False)
        self.enter_grants(third, tuple(self.tokens()))
        self.take_slot(third, "a", None, None)
        self.acquire(third, ("b",), mode, None)
        order = (third, second, first) if outwards else (first, second, third)
        for slot in order:
            self.release_names(slot, ("a",))

    def family_in_a_slot(self, crowd: Crowd, slots: int) -> None:
        """Lets the first hold a slot; the others are inside it."""
        (first, _), *others = crowd
        self.clear()
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, False)
            self.join(slot, slot)
        self.take_slot(first, "a", slots, None)
        for slot, _ in others:
            self.enter_grants(slot, tuple(self.tokens()[:1]))

    def passer_by(self, crowd: Crowd, first_ends: bool, asks_first: bool) -> None:
        """Lets one ask for what others hold one inside the other."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(crowd, "a")
        self.reconnect(third, False)
        if asks_first:
            self.acquire(third, ("a",), other_mode, None)
        self.acquire(second, ("a",), mode, None)
        self.acquire(third, ("a",), other_mode, None)
        for slot in (first, second) if first_ends else (second, first):
            self.release_names(slot, ("a",))

    def grandchild(self, crowd: Crowd, outwards: bool) -> None:
        """Lets one hold inside what another one holds inside a third."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(crowd, "a")
        self.acquire(second, ("a",), mode, None)
        self.reconnect(third, False)
        self.enter_grants(third, tuple(self.tokens()))
        self.acquire(third, ("a",), other_mode, None)
        self.convert_name(second, "a", SHARED, None)
        for slot in (third, second, first) if outwards else (first, second, third):
            self.release_names(slot, ("a",))

    def cousins(self, crowd: Crowd, joins: bool) -> None:
        """Lets two inside ask for two locks crosswise, or for both at once."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(crowd, "a")
        self.acquire(first, ("b",), EXCLUSIVE, None)
        for slot in (second, third):
            self.reconnect(slot, False)
            self.enter_grants(slot, tuple(self.tokens()))
        self.acquire(second, ("b",), mode, None)
        self.acquire(third, ("a", "b") if joins else ("a",), other_mode, None)
        self.convert_name(first, "a", SHARED, None)
        self.acquire(second, ("a",), mode, None)
        self.acquire(third, ("b",), other_mode, None)

    def upgrade_around(self, crowd: Crowd, waits: bool) -> None:
        """Lets a holder upgrade while one inside shares with it, or another waits."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(((first, SHARED), *crowd[1:]), "a")
        self.reconnect(third, False)
        self.acquire(third, ("a",), SHARED, None)
        if waits:
            self.convert_name(first, "a", EXCLUSIVE, None)
        self.acquire(second, ("a",), mode, None)
        self.convert_name(first, "a", EXCLUSIVE, None)
        self.convert_name(second, "a", other_mode, None)
        self.release_names(third, ("a",))

    def snare_inside(self, crowd: Crowd, joins: bool) -> None:
        """Lets one inside hold what others then wait for, while it waits for them."""
        (first, mode), (second, _), (third, other_mode) = crowd
        self.family(crowd, "a")
        self.reconnect(third, False)
        self.acquire(third, ("b",), EXCLUSIVE, None)
        if joins:
            self.join(second, first)
        self.acquire(third, ("a",), other_mode, None)
        self.acquire(second, ("b",), mode, None)
        self.acquire(second, ("a",), mode, None)

    def deeper(self, crowd: Crowd) -> None:
        """Lets one deeper inside ask after one that waits for what is around it."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(((first, EXCLUSIVE), *crowd[1:]), "a")
        self.acquire(second, ("a",), mode, None)
        self.reconnect(third, False)
        self.enter_grants(third, tuple(self.tokens()))
        self.acquire(third, ("a",), other_mode, None)
        self.strands[second] = 7
        self.acquire(second, ("a",), mode, None)
        self.strands[third] = 8
        self.acquire(third, ("a",), other_mode, None)

    def passer_by_of_two(self, crowd: Crowd) -> None:
        """Lets one ask for two locks, of which one inside waits for the first."""
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(((first, EXCLUSIVE), *crowd[1:]), "a")
        self.acquire(first, ("c",), EXCLUSIVE, None)
        self.reconnect(second, False)
        self.enter_grants(second, tuple(self.tokens()))
        self.acquire(first, ("b",), EXCLUSIVE, None)
        self.acquire(second, ("a", "b"), mode, None)
        self.acquire(second, ("c",), mode, None)
        self.strands[second] = 7
        self.acquire(second, ("a", "c"), mode, None)
        self.reconnect(third, False)
        self.acquire(third, ("a", "b"), other_mode, None)
        self.release_names(first, ("a",))
        self.release_names(first, ("b",))

    def process_inside(self, crowd: Crowd, waits: bool) -> None:
        """Lets one session of a process get inside, while another waits.

        It waits for who waits for what is around it.
        """
        (first, _), (second, mode), (third, other_mode) = crowd
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, slot != first)
        self.strands[first] = 1
        self.acquire(first, ("a",), EXCLUSIVE, None)
        self.enter_grants(second, tuple(self.tokens()))
        self.strands[first] = 2
        self.acquire(first, ("b",), EXCLUSIVE, None)
        self.acquire(first, ("a",), mode, None)
        self.acquire(third, ("b",), other_mode, None)
        if waits:
            self.strands[second] = 3
            self.acquire(second, ("a",), mode, None)
            self.strands[second] = 0
        self.acquire(second, ("a",), mode, None)

    def sharers_inside(self, crowd: Crowd) -> None:
        """Lets two that would share take turns inside, each with what the other wants.

        A third one, of the same session as one of them, has the first turn.
        """
        (first, _), (second, mode), (third, other_mode) = crowd
        self.family(((first, EXCLUSIVE), *crowd[1:]), "a")
        self.acquire(third, ("b",), EXCLUSIVE, None)
        self.strands[second] = 5
        self.acquire(second, ("a",), mode, None)
        self.acquire(second, ("a",), SHARED, None)
        self.strands[second] = 6
        self.acquire(second, ("a",), SHARED, None)
        self.acquire(second, ("b",), other_mode, None)
        self.acquire(third, ("a",), SHARED, None)

    def snare_of_a_child(self, crowd: Crowd) -> None:
        """The snare again, but a program inside the lock waits for the other one."""
        (first, _), (second, _), (child, mode) = crowd
        self.process_ends(dead=True)
        for slot in SLOTS:
            self.reconnect(slot, False)
        self.strands[first] = 1
        self.acquire(first, ("b",), EXCLUSIVE, None)
        self.strands[first] = 0
        self.acquire(second, ("c",), EXCLUSIVE, None)
        self.acquire(first, ("a",), SHARED, None)
        (key,) = self.keys("a")
        self.enter_grants(
            child, tuple(x.fencing_token for x in self.engine.holders(key))
        )
        self.acquire(child, ("c",), mode, None)
        self.acquire(second, ("a", "b"), SHARED, None)
        self.convert_name(first, "a", EXCLUSIVE, None)

    def convert_all(self, mode: Mode) -> None:
        for slot in SLOTS:
            self.convert(slot, slot, mode, None)

    def process_lives(self) -> bool:
        gone = self.process in self.witness.ended_owners
        return self.process in self.engine.owners and not gone

    def dump_and_load(self) -> None:
        dumped = json.dumps(dump(self.engine))
        self.engine = snapshot.load(json.loads(dumped)).engine
        assert json.dumps(dump(self.engine)) == dumped
        check(self.engine)
        if self.engine.waiting:
            self.happened.add("loaded while somebody waited")
        self.ledger.begin(self.engine)

    def crash(self) -> None:
        """Goes on from nothing but the records, as after a kill."""
        loaded = self.ledger.recover()
        assert loaded == Loaded(loaded.engine, [], [], [])
        self.engine = loaded.engine
        check(self.engine)
        # Its marks begin where those of the one before ended.
        records.follow(self.engine)
        if self.engine.waiting:
            self.happened.add("went on from the records while somebody waited")

    def lose(self, share: int, again: int) -> None:
        """Looks at what comes of it if records are lost; nothing of it counts."""
        self.happened.add(self.ledger.damage(share, again))

    def teardown(self) -> None:
        for what in sorted(self.happened):
            event(what)
        self.tally.update(self.happened)
        self.tally["runs"] += 1


class ModelMachine(Machine):
    """In memory the engine does what the naive model does, answer by answer."""

    tally: ClassVar[Counter[str]] = Counter()
    lockspace = "m"

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.breaks = False

    @initialize(
        acting=st.sampled_from([(), (), (0,), (0, 1)]), limit=st.sampled_from(LIMITS)
    )
    def open(
        self, acting: tuple[int, ...], limit: tuple[float | None, OnOverdue]
    ) -> None:
        self.model.max_hold, self.breaks = limit[0], limit[1] == "break"
        self.handle(c.AddLockspace("m", False, "release", *limit))
        for slot in SLOTS:
            self.enter(slot, slot in acting)

    @rule(step=memory_steps)
    def step(self, step: Step) -> None:
        verb, *words = step
        getattr(self, verb)(*words)
        self.compare_state()

    def enter(self, slot: int, acts_for_process: bool) -> None:
        super().enter(slot, acts_for_process)
        session = self.sessions[slot]
        self.model.owner_of[session] = self.process if acts_for_process else session

    def agree(self, command: c.Command, verdict: str | None = None) -> None:
        """Carries a command out, and compares the answers with the model's."""
        if verdict is not None:
            assert isinstance(
                command,
                c.Acquire
                | c.Convert
                | c.Release
                | c.ReleaseForOwner
                | c.Cancel
                | c.BreakGrant,
            )
            self.model.answer(command.session, command.request, verdict)
        self.model.now = self.now
        self.model.settle()
        self.model.tell()
        self.compare_answers(self.handle(command))

    def compare_answers(self, effects: list[e.Effect]) -> None:
        expected, self.model.answers = self.model.answers, {}
        said = {
            (effect.session, effect.request): _verdict(effect)
            for effect in effects
            if isinstance(effect, e.Granted | e.Refused | e.Completed)
        }
        assert said == expected
        heard, self.model.heard = self.model.heard, []
        notices = [x for x in effects if isinstance(x, Noticed)]
        told = [
            (_name(x), x.session, who_holds(x.grant), x.grant.key.resource)
            for x in notices
        ]
        assert sorted(told, key=str) == sorted(heard, key=str)

    def compare_state(self) -> None:
        holds = [
            (*(h.name, h.who, h.mode, h.count), h.slot or 0, len(h.around))
            for h in self.model.holds
        ]
        found = [
            (*(key.resource, who_holds(x), x.mode, x.count), x.slot or 0, len(x.inside))
            for key, resource in self.engine.resources.items()
            for x in resource.holders.values()
        ]
        assert sorted(found) == sorted(holds)
        for key in self.keys("a", "b", "c"):
            situation = self.engine.situation(key)
            line, name = situation.waiters, key.resource
            if situation.slots or name not in self.model.configured:
                assert situation.slots == self.model.slots(name)
            turns = self.model.line(name)
            assert [(w.session, w.strand, w.mode, w.converting) for w in line] == [
                (ask.session, ask.who[2], ask.mode, ask.converts) for ask in turns
            ]
        deadlines = self.model.deadlines()
        assert self.engine.next_deadline() == min(deadlines, default=None)
        listening = [(h.overdue, h.wanted, *h.who) for h in self.model.holds]
        known = [
            (x.is_overdue, bool(x.notices and x.notices.wanted), *who_holds(x))
            for x in self.engine.grants()
        ]
        assert sorted(known) == sorted(listening)

    def ask(
        self,
        slot: int,
        names: tuple[str, ...],
        mode: Mode,
        timeout: float | None,
        converts: bool = False,
        slots: int | None = None,
    ) -> Ask:
        session = self.sessions[slot]
        deadline = self.now + timeout if timeout else None
        if converts and mode == SHARED:
            deadline = None
        number, who = next(self.numbers), self.who(slot)
        wishes = (None, False) if converts else WISHES[number % len(WISHES)]
        return Ask(
            *(session, number, who, names, mode, deadline, converts, *wishes), slots
        )

    def who(self, slot: int) -> Who:
        session, strand = self.sessions[slot], self.strands[slot]
        return self.model.owner_of[session], session if strand else 0, strand

    def slot_of(self, hold: Hold) -> int | None:
        """Returns who may act for a hold: its own strand, or another of its owner."""
        own = [s for s in SLOTS if self.who(s) == hold.who]
        acting = own + [s for s in SLOTS if self.who(s)[0] == hold.owner]
        return acting[0] if acting else None

    def token_of(self, who: Who, name: str) -> int:
        """Returns the token of a hold; 0 if there is none."""
        (key,) = self.keys(name)
        held = (x for x in self.engine.holders(key) if who_holds(x) == who)
        return next((x.fencing_token for x in held), 0)

    # The steps.

    def acquire(
        self,
        slot: int,
        names: tuple[str, ...],
        mode: Mode,
        timeout: float | None,
        most: int | None = None,
        slots: int | None = None,
    ) -> None:
        ask = self.ask(slot, names, mode, timeout, slots=slots)
        keys = self.keys(*names)
        command = c.Acquire(
            *(ask.session, ask.number, keys, mode, timeout, *SAID[slot], most),
            strand=ask.who[2],
            max_hold=ask.max_hold,
            wanted=ask.wanted,
            slots=slots,
        )
        self.agree(command, self.model.acquire(ask, timeout == 0, most))

    def whose(self, pick: int) -> tuple[int | None, str]:
        hold = _pick(self.model.holds, pick)
        return (self.slot_of(hold), hold.name) if hold else (None, "a")

    def convert_name(
        self, slot: int, name: str, mode: Mode, timeout: float | None
    ) -> None:
        ask = self.ask(slot, (name,), mode, timeout, converts=True)
        (key,) = self.keys(name)
        command = c.Convert(ask.session, ask.number, key, mode, timeout)
        if ask.who[2]:
            token = self.token_of(ask.who, name)
            command = command.replace(key=None, fencing_token=token)
        self.agree(command, self.model.convert(ask, timeout == 0))

    def release_names(self, slot: int, names: tuple[str, ...]) -> None:
        self.release_of(slot, self.who(slot), names)

    def release_of(
        self,
        slot: int,
        who: Who,
        names: tuple[str, ...],
        outcome: WorkOutcome = None,
    ) -> None:
        """Releases by name what the whole owner holds, all else by token."""
        session = self.sessions[slot]
        if not who[2]:
            keys, number = self.keys(*names), next(self.numbers)
            command = c.Release(session, number, keys, None, outcome)
            self.agree(command, self.model.release(who, names))
            return
        for name in names:
            number, token = next(self.numbers), self.token_of(who, name)
            command = c.Release(session, number, (), token, outcome)
            self.agree(command, self.model.release(who, (name,)))

    def release(self, pick: int, outcome: WorkOutcome) -> None:
        hold = _pick(self.model.holds, pick)
        if hold and (slot := self.slot_of(hold)) is not None:
            self.release_of(slot, hold.who, (hold.name,), outcome)

    def release_for_owner(self, slot: int, pick: int) -> None:
        if hold := _pick(self.model.holds, pick):
            session, number = self.sessions[slot], next(self.numbers)
            token = self.token_of(hold.who, hold.name)
            command = c.ReleaseForOwner(session, number, token)
            self.agree(command, self.model.release_for(hold))

    def cancel(self, pick: int) -> None:
        if ask := _pick(self.model.asks, pick):
            self.model.give_up([ask], "cancelled")
            command = c.Cancel(ask.session, next(self.numbers), ask.number)
            self.agree(command, "completed")

    def enter_grants(self, slot: int, tokens: tuple[int, ...]) -> None:
        session = self.sessions[slot]
        for hold in self.model.holds:
            if self.token_of(hold.who, hold.name) in tokens:
                hold.insiders.add(session)
        self.agree(c.EnterGrants(session, tokens))

    def close_session(self, session: int) -> None:
        for hold in self.model.holds:
            hold.insiders.discard(session)
        who = self.model.owner_of.pop(session)
        self.model.asks = [a for a in self.model.asks if a.session != session]
        if who == session:
            self.model.drop(who)
        self.agree(c.CloseSession(session))

    def break_grant(self, pick: int) -> None:
        if hold := _pick(self.model.holds, pick):
            token = self.token_of(hold.who, hold.name)
            self.model.end(hold)
            number = next(self.numbers)
            self.agree(c.BreakGrant(self.sessions[0], number, token, "x"), "completed")

    def process_ends(self, dead: bool) -> None:
        if self.process_lives():
            if dead:
                self.model.dead.add(self.process)
            asks = [ask for ask in self.model.asks if ask.owner == self.process]
            self.model.give_up(asks, "not_found" if dead else "cancelled")
            self.model.drop(self.process)
            end = c.EndOwner if dead else c.DisconnectOwner
            self.agree(end(self.process))

    def configure(self, name: str, slots: int | None) -> None:
        """Changes how many slots are configured; who can no longer get one is told."""
        patterns = () if slots is None else ((name, slots),)
        effects = self.handle(replace(self.engine.lockspaces["m"], slots=patterns))
        names = ("a", "b", "c") if name == "*" else (name,)
        self.model.configure(names, slots)
        stuck = self.model.play_on()
        refused = [x for x in effects if isinstance(x, e.Refused)]
        assert not stuck or refused, "somebody waits for ever"
        for effect in refused:
            told = effect.session, effect.request
            ask = next(x for x in stuck if (x.session, x.number) == told)
            assert (effect.code, ask.mode) == ("deadlock", SLOT)
            self.model.give_up([ask], "deadlock")
        assert not self.model.circle()
        self.model.now = self.now
        self.model.settle()
        self.model.tell()
        self.compare_answers(effects)
        self.happened.add("slots were configured")

    def time_passes(self, pause: float) -> None:
        self.now += pause
        late = [a for a in self.model.asks if (a.deadline or self.now + 1) <= self.now]
        self.model.give_up(late, "timeout")
        self.model.now = self.now
        overdue = self.model.tell_overdue()
        self.agree(c.Tick())
        for hold in overdue if self.breaks else ():
            token = self.token_of(hold.who, hold.name)
            self.model.end(hold)
            self.agree(c.BreakGrant(0, 0, token, "overdue"), "completed")


class AnchorMachine(Machine):
    """With anchors there is no model, but nothing unsafe is ever seen from outside."""

    tally: ClassVar[Counter[str]] = Counter()
    lockspace = "f"

    def __init__(self) -> None:
        super().__init__()
        self.prompt = True
        self.outside = "nothing"
        self.killed = "nobody"
        #: The tokens of the overdue grants that were broken.
        self.broken: set[int] = set()

    @initialize(
        prompt=st.booleans(),
        killed=st.sampled_from(["nobody", "owners", "all"]),
        acting=st.sampled_from([(), (), (0,), (0, 1)]),
        limit=st.sampled_from(LIMITS),
    )
    def open(
        self,
        prompt: bool,
        killed: str,
        acting: tuple[int, ...],
        limit: tuple[float | None, OnOverdue],
    ) -> None:
        self.prompt, self.killed = prompt, killed
        on_disconnect: OnDisconnect = "kill" if killed == "all" else "release"
        self.handle(c.AddLockspace("f", True, on_disconnect, *limit))
        for slot in SLOTS:
            self.enter(slot, slot in acting)

    @rule(step=anchor_steps)
    def step(self, step: Step) -> None:
        verb, *words = step
        getattr(self, verb)(*words)

    def dump_and_load(self) -> None:
        super().dump_and_load()
        opening, doomed = set(self.witness.opening), set(self.witness.fenced)
        self.handle(c.Resume())
        # Those that were answered while others of the same request were not, too.
        assert opening <= set(self.witness.opening), "an anchor is not asked for again"
        waited_for = {x for x in doomed if x in self.engine.owners}
        holding = {x for x in waited_for if self.engine.owners[x].grants}
        assert self.witness.fenced >= holding, "a death is not waited for any more"
        if opening:
            self.happened.add("resumed while anchors were opened")

    def enter(self, slot: int, acts_for_process: bool) -> None:
        super().enter(slot, acts_for_process)
        if self.killed == "owners" and not acts_for_process:
            self.register(slot, self.sessions[slot], "kill")

    def do(self, command: c.Command) -> None:
        """Carries a command out, and the anchors' answers too if they come at once."""
        self.handle(command)
        while self.prompt and self.witness.opening:
            self.answer(next(iter(self.witness.opening)), self.outside)
        if not self.witness.opening:
            self.witness.check_closed()

    def answer(self, key: ResourceKey, outside: str) -> None:
        if outside == "nothing":
            self.handle(c.AnchorOpened(key))
        else:
            self.happened.add(f"anchor {outside}")
            self.handle(c.AnchorRefused(key, outside))

    def held(self) -> list[e.Grant]:
        return [g for held in self.witness.holders.values() for g in held.values()]

    def slot_of(self, grant: e.Grant) -> int | None:
        session = grant.session
        return self.sessions.index(session) if session in self.sessions else None

    # The steps.

    def acquire(
        self,
        slot: int,
        names: tuple[str, ...],
        mode: Mode,
        timeout: float | None,
        most: int | None = None,
        slots: int | None = None,
    ) -> None:
        number = next(self.numbers)
        max_hold, wanted = WISHES[number % len(WISHES)]
        keys = self.keys(*names)
        command = c.Acquire(
            *(self.sessions[slot], number, keys, mode, timeout, *SAID[slot], most),
            strand=self.strands[slot],
            max_hold=max_hold,
            wanted=wanted,
        )
        self.do(command)

    def whose(self, pick: int) -> tuple[int | None, str]:
        grant = _pick(self.held(), pick)
        return (self.slot_of(grant), grant.key.resource) if grant else (None, "a")

    def convert_name(
        self, slot: int, name: str, mode: Mode, timeout: float | None
    ) -> None:
        (key,) = self.keys(name)
        number = next(self.numbers)
        command = c.Convert(self.sessions[slot], number, key, mode, timeout)
        if self.strands[slot]:
            mine = [x for x in self.engine.holders(key) if self.is_of(slot, x)]
            token = mine[0].fencing_token if mine else 0
            command = command.replace(key=None, fencing_token=token)
        self.do(command)

    def is_of(self, slot: int, grant: e.Grant) -> bool:
        strand = self.sessions[slot], self.strands[slot]
        return (grant.session, grant.strand) == strand

    def release_names(self, slot: int, names: tuple[str, ...]) -> None:
        session = self.sessions[slot]
        self.do(c.Release(session, next(self.numbers), self.keys(*names)))
        if self.strands[slot]:
            for grant in filter(lambda x: self.is_of(slot, x), self.held()):
                if grant.key.resource in names:
                    number, token = next(self.numbers), grant.fencing_token
                    self.do(c.Release(session, number, fencing_token=token))

    def release(self, pick: int, outcome: WorkOutcome) -> None:
        grant = _pick(self.held(), pick)
        if grant and (slot := self.slot_of(grant)) is not None:
            number, token = next(self.numbers), grant.fencing_token
            self.do(c.Release(self.sessions[slot], number, (), token, outcome))

    def release_for_owner(self, slot: int, pick: int) -> None:
        if grant := _pick(self.held(), pick):
            session, number = self.sessions[slot], next(self.numbers)
            self.do(c.ReleaseForOwner(session, number, grant.fencing_token))

    def cancel(self, pick: int) -> None:
        if asked := _pick(list(self.witness.unanswered), pick):
            session, number = asked
            self.do(c.Cancel(session, next(self.numbers), number))

    def enter_grants(self, slot: int, tokens: tuple[int, ...]) -> None:
        self.do(c.EnterGrants(self.sessions[slot], tokens))

    def close_session(self, session: int) -> None:
        self.do(c.CloseSession(session))

    def break_grant(self, pick: int) -> None:
        if grant := _pick(self.held(), pick):
            number, token = next(self.numbers), grant.fencing_token
            self.do(c.BreakGrant(self.sessions[0], number, token, "x"))

    def process_ends(self, dead: bool) -> None:
        if self.process_lives():
            end = c.EndOwner if dead else c.DisconnectOwner
            self.do(end(self.process))

    def fenced_process_dies(self) -> None:
        if doomed := self.witness.fenced - self.witness.dead:
            self.do(c.OwnerFenced(min(doomed)))

    def anchor_answers(self, pick: int, outside: str) -> None:
        if key := _pick(list(self.witness.opening), pick):
            self.answer(key, outside)

    def anchor_is_slow(self, pick: int) -> None:
        if key := _pick(list(self.witness.opening), pick):
            self.handle(c.AnchorDelayed(key))

    def anchors_answer(self) -> None:
        while self.witness.opening:
            self.answer(next(iter(self.witness.opening)), "nothing")
        self.witness.check_closed()

    def locked_out(self, crowd: Crowd) -> None:
        """Lets a line form behind one whose file is locked from outside for a while."""
        self.clear()
        before, (self.prompt, self.outside) = (
            (self.prompt, self.outside),
            (True, "busy"),
        )
        for slot, mode in crowd:
            self.acquire(slot, ("a",), mode, None)
        self.time_passes(1.0)
        self.outside = "nothing"
        self.time_passes(1.0)
        self.prompt, self.outside = before

    def change_outside(self, outside: str) -> None:
        self.outside = outside

    def time_passes(self, pause: float) -> None:
        self.now += pause
        self.do(c.Tick())
        for token in sorted(self.witness.to_break - self.broken):
            self.broken.add(token)
            if self.engine.grant_of(token) is not None:
                self.do(c.BreakGrant(0, 0, token, "overdue"))
        due = self.engine.next_deadline()
        assert due is None or due > self.now


def _pick(things: Sequence[T], pick: int) -> T | None:
    return things[pick % len(things)] if things else None


Noticed = e.Overdue | e.Wanted | e.Unwanted


def _name(effect: Noticed) -> str:
    return type(effect).__name__.lower()


def _verdict(effect: e.Granted | e.Refused | e.Completed) -> str:
    if isinstance(effect, e.Refused):
        return effect.code
    return type(effect).__name__.lower()


def _story(command: c.Command, effects: list[e.Effect]) -> set[str]:
    """Names what happened, for the floors under the random tests."""
    story = set()
    for effect in effects:
        match effect:
            case e.Refused(nested=True, code=code):
                story.add(f"{code} inside")
            case e.Refused(max_waiting=int()):
                story.add("too many waited")
            case e.Refused(mismatch=e.Mismatch()):
                story.add("other slots")
            case e.Refused(code="deadlock") if isinstance(command, c.AddLockspace):
                story.add("deadlock for want of slots")
            case e.Refused(code=code):
                story.add(code)
            case e.Ended(cause=cause):
                story.add(cause)
            case e.Granted(converted=True):
                at_once = isinstance(command, c.Convert | c.AnchorOpened)
                story.add("converted" if at_once else "converted a waiter")
            case e.Granted(grants=grants):
                if grants[0].slot is not None:
                    story.add("granted a slot")
                if grants[0].slot:
                    story.add("granted a slot beside another")
                if effect.previous:
                    story.add(f"granted after trouble: {effect.previous[0].cause}")
                story.add("granted several" if len(grants) > 1 else "granted")
                if grants[0].inside and grants[0].slot is not None:
                    story.add("granted inside a slot")
                if grants[0].inside:
                    waited = not isinstance(command, c.Acquire)
                    story.add("granted inside" + " to a waiter" * waited)
                if not isinstance(command, c.Acquire | c.AnchorOpened):
                    story.add("granted to a waiter")
                if grants[0].count > 1:
                    story.add("counted")
            case e.Completed() if isinstance(command, c.ReleaseForOwner):
                story.add("released for its owner")
            case _:
                story.add(type(effect).__name__)
    return story


Run = Callable[[type[Machine]], None]


@pytest.fixture
def run(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(lock_state, "MAX_LAST_HOLDERS", FEW_LAST_HOLDERS)
    # Else one draw in twenty is a constant of any module that was imported, so that
    # each change of the source, and each test before this one, changes all runs.
    monkeypatch.setattr(
        HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None
    )
    phases = [Phase.explicit, Phase.generate]
    if not pytestconfig.getoption("--no-shrink", default=False):
        phases.append(Phase.shrink)

    def run(machine: type[Machine]) -> None:
        machine.tally.clear()
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=200,
                stateful_step_count=50,
                derandomize=True,
                database=None,
                deadline=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )

    return run


def rare(machine: type[Machine], *what: str, floor: float) -> dict[str, str]:
    """Returns what happened in too small a share of the runs to be tested by them."""
    tally, runs = machine.tally, machine.tally["runs"]
    return {
        story: f"in {tally[story]} of {runs} runs"
        for story in what
        if tally[story] < floor * runs
    }


TROUBLE = tuple(
    f"granted after trouble: {cause}"
    for cause in ("released", "disconnected", "owner_died", "broken")
)
"""How the last hold ended, of which the next holder hears."""

INSIDE = (
    "granted inside",
    "granted inside to a waiter",
    "held inside what is over",
    "already_held inside",
    "in_use inside",
)

DAMAGE = (
    "went on from the records while somebody waited",
    "loaded without some records",
    "loaded old records",
)


@pytest.mark.slow
def test_engine_agrees_with_the_naive_model(run: Run) -> None:
    run(ModelMachine)
    assert rare(ModelMachine, "granted to a waiter", "deadlock", floor=0.4) == {}
    assert rare(ModelMachine, "granted several", "cancelled", floor=0.2) == {}
    assert rare(ModelMachine, "acted as a strand", floor=0.4) == {}
    assert rare(ModelMachine, "was inside a grant", floor=0.4) == {}
    assert rare(ModelMachine, *INSIDE, floor=0.05) == {}
    assert rare(ModelMachine, "loaded while somebody waited", floor=0.2) == {}
    assert rare(ModelMachine, "timeout", "converted a waiter", floor=0.02) == {}
    assert rare(ModelMachine, "too many waited", "denied", floor=0.2) == {}
    assert rare(ModelMachine, "Overdue", "Wanted", "Unwanted", floor=0.4) == {}
    assert rare(ModelMachine, "BreakOverdue", floor=0.05) == {}
    assert rare(ModelMachine, "released for its owner", floor=0.05) == {}
    assert rare(ModelMachine, *TROUBLE, floor=0.02) == {}
    assert rare(ModelMachine, *DAMAGE, floor=0.1) == {}
    assert rare(ModelMachine, "granted a slot", "other slots", floor=0.4) == {}
    assert rare(ModelMachine, "granted a slot beside another", floor=0.3) == {}
    assert rare(ModelMachine, "slots were configured", floor=0.3) == {}
    assert rare(ModelMachine, "granted inside a slot", floor=0.1) == {}
    assert rare(ModelMachine, "deadlock for want of slots", floor=0.05) == {}


@pytest.mark.slow
def test_nothing_unsafe_is_seen_through_anchors(run: Run) -> None:
    run(AnchorMachine)
    assert rare(AnchorMachine, "Queued", "CloseAnchor", "deadlock", floor=0.4) == {}
    assert rare(AnchorMachine, "Fence", "granted several", floor=0.1) == {}
    assert rare(AnchorMachine, "acted as a strand", floor=0.4) == {}
    assert rare(AnchorMachine, "was inside a grant", floor=0.4) == {}
    assert rare(AnchorMachine, *INSIDE, floor=0.02) == {}
    assert rare(AnchorMachine, "anchor busy", "anchor io", floor=0.1) == {}
    assert rare(AnchorMachine, "owner_died", "timeout", floor=0.03) == {}
    assert rare(AnchorMachine, "too many waited", "denied", floor=0.1) == {}
    assert rare(AnchorMachine, "Overdue", "Wanted", "Unwanted", floor=0.4) == {}
    assert rare(AnchorMachine, "BreakOverdue", floor=0.05) == {}
    assert rare(AnchorMachine, "released for its owner", floor=0.05) == {}
    assert rare(AnchorMachine, *TROUBLE, floor=0.02) == {}
    assert rare(AnchorMachine, *DAMAGE, floor=0.1) == {}
