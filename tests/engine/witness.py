"""Believes nothing but commands and effects, and asserts what must never be seen.

It never looks into the engine: what it knows, a client and the file system know, too.
"""

from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, ResourceKey, WorkOutcome

Asked = (
    c.RegisterOwner
    | c.Acquire
    | c.Convert
    | c.Release
    | c.ReleaseForOwner
    | c.Cancel
    | c.BreakGrant
)


Who = tuple[int, int, int]
"""An owner, and its strand: the session it is of, and its number; or 0 and 0."""


def who_holds(grant: e.Grant) -> Who:
    return grant.owner_id, grant.session if grant.strand else 0, grant.strand


class Witness:
    def __init__(self, last_holders: int = 1024) -> None:
        self.lockspaces: dict[str, c.AddLockspace] = {}
        self.sessions: set[int] = set()
        #: For which owner each session acts.
        self.acts_for: dict[int, int] = {}
        self.unanswered: dict[tuple[int, int], tuple[Asked, float]] = {}
        self.queued: set[tuple[int, int]] = set()
        #: Those before which as many waited as they allow.
        self.crowded_out: set[tuple[int, int]] = set()
        self.holders: dict[ResourceKey, dict[Who, e.Grant]] = {}
        self.anchors: dict[ResourceKey, Mode] = {}
        self.opening: dict[ResourceKey, Mode] = {}
        #: By token: when a grant becomes overdue, who hears of that, who hears whether
        #: somebody waits for it.
        self.due: dict[int, float] = {}
        self.overdue_to: dict[int, int] = {}
        self.wanted_to: dict[int, int] = {}
        #: The tokens of which it was told that they are overdue, or wanted.
        self.overdue: set[int] = set()
        self.wanted: set[int] = set()
        self.to_break: set[int] = set()
        self.killed_on_disconnect: set[int] = set()
        self.fenced: set[int] = set()
        self.ended_owners: set[int] = set()
        self.dead: set[int] = set()
        #: The tokens that a session named, and those that each grant is inside of.
        self.within: dict[int, set[int]] = {}
        self.around: dict[int, tuple[int, ...]] = {}
        self.last_token = 0
        #: The slot that each request for one is inside of.
        self.inside: dict[tuple[int, int], int] = {}
        #: How many slots there were, and who said so, by the token of who got one.
        self.said: dict[int, tuple[int, c.Owner | None]] = {}
        self.last_holders: OrderedDict[ResourceKey, e.LastHolder] = OrderedDict()
        self.last_holders_limit = last_holders
        self.now = 0.0
        #: How the work ended that was done under a lock, as this command says.
        self.outcome: WorkOutcome = None

    def follow(
        self, command: c.Command, effects: Sequence[e.Effect], now: float
    ) -> None:
        self.now = now
        self.outcome = getattr(command, "outcome", None)
        self.see_command(command)
        for effect in effects:
            self.see_effect(effect)
        self.check_heard(command)
        for key in self.holders | self.anchors:
            self.check_anchor(key)
        if isinstance(command, c.DisconnectOwner):
            if command.owner_id in self.fenced:
                self.ended_owners.add(command.owner_id)
            holds = self.does_hold(command.owner_id)
            assert command.owner_id in self.fenced or not holds, "neither is done"
        if isinstance(
            command,
            c.Release | c.ReleaseForOwner | c.Cancel | c.BreakGrant | c.RegisterOwner,
        ):
            assert (command.session, command.request) not in self.unanswered
            answer = effects[-1]
            assert isinstance(answer, e.Completed | e.Refused)
            assert (answer.session, answer.request) == (
                command.session,
                command.request,
            )

    def see_command(self, command: c.Command) -> None:
        match command:
            case c.AddLockspace():
                self.lockspaces[command.name] = command
                for key, held in self.holders.items():
                    for slots in self.configured_slots(key):
                        for grant in held.values():
                            before, by = self.said.get(grant.fencing_token, (0, None))
                            by = by if before == slots else None
                            self.said[grant.fencing_token] = slots, by
            case c.OpenSession():
                self.sessions.add(command.session)
                self.acts_for[command.session] = command.session
            case c.CloseSession(session=session):
                self.sessions.remove(session)
                del self.acts_for[session]
                self.within.pop(session, None)
                for asked in [x for x in self.unanswered if x[0] == session]:
                    del self.unanswered[asked]
            case c.EndOwner(owner_id=owner_id) | c.OwnerFenced(owner_id=owner_id):
                self.ended_owners.add(owner_id)
                self.dead.add(owner_id)
            case c.AnchorOpened(key=key):
                mode = self.anchors[key] = self.opening.pop(key)
                if mode == SHARED:
                    # Others outside may share the file from now on.
                    for who, grant in self.holders.get(key, {}).items():
                        self.holders[key][who] = grant.replace(mode=SHARED)
            case c.AnchorRefused(key):
                del self.opening[key]
            case c.Resume():
                self.opening.clear()
                self.fenced &= self.dead
            case c.EnterGrants(session=session, tokens=tokens):
                self.within[session] = set(tokens)
            case c.AnchorDelayed() | c.Tick() | c.DisconnectOwner():
                pass
            case _:
                if isinstance(command, c.Acquire) and command.mode == SLOT:
                    self.note_slot(command)
                if isinstance(command, c.Acquire) and self.is_crowded(command):
                    self.crowded_out.add((command.session, command.request))
                self.unanswered[command.session, command.request] = command, self.now

    def is_crowded(self, command: c.Acquire) -> bool:
        """Tells whether too many wait for it, so that it must not."""
        most = command.max_waiting
        waiting = [self.unanswered[x][0] for x in self.queued & self.unanswered.keys()]
        keys = [x.keys for x in waiting if isinstance(x, c.Acquire)]
        keys += [self.converted_by(x) for x in waiting if isinstance(x, c.Convert)]
        if any(self.is_inside(command.session, key) for key in command.keys):
            # Of those outside it stands before all.
            return False
        lines = [sum(key in each for each in keys) for key in command.keys]
        # A try may wait for a slow file.
        return bool(most) and max(lines) >= (most or 0)

    def converted_by(self, command: c.Convert) -> tuple[ResourceKey, ...]:
        """Returns the key that a convert names, or the key of the token it names."""
        if command.key is not None:
            return (command.key,)
        return tuple(
            key
            for key, held in self.holders.items()
            for grant in held.values()
            if grant.fencing_token == command.fencing_token
        )

    def see_effect(self, effect: e.Effect) -> None:
        match effect:
            case e.Granted():
                self.granted(effect)
            case e.Refused(session=session, request=request):
                self.answered(session, request)
            case e.Completed(session=session, request=request):
                command = self.answered(session, request)
                assert not isinstance(command, c.Acquire | c.Convert)
                if isinstance(command, c.RegisterOwner):
                    self.acts_for[session] = command.owner_id
                    if command.on_disconnect == "kill":
                        self.killed_on_disconnect.add(command.owner_id)
            case e.Queued(session=session, request=request):
                assert (session, request) in self.unanswered
                assert (session, request) not in self.queued, "queued twice"
                assert (session, request) not in self.crowded_out, "one too many"
                self.queued.add((session, request))
            case e.Ended():
                self.ended(effect)
            case e.Lost(session=session, grant=grant):
                assert session in self.sessions, "a session that is gone is told"
                held = self.holders[grant.key][who_holds(grant)]
                assert held.fencing_token == grant.fencing_token
            case e.Overdue(session=session, grant=grant):
                self.told_overdue(session, grant)
            case (
                e.Wanted(session=session, grant=grant)
                | e.Unwanted(session=session, grant=grant)
            ):
                self.told_wanted(session, grant, isinstance(effect, e.Wanted))
            case e.BreakOverdue(grant=grant):
                self.to_break.add(grant.fencing_token)
            case e.OpenAnchor(key=key, mode=mode, in_use=in_use):
                assert self.lockspaces[key.lockspace].anchored
                assert key not in self.opening, "opened twice at once"
                assert in_use == bool(self.holders.get(key))
                assert mode == SHARED or len(self.holders.get(key, ())) <= 1
                modes = {held.mode for held in self.holders.get(key, {}).values()}
                assert (mode, modes) != (EXCLUSIVE, {EXCLUSIVE}), "opened twice"
                self.opening[key] = mode
            case e.CloseAnchor(key=key):
                assert key not in self.opening
                assert not self.holders.get(key), "closed under a holder"
                del self.anchors[key]
            case e.Fence(owner_id=owner_id):
                assert owner_id not in self.fenced | self.dead, "fenced twice"
                self.fenced.add(owner_id)
            case e.ForgetOwner(owner_id=owner_id):
                assert not self.does_hold(owner_id), "forgotten while it holds"

    # What holders hear.

    def told_overdue(self, session: int | None, grant: e.Grant) -> None:
        token = grant.fencing_token
        assert self.holders[grant.key][who_holds(grant)].fencing_token == token
        assert token not in self.overdue, "overdue twice"
        assert self.due[token] <= self.now, "overdue too early"
        asked = self.overdue_to.get(token)
        assert session == (asked if asked in self.sessions else None)
        self.overdue.add(token)

    def told_wanted(self, session: int, grant: e.Grant, wanted: bool) -> None:
        token = grant.fencing_token
        assert self.holders[grant.key][who_holds(grant)].fencing_token == token
        assert session == self.wanted_to[token], "somebody else hears it"
        assert session in self.sessions, "a session that is gone is told"
        assert (token in self.wanted) != wanted, "told what it knows"
        self.wanted ^= {token}

    def check_heard(self, command: c.Command) -> None:
        """Checks that each holder has heard what it asked for."""
        held = [grant for held in self.holders.values() for grant in held.values()]
        for grant in held:
            token = grant.fencing_token
            if self.wanted_to.get(token) in self.sessions:
                is_wanted = any(self.is_in_the_way(grant, x) for x in self.queued)
                assert (token in self.wanted) == is_wanted, f"unheard: {grant}"
            if isinstance(command, c.Tick) and token in self.due:
                late = self.due[token] <= self.now
                assert late == (token in self.overdue), f"unheard: {grant}"
                space = self.lockspaces[grant.key.lockspace]
                assert (token in self.to_break) == (
                    late and token in self.overdue and space.on_overdue == "break"
                )

    def is_in_the_way(self, grant: e.Grant, asked: tuple[int, int]) -> bool:
        """Tells whether a request waits until a grant ends."""
        if asked not in self.unanswered:
            return False
        command, _ = self.unanswered[asked]
        owner_id = self.acts_for[command.session]
        if isinstance(command, c.Acquire):
            keys, mode = command.keys, command.mode
            session = command.session if command.strand else 0
            who = (owner_id, session, command.strand)
        else:
            assert isinstance(command, c.Convert)
            keys, mode = self.converted_by(command), command.mode
            who = (owner_id, 0, 0) if command.key else self.who_converts(command)
        named = self.within.get(command.session, set())
        around = named.union(*(self.around.get(token, ()) for token in named))
        return (
            grant.key in keys
            and who != who_holds(grant)
            and grant.fencing_token not in around
            and self.slot_inside(command) in (None, grant.slot)
            and {mode, grant.mode} != {SHARED}
        )

    def who_converts(self, command: c.Convert) -> Who:
        for held in self.holders.values():
            for who, grant in held.items():
                if grant.fencing_token == command.fencing_token:
                    return who
        raise AssertionError("a lock that is gone is converted")

    def listen(self, command: c.Acquire, grant: e.Grant) -> None:
        """Notes what a holder asked to hear; the first session that asked hears it."""
        token = grant.fencing_token
        limits = command.max_hold, self.lockspaces[grant.key.lockspace].max_hold
        ends = [self.now + seconds for seconds in limits if seconds is not None]
        if ends:
            self.due[token] = min(*ends, self.due.get(token, ends[0]))
        asked = command.max_hold is not None
        if asked and self.overdue_to.get(token) not in self.sessions:
            self.overdue_to[token] = command.session
        if command.wanted and self.wanted_to.get(token) not in self.sessions:
            self.wanted_to[token] = command.session
            self.wanted.discard(token)

    def does_hold(self, owner_id: int) -> bool:
        holders = [who for held in self.holders.values() for who in held]
        return any(who[0] == owner_id for who in holders)

    def answered(self, session: int, request: int) -> Asked:
        assert session in {0, *self.sessions}, "a session that is gone is answered"
        assert (session, request) in self.unanswered, "answered twice"
        command, _ = self.unanswered.pop((session, request))
        return command

    def granted(self, answer: e.Granted) -> None:
        since = self.unanswered[answer.session, answer.request][1]
        command = self.answered(answer.session, answer.request)
        assert isinstance(command, c.Acquire | c.Convert)
        assert answer.converted == isinstance(command, c.Convert)
        assert answer.waited == self.now - since
        if isinstance(command, c.Acquire):
            assert tuple(grant.key for grant in answer.grants) == command.keys
        elif command.key is not None:
            assert [grant.key for grant in answer.grants] == [command.key]
        else:
            tokens = [grant.fencing_token for grant in answer.grants]
            assert tokens == [command.fencing_token]
        assert answer.previous == self.trouble_before(answer)
        for grant in answer.grants:
            if isinstance(command, c.Acquire):
                assert grant.strand == command.strand
            covers = bool(self.within.get(grant.session)) and grant.mode == EXCLUSIVE
            assert covers or grant.mode == command.mode
            assert grant.owner_id not in self.ended_owners, "granted to the dead"
            if isinstance(command, c.Acquire):
                self.check_slot(grant, command)
            self.hold(grant, answer.converted)
            if isinstance(command, c.Acquire):
                self.listen(command, grant)

    def check_slot(self, grant: e.Grant, command: c.Acquire) -> None:
        """Asserts that a slot is the lowest free one, of as many as there are."""
        if grant.mode != SLOT:
            assert (grant.slot, grant.slots) == (None, None)
            return
        slots, slot, key = grant.slots or 0, grant.slot, grant.key
        for configured in self.configured_slots(key):
            assert slots == configured, f"{slots} slots, not {configured}"
        others = list(self.holders.get(key, {}).values())
        taken = {held.slot for held in others}
        inside = self.inside.pop((command.session, command.request), None)
        if inside is None:
            assert slot == min(set(range(slots)) - taken), f"slot {slot} beside {taken}"
        assert inside in (None, slot), f"slot {slot}, inside {inside}"
        if (command.session, command.request) not in self.queued:
            assert command.slots in (None, slots), f"{slots}, not {command.slots}"
        said = slots, grant.slots_said_by
        assert {said}.issuperset(self.said[x.fencing_token] for x in others)
        self.said[grant.fencing_token] = said

    def slot_inside(self, command: c.Acquire | c.Convert) -> int | None:
        """Returns which slot a command is inside of that waits for one."""
        return self.inside.get((command.session, command.request))

    def note_slot(self, command: c.Acquire) -> None:
        """Notes which slot a command is inside of that asks for one."""
        named = self.within.get(command.session, set())
        held = self.holders.get(command.keys[0], {}).values()
        slots = [x.slot for x in held if x.fencing_token in named]
        if slots and slots[-1] is not None:
            self.inside[command.session, command.request] = slots[-1]

    def configured_slots(self, key: ResourceKey) -> list[int]:
        """Returns how many slots are configured for a resource, or nothing."""
        patterns = self.lockspaces[key.lockspace].slots
        found = [count for name, count in patterns if fnmatchcase(key.resource, name)]
        return found[:1]

    def trouble_before(self, answer: e.Granted) -> tuple[e.LastHolder, ...]:
        """Returns the last holds that a new holder must hear of."""
        new = [x for x in answer.grants if x.fencing_token > self.last_token]
        last = [self.last_holders[x.key] for x in new if x.key in self.last_holders]
        well = {("released", None), ("released", "ok")}
        outermost = {x.key: min(x.inside) for x in new if x.inside}
        return tuple(
            x
            for x in last
            if (x.cause, x.outcome) not in well
            # What is around it has heard of what ended before.
            and x.grant.fencing_token >= outermost.get(x.grant.key, 0)
        )

    def is_inside(self, session: int, key: ResourceKey) -> bool:
        held = {grant.fencing_token for grant in self.holders.get(key, {}).values()}
        return bool(held & self.within.get(session, set()))

    def check_inside(self, grant: e.Grant) -> None:
        """Asserts that it is inside what its session named, and nothing else."""
        named = self.within.get(grant.session, set())
        named = named.union(*(self.around.get(token, ()) for token in named))
        assert set(grant.inside) <= named, "a stranger is let in"
        holders = self.holders.get(grant.key, {}).values()
        alive = {x for held in holders for x in (held.fencing_token, *held.inside)}
        assert set(grant.inside) <= alive, "inside what is over"
        self.around[grant.fencing_token] = grant.inside

    def hold(self, grant: e.Grant, converted: bool) -> None:
        holders = self.holders.setdefault(grant.key, {})
        before = holders.get(who_holds(grant))
        if before is None:
            assert not converted
            assert grant.fencing_token > self.last_token, "a token that did not rise"
            self.check_inside(grant)
            self.last_token = grant.fencing_token
        else:
            assert grant.fencing_token == before.fencing_token
            assert grant.inside == before.inside
        holders[who_holds(grant)] = grant
        modes = [held.mode for held in holders.values()]
        assert SLOT not in modes or set(modes) == {SLOT}, f"beside a slot: {holders}"
        chain = sorted(holders.values(), key=lambda held: held.fencing_token)
        for place, held in enumerate(() if SHARED in modes else chain):
            alike = [other for other in chain[:place] if other.slot == held.slot]
            older = {other.fencing_token for other in alike}
            assert older <= set(held.inside), f"two holders: {holders}"
        self.check_anchor(grant.key)

    def ended(self, effect: e.Ended) -> None:
        grant = effect.grant
        held = self.holders[grant.key].pop(who_holds(grant))
        assert held.fencing_token == grant.fencing_token
        if effect.cause == "owner_died" or (
            effect.cause != "released" and self.must_be_dead(grant)
        ):
            assert grant.owner_id in self.dead, "released before it was fenced"
        if effect.cause == "released" and grant.owner_id not in self.releasing():
            assert grant.owner_id not in self.acts_for.values(), "a session uses it"
            assert grant.owner_id not in self.fenced, "released before it was fenced"
        self.last_holders.pop(grant.key, None)
        outcome = self.outcome if effect.cause == "released" else None
        last = e.LastHolder(grant, self.now, effect.cause, outcome)
        self.last_holders[grant.key] = last
        if len(self.last_holders) > self.last_holders_limit:
            self.last_holders.popitem(last=False)

    def releasing(self) -> set[int]:
        """Returns the owners of those who release what is theirs at this moment."""
        commands = [command for command, _ in self.unanswered.values()]
        return {self.acts_for[x.session] for x in commands if isinstance(x, c.Release)}

    def must_be_dead(self, grant: e.Grant) -> bool:
        lockspace = self.lockspaces[grant.key.lockspace]
        return (
            lockspace.on_disconnect == "kill"
            or grant.owner_id in self.killed_on_disconnect
        )

    def check_anchor(self, key: ResourceKey) -> None:
        if not self.lockspaces[key.lockspace].anchored:
            return
        anchor = self.anchors.get(key)
        for grant in self.holders.get(key, {}).values():
            assert anchor in (EXCLUSIVE, grant.mode), f"{grant} on anchor {anchor}"

    def check_closed(self) -> None:
        for key in self.anchors:
            assert self.holders.get(key) or key in self.opening, f"{key} left open"
