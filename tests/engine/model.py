"""The lock table in the plainest way: what the engine must agree with at every step.

Two lists, who holds and who asks, both in the order of their coming; who may go is
worked out from nothing after every change. Short, slow, and without anchors.
"""

from dataclasses import dataclass, field, replace

from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode

Who = tuple[int, int, int]
"""An owner, and of its strands one: the session it is of, and its number; 0 and 0 is
the owner as a whole."""


@dataclass
class Hold:
    name: str
    who: Who
    mode: Mode
    count: int = 1
    #: The sessions for whose end its holder waits.
    insiders: set[int] = field(default_factory=set)
    number: int = 0
    #: The numbers of the holds that it is inside of.
    around: frozenset[int] = frozenset()
    #: When it becomes overdue, whether it did, and who hears of that.
    due: float | None = None
    overdue: bool = False
    overdue_to: int | None = None
    #: Who hears whether somebody waits for it, and what it heard last.
    wanted_to: int | None = None
    wanted: bool = False
    slot: int | None = None

    @property
    def owner(self) -> int:
        return self.who[0]


@dataclass(eq=False)
class Ask:
    session: int
    number: int
    who: Who
    names: tuple[str, ...]
    mode: Mode
    deadline: float | None = None
    converts: bool = False
    max_hold: float | None = None
    wanted: bool = False
    slots: int | None = None
    #: Which slot it is inside of.
    slot: int | None = None
    #: By name, the numbers of the holds that it is inside of.
    around: dict[str, frozenset[int]] = field(default_factory=dict)

    @property
    def owner(self) -> int:
        return self.who[0]


Heard = tuple[str, int | None, Who, str]
"""What a holder hears: what it is, the session that hears it, and of which hold."""


def in_one_line(other: Ask, ask: Ask) -> bool:
    """Tells whether one waits for another that stands before it."""
    if ask.slot is not None:
        return other.slot == ask.slot
    # Those inside a slot take no other.
    return other.slot is None or ask.mode != SLOT


class Model:
    def __init__(self, max_hold: float | None = None) -> None:
        self.last_number = 0
        self.now = 0.0
        self.max_hold = max_hold
        self.heard: list[Heard] = []
        self.owner_of: dict[int, int] = {}
        self.dead: set[int] = set()
        self.holds: list[Hold] = []
        self.asks: list[Ask] = []
        self.answers: dict[tuple[int, int], str] = {}
        #: How many slots there are: as configured, and as somebody has said.
        self.configured: dict[str, int] = {}
        self.said: dict[str, int] = {}

    def slots(self, name: str) -> int | None:
        held = any((x.name, x.mode) == (name, SLOT) for x in self.holds)
        if held or any(x.mode == SLOT and name in x.names for x in self.asks):
            return self.configured.get(name, self.said.get(name))
        return self.configured.get(name)

    def free_slot(self, name: str) -> int | None:
        """Returns the lowest free slot. Those inside one get it before all others."""
        taken = {hold.slot for hold in self.holds if hold.name == name}
        taken |= {ask.slot for ask in self.asks if name in ask.names}
        free = set(range(self.slots(name) or 0)) - taken
        return min(free, default=None)

    def line(self, name: str) -> list[Ask]:
        """Those inside the latest hold first, then who converts, then all others."""

        def turn(ask: Ask) -> tuple[int, bool]:
            return -max(ask.around.get(name, ()), default=0), not ask.converts

        return sorted((ask for ask in self.asks if name in ask.names), key=turn)

    def blockers(self, ask: Ask) -> list[Who]:
        found = []
        for name in ask.names:
            line = self.line(name)
            if not (ask.converts and ask.mode == SHARED):
                before = line[: line.index(ask)]
                found += [other.who for other in before if in_one_line(other, ask)]
            found += [
                hold.who
                for hold in self.holds
                if hold.name == name
                and hold.who != ask.who
                and hold.number not in ask.around.get(name, ())
                and not self.goes_beside(hold, ask)
            ]
        return found

    def goes_beside(self, hold: Hold, ask: Ask) -> bool:
        if ask.slot is not None:
            return ask.slot != hold.slot
        if ask.mode == hold.mode == SLOT:
            return self.free_slot(hold.name) is not None
        return ask.mode == hold.mode == SHARED

    def circle(self) -> bool:
        """Tells whether somebody waits for ever, though all release what they can."""
        return bool(self.play_on())

    def play_on(self) -> list[Ask]:
        """Returns who waits for ever, though all release what they can."""
        rest = Model()
        rest.configured, rest.said = self.configured, self.said
        rest.asks = list(self.asks)
        rest.holds = [replace(hold) for hold in self.holds]
        rest.last_number = self.last_number
        while True:
            rest.settle()
            waiting = {ask.who for ask in rest.asks}
            sessions = {ask.session for ask in rest.asks}
            waiting |= {hold.who for hold in rest.holds if hold.insiders & sessions}
            done = [hold for hold in rest.holds if hold.who not in waiting]
            if not done:
                return rest.asks
            for hold in done:
                rest.holds.remove(hold)

    def held(self, who: Who, name: str) -> Hold | None:
        mine = [h for h in self.holds if (h.who, h.name) == (who, name)]
        return mine[0] if mine else None

    def mine(self, who: Who, *names: str) -> list[Ask]:
        return [a for a in self.asks if a.who == who and {*a.names} & {*names}]

    def answer(self, session: int, number: int, verdict: str) -> None:
        self.answers[session, number] = verdict
        asks = (a for a in self.asks if (a.session, a.number) != (session, number))
        self.asks = list(asks)

    def settle(self) -> None:
        while ready := [ask for ask in self.asks if not self.blockers(ask)]:
            ask = ready[0]
            slot = ask.slot
            if ask.mode == SLOT and slot is None:
                slot = self.free_slot(ask.names[0])
            self.answer(ask.session, ask.number, "granted")
            for name in ask.names:
                hold = self.held(ask.who, name)
                if hold is None:
                    hold = self.hold(name, ask, slot)
                elif ask.converts:
                    hold.mode = ask.mode
                    self.give_up(self.uncovered(hold), "already_held")
                else:
                    hold.count += 1
                if not ask.converts:
                    self.listen(hold, ask)

    # What holders hear.

    def listen(self, hold: Hold, ask: Ask) -> None:
        """Notes what a new holder asked to hear; the first that asked hears it."""
        limits = [x for x in (self.max_hold, ask.max_hold) if x is not None]
        ends = [self.now + x for x in limits] + ([] if hold.due is None else [hold.due])
        hold.due = min(ends, default=None)
        if ask.max_hold is not None and hold.overdue_to not in self.owner_of:
            hold.overdue_to = ask.session
        if ask.wanted and hold.wanted_to not in self.owner_of:
            hold.wanted_to, hold.wanted = ask.session, False

    def tell(self) -> None:
        """Tells each holder that listens if somebody waits for it, or no more."""
        for hold in self.holds:
            wanted = hold.wanted_to is not None and any(
                hold.name in ask.names
                and hold.who != ask.who
                and hold.number not in ask.around.get(hold.name, ())
                and ask.slot in (None, hold.slot)
                and not hold.mode == ask.mode == SHARED
                for ask in self.asks
            )
            if wanted != hold.wanted:
                hold.wanted = wanted
                if hold.wanted_to in self.owner_of:
                    what = "wanted" if wanted else "unwanted"
                    self.heard.append((what, hold.wanted_to, hold.who, hold.name))

    def tell_overdue(self) -> list[Hold]:
        """Tells once of each hold that is overdue. Returns these."""
        late = [hold for hold in self.holds if not hold.overdue]
        late = [hold for hold in late if (hold.due or self.now + 1) <= self.now]
        for hold in late:
            hold.overdue = True
            session = hold.overdue_to if hold.overdue_to in self.owner_of else None
            self.heard.append(("overdue", session, hold.who, hold.name))
        return late

    def deadlines(self) -> list[float]:
        """Returns when requests and holds are due."""
        due = [ask.deadline for ask in self.asks]
        due += [hold.due for hold in self.holds if not hold.overdue]
        return [when for when in due if when is not None]

    def hold(self, name: str, ask: Ask, slot: int | None) -> Hold:
        """Inside, it has the mode of what is around it."""
        others = [hold for hold in self.holds if hold.name == name]
        alive = {hold.number for hold in others}.union(*(x.around for x in others))
        around = ask.around.get(name, frozenset()) & alive
        mode = others[0].mode if around else ask.mode
        self.last_number += 1
        number = self.last_number
        hold = Hold(name, ask.who, mode, number=number, around=around, slot=slot)
        self.holds.append(hold)
        return hold

    def uncovered(self, hold: Hold) -> list[Ask]:
        """Returns those inside a hold that want more than it is."""
        return [
            ask
            for ask in self.asks
            if hold.number in ask.around.get(hold.name, ())
            and (hold.mode, ask.mode) == (SHARED, EXCLUSIVE)
        ]

    def around(self, session: int, name: str) -> frozenset[int]:
        """Returns what a session is inside of, and all that is around that."""
        mine = [
            hold
            for hold in self.holds
            if hold.name == name and session in hold.insiders
        ]
        # Of several slots, the youngest counts.
        mine = [hold for hold in mine if hold.slot == mine[-1].slot]
        return frozenset().union(*(hold.around | {hold.number} for hold in mine))

    def crowd(self, ask: Ask) -> int:
        """Returns how many wait for what is asked for; inside, of those inside."""
        waiting = [x for x in self.asks if x.around or not ask.around]
        waiting = [x for x in waiting if ask.slot in (None, x.slot)]
        return max(sum(name in x.names for x in waiting) for name in ask.names)

    def offer(self, ask: Ask, tries: bool, most: int | None = None) -> str | None:
        tries = tries or (most is not None and self.crowd(ask) >= most)
        self.asks.append(ask)
        if tries and self.blockers(ask):
            return "busy"
        return "deadlock" if self.circle() else None

    def acquire(self, ask: Ask, tries: bool, most: int | None = None) -> str | None:
        held = [h for name in ask.names if (h := self.held(ask.who, name))]
        if ask.owner in self.dead:
            return "not_found"
        if ask.mode == SLOT and not self.agrees(ask):
            return "invalid"
        if held:
            shares = held[0].mode == SHARED or held[0].around
            again = ask.mode == SHARED and shares and len(ask.names) == 1
            if not again or any(a.converts for a in self.mine(ask.who, *ask.names)):
                return "already_held"
        elif verdict := self.enter(ask):
            return verdict
        elif any(
            not a.mode == ask.mode == SHARED for a in self.mine(ask.who, *ask.names)
        ):
            return "already_held"
        if held:
            held[0].count += 1
            self.listen(held[0], ask)
            return "granted"
        return self.offer(ask, tries, most)

    def agrees(self, ask: Ask) -> bool:
        """Tells whether somebody wants as many slots as there are, or says so first."""
        (name,) = ask.names
        known = self.slots(name)
        if known is None and ask.slots is not None:
            self.said[name] = known = ask.slots
        return known is not None and ask.slots in (None, known)

    def configure(self, names: tuple[str, ...], slots: int | None) -> None:
        """Changes how many slots are configured. What was configured stays said."""
        self.said |= self.configured
        self.configured = {} if slots is None else dict.fromkeys(names, slots)

    def enter(self, ask: Ask) -> str | None:
        """Finds what an ask is inside of; tells why it may not be."""
        around = {name: self.around(ask.session, name) for name in ask.names}
        if not any(around.values()):
            return None
        if not all(around.values()):
            return "invalid"
        ask.around = around
        held = {hold.mode for hold in self.holds if hold.name in ask.names}
        if ask.mode == SLOT == max(held):
            mine = ask.around[ask.names[0]]
            (ask.slot,) = {x.slot for x in self.holds if x.number in mine}
        elif SLOT in {*held, ask.mode}:
            return "already_held"
        return "already_held" if ask.mode == EXCLUSIVE and SHARED in held else None

    def convert(self, ask: Ask, tries: bool) -> str | None:
        hold = self.held(ask.who, ask.names[0])
        if ask.owner in self.dead:
            return "not_found"
        if hold is None:
            return "not_held"
        if SLOT in (hold.mode, ask.mode):
            return "invalid"
        if hold.count > 1:
            return "in_use"
        if self.mine(ask.who, *ask.names):
            return "already_held"
        if hold.mode == ask.mode:
            return "granted"
        if hold.around & {other.number for other in self.holds}:
            return "granted" if ask.mode == SHARED else "already_held"
        if any(hold.number in other.around for other in self.holds):
            return "in_use"
        return self.offer(ask, tries)

    def release(self, who: Who, names: tuple[str, ...]) -> str:
        holds = [self.held(who, name) for name in names]
        for hold in filter(None, holds):
            hold.count -= 1
            if hold.count == 0:
                self.end(hold)
        return "completed" if all(holds) else "not_held"

    def release_for(self, hold: Hold) -> str:
        """Releases a hold for which no session acts, in the place of its owner."""
        if hold.owner in self.owner_of.values():
            return "denied"
        return self.release(hold.who, (hold.name,))

    def end(self, hold: Hold) -> None:
        for ask in self.mine(hold.who, hold.name):
            if ask.converts:
                self.answer(ask.session, ask.number, "not_held")
        self.holds.remove(hold)

    def drop(self, owner: int) -> None:
        self.holds = [hold for hold in self.holds if hold.owner != owner]

    def give_up(self, asks: list[Ask], verdict: str) -> None:
        for ask in asks:
            self.answer(ask.session, ask.number, verdict)
