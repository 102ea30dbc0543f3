"""Defects to be planted, each of which must be found.

The stateful tests must find those of the engine, the tests of the lockspaces the rest.
"""

from pathlib import Path
from typing import NamedTuple

from support.places import ROOT

SOURCE = ROOT / "src"
_ENGINE = "lockd/engine"
STATEFUL = "tests/engine/test_stateful.py"
HOLDERS = "tests/engine/holding/test_holders.py"
INNER_GRANTS = "tests/engine/test_inner_grants.py"


class PlantedBug(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str = STATEFUL

    @property
    def has_anchors(self) -> bool:
        """Whether its name speaks of what only the runs with anchors have."""
        words = "anchor", "file", "death", "fenced", "killed", "opens", "ended"
        return self.tests == STATEFUL and any(word in self.name for word in words)

    def count(self, source: Path = SOURCE) -> int:
        """Returns how often the text to be replaced is found."""
        return (source / self.file).read_text().count(self.old)

    def plant(self, source: Path) -> None:
        path = source / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def _in(
    module: str, name: str, old: str, new: str, tests: str = STATEFUL
) -> PlantedBug:
    return PlantedBug(name, f"{_ENGINE}/{module}.py", old, new, tests)


def _of_files(module: str, name: str, old: str, new: str) -> PlantedBug:
    file = f"lockd/lockspaces/{module}.py"
    return PlantedBug(name, file, old, new, "tests/lockspaces")


PLANTED_BUGS = [
    _in(
        "holding/holders",
        "the last of several holders is forgotten",
        "            ((self._strand, self._grant),) = self._several.items()\n",
        "",
        HOLDERS,
    ),
    _in(
        "holding/holders",
        "a second holder takes the place of the first",
        "or self._grant is None or self._strand is strand:",
        "or self._grant is None or self._strand:",
        HOLDERS,
    ),
    _in(
        "lock_state",
        "a grant that is over is still found by its token",
        "self.holder_of.pop(token).remove(token)",
        "self.holder_of[token].remove(token)",
    ),
    _in(
        "lock_state",
        "a grant is not found by its token",
        "        self.holder_of[self.last_token] = owner\n",
        "        if len(owner.grants) < 3:\n"
        "            self.holder_of[self.last_token] = owner\n",
    ),
    _in(
        "requests",
        "one more waits than may",
        "longest.count_before(request) >= most else",
        "longest.count_before(request) > most else",
    ),
    _in(
        "requests",
        "the shortest line counts, not the longest",
        "        longest = max(found,",
        "        longest = min(found,",
    ),
    _in(
        "session",
        "who may wait behind nobody waits",
        "0 if wish.max_waiting == 0 else wish.timeout",
        "wish.timeout",
        "tests/engine/test_requests.py",
    ),
    _in(
        "lock_table",
        "overdue is told twice",
        "        grant = grant.replace(notices=replace(notices, overdue=True))\n"
        "        state.put_grant(grant)\n",
        "        later = replace(notices, due=notices.due + 1)\n"
        "        grant = grant.replace(notices=later)\n"
        "        state.put_grant(grant)\n"
        "        state.heed(grant)\n",
    ),
    _in(
        "lock_state",
        "overdue is never told",
        "        if notices is not None and notices.due is not None and not "
        "notices.overdue:\n",
        "        if False:\n",
    ),
    _in(
        "lock_state",
        "the longer of two times counts",
        "due=min(ends, default=None)",
        "due=max(ends, default=None)",
    ),
    _in(
        "lock_state",
        "the time of who takes it again is forgotten",
        "        if grant.notices != held.notices:\n",
        "        if False:\n",
    ),
    _in(
        "deadlines",
        "overdue of an ended grant is told",
        "    grant = thing.grants.get(-order)\n",
        "    if -order not in thing.grants:\n"
        "        return False\n"
        "    grant = thing.grants.get(-order)\n",
    ),
    _in(
        "lock_table",
        "overdue is broken where nobody asked for that",
        '.on_overdue == "break":\n',
        '.on_overdue != "notice" or state.waiting:\n',
    ),
    _in(
        "lock_table",
        "a session that is gone hears that it is late",
        "        session = told if told in state.sessions else None\n",
        "        session = told\n",
    ),
    _in(
        "owners",
        "wanted is told on the second waiter",
        "    if mode is None:\n        return ()\n    if mode == SHARED and",
        "    if mode is None or resource.line_length() == 1:\n"
        "        return ()\n"
        "    if mode == SHARED and",
    ),
    _in(
        "lock_table",
        "wanted is not told when somebody begins to wait",
        "            self._state.look_who_is_wanted(resource)\n        cycle",
        "        cycle",
    ),
    _in(
        "lock_state",
        "wanted is not told to who comes while others wait",
        ".append(strand)\n        if notices",
        "\n        if notices",
    ),
    _in(
        "lock_table",
        "unwanted is forgotten",
        "        self._state.look_who_is_wanted(resource)\n\n    def _tidy",
        "\n    def _tidy",
    ),
    _in(
        "owners",
        "the own convert is taken for somebody who waits",
        "        else seeker is not strand\n",
        "        else True\n",
    ),
    _in(
        "owners",
        "who waits inside is taken for who wants what is around it",
        " and _is_apart(resource, seeker, strand)\n",
        "\n",
    ),
    _in(
        "owners",
        "who shares is wanted by who shares, too",
        "len(waiting) > resource.sharing:",
        "waiting:",
    ),
    _in(
        "resource",
        "who went and wanted to share is still counted",
        "            self.sharing -= request.mode == SHARED\n",
        "",
    ),
    _in(
        "resource",
        "listeners hear of the first who waits, not of the last",
        "whom = new if told == seekers else",
        "whom = new if told or not seekers else",
    ),
    _in(
        "lock_state",
        "who listens no more still does",
        "            resource.stop_listening(strand)\n",
        "            pass\n",
    ),
    _in(
        "recovery/snapshot",
        "who waits over a crash asks to hear nothing",
        '_HEARS = ("max_hold", "wanted")\n',
        "_HEARS = ()\n",
    ),
    _in(
        "lock_table",
        "a crash makes holders deaf",
        "                state.heed(grant)\n",
        "                pass\n",
    ),
    _in(
        "requests",
        "a newcomer overtakes who waits",
        "resource.has_outer_line or not resource.admits(mode, strand)",
        "not resource.admits(mode, strand)",
    ),
    _in(
        "requests",
        "a try ignores the queue",
        "if self._is_free(command.keys, command.mode, strand):",
        "if self._is_free(command.keys, command.mode, strand) or (\n"
        "            command.timeout == 0 and all(\n"
        "                self._state.resource(x).admits(command.mode, strand)\n"
        "                for x in command.keys\n"
        "            )\n"
        "        ):",
    ),
    _in(
        "owners",
        "a lock is released in the place of a session that uses it",
        "        if owner.sessions or owner.fencing is not None:\n",
        "        if owner.fencing is not None:\n",
    ),
    _in(
        "owners",
        "a lock is released while its holder is being killed",
        "        if owner.sessions or owner.fencing is not None:\n",
        "        if owner.sessions:\n",
    ),
    _in(
        "effects",
        "work that failed ended well",
        'self.cause == "released" and self.outcome in (None, "ok")',
        'self.cause == "released"',
    ),
    _in(
        "effects",
        "a holder that died ended well",
        'self.cause == "released" and self.outcome in (None, "ok")',
        'self.cause != "broken" and self.outcome in (None, "ok")',
    ),
    _in(
        "requests",
        "a release does not say how the work ended",
        'self._table.end(held, "released", now, outcome)',
        'self._table.end(held, "released", now)',
    ),
    _in(
        "lock_table",
        "the next holder does not hear how the last hold ended",
        "                previous += state.trouble(key, grant.inside)\n",
        "",
    ),
    _in(
        "lock_table",
        "nobody is woken by a release",
        "        if to_settle is not None:\n",
        "        if to_settle is not None and cause != 'released':\n",
    ),
    _in(
        "lock_table",
        "nobody is woken by a disconnect",
        "        if to_settle is not None:\n",
        "        if to_settle is not None and cause != 'disconnected':\n",
    ),
    _in(
        "lock_table",
        "nobody is woken when somebody leaves the queue",
        "                resource.dequeue(request)\n"
        "                self._unsettled.append(resource)\n",
        "                resource.dequeue(request)\n",
    ),
    _in(
        "lock_table",
        "a timeout leaves its place in the queue",
        '                self.refuse(request, "timeout", when)\n',
        '                self.refuse(request, "timeout", when)\n'
        "                for key in request.keys:\n"
        "                    if key in self._state.resources:\n"
        "                        self._state.resources[key].enqueue(request)\n",
    ),
    _in(
        "lock_table",
        "the time allowed is ignored",
        "            elif when == request.deadline:\n",
        "            elif when == request.deadline and request.converting:\n",
    ),
    _in(
        "lock_table",
        "only the first of two shared waiters is woken",
        "            self.move_up(request, now)\n",
        "            self.move_up(request, now)\n"
        "            while resource in self._unsettled:\n"
        "                self._unsettled.remove(resource)\n"
        "            break\n",
    ),
    _in(
        "resource",
        "a newcomer overtakes who converts",
        "return bool(self.pending or self.converting or self.waiting or self.inner)",
        "return bool(self.pending or self.waiting or self.inner)",
    ),
    _in(
        "resource",
        "a convert is overtaken by a waiter for several",
        "        line = self.converting\n"
        "        if not line and not request.converting:\n",
        "        line = self.converting\n        if not request.converting:\n",
    ),
    _in(
        "resource",
        "waiters are served before converts",
        "for request in self.converting or self.waiting:",
        "for request in self.waiting or self.converting:",
    ),
    _in(
        "resource",
        "a reader gets in beside a writer",
        "        return compatible(held, mode)\n",
        '        return mode == "shared"\n',
    ),
    _in(
        "holding/slots",
        "one slot more is given than there are",
        "return self.first_free < self.count",
        "return self.first_free <= self.count",
    ),
    _in(
        "holding/slots",
        "the highest free slot is given",
        "        number = self.first_free\n",
        "        free = [x for x in range(self.count) if not self.taken >> x & 1]\n"
        "        number = max(free, default=self.first_free)\n",
    ),
    _in(
        "requests",
        "a program inside a slot waits for another",
        "            command = self._in_slot(command, inside)\n",
        "            inside = self._in_slot(command, inside) and NOWHERE\n",
    ),
    _in(
        "holding/slots",
        "those inside one slot do not take turns",
        "all(token in around for token in self.chains.get(number, ()))",
        "True",
    ),
    _in(
        "holding/slots",
        "a slot is free although somebody inside it holds it",
        "            if left:\n                return\n",
        "",
    ),
    _in(
        "resource",
        "anything may be inside a slot",
        "        if SLOT in (wish.mode, self.mode):\n"
        "            return wish.mode == self.mode\n",
        "",
    ),
    _in(
        "waits/play",
        "those inside a slot wait for the holders of all slots",
        "for strand in self._in_slot[request.wish.slot]",
        "for strand in self.holders",
        "tests/engine/holding/test_slots.py",
    ),
    _in(
        "effects",
        "a slot that there is no more counts as taken",
        "(self.slots_held & ((1 << self.slots) - 1))",
        "self.slots_held",
    ),
    _in(
        "lock_state",
        "who takes a slot has said how many there are",
        "        return resource.slots.said_by\n",
        "        return asker\n",
    ),
    _in(
        "resource",
        "a shared lock is granted beside a slot",
        "return mode == SLOT and self.slots is not None",
        "return mode in (SHARED, SLOT) and self.slots is not None",
    ),
    _in(
        "holding/slots",
        "slots are forgotten while somebody waits for one",
        "not (self.taken or self.waiting)",
        "not self.taken",
    ),
    _in(
        "lock_state",
        "a slot that was released stays taken",
        "            resource.free_slot(grant.slot, token)\n",
        "            pass\n",
    ),
    _in(
        "values",
        "the last pattern for slots counts",
        "        for pattern, count in self.slots:\n",
        "        for pattern, count in self.slots[::-1]:\n",
        "tests/engine/holding/test_slots.py",
    ),
    _in(
        "requests",
        "a stranger's number of slots is accepted",
        "if slots is None or command.slots not in (None, slots):",
        "if slots is None:",
    ),
    _in(
        "requests",
        "another lock is converted to a slot",
        "        if SLOT in (held.mode, command.mode):\n",
        "        if held.mode == SLOT:\n",
    ),
    _in(
        "requests",
        "more slots wake nobody",
        "            self._table.look_again(resource)\n"
        "            if count < before:\n",
        "            if count < before:\n",
    ),
    _in(
        "requests",
        "fewer slots leave somebody waiting for ever",
        "                fewer += resource.wanting_slots()\n",
        "                pass\n",
    ),
    _in(
        "recovery/snapshot",
        "a load forgets which slots are held",
        "        resource.count_slots_again()\n",
        "        pass\n",
    ),
    _in(
        "session",
        "who waits for a slot expects as many as there were",
        "        self.wish = self.wish.replace(slots=count, slots_said_by=said_by)\n",
        "        pass\n",
    ),
    _in(
        "waits/cycles",
        "who waits for a slot is accused without a reduction",
        "    if any(request.mode == SLOT for request, _, _ in cycle):\n",
        "    if False:\n",
    ),
    _in(
        "waits/play",
        "a wait for a slot is a wait for all of them",
        "            return self._free > 0\n",
        "            return False\n",
    ),
    _in(
        "waits/play",
        "who stands before takes no slot",
        "                self._free -= 1\n",
        "",
    ),
    _in(
        "waits/obstacles",
        "a wait for a slot closes no cycle",
        "                if not compatible(resource.mode_for(other), mode):\n"
        "                    behind_own",
        "                if not compatible(resource.mode_for(other), mode):\n"
        "                    if other.mode == mode == SLOT: continue\n"
        "                    behind_own",
    ),
    _in(
        "resource",
        "an upgrade does not wait for the other holders",
        "return len(holders) == 1 or held == mode == SHARED",
        "return True",
    ),
    _in(
        "resource",
        "who comes last is served first",
        "            self.waiting[request] = None\n",
        "            self.waiting[request] = None\n"
        "            self.waiting.move_to_end(request, last=False)\n",
    ),
    _in(
        "lock_state",
        "a fencing token is used again",
        "        self.ended += 1\n",
        "        self.ended += 1\n"
        "        self.last_token -= grant.fencing_token == self.last_token\n",
    ),
    _in(
        "lock_state",
        "a shared holder gets the token of the one before",
        "        self.last_token += 1\n",
        "        if self.resource(key).mode is None:\n"
        "            self.last_token += 1\n",
    ),
    _in(
        "recovery/snapshot",
        "tokens start anew after a load",
        '    last_token = max(last_token, counts.pop("last_token"))\n',
        '    del counts["last_token"]\n',
    ),
    _in(
        "recovery/snapshot",
        "a load turns the queue round",
        "    for order in [*record.converting, *record.waiting]:\n",
        "    for order in [*record.converting, *reversed(record.waiting)]:\n",
    ),
    _in(
        "lock_engine",
        "a resume leaves an anchor unasked for",
        "            self.table.open_again(request)\n",
        "            pass\n",
    ),
    _in(
        "owners",
        "a resume forgets a death that is waited for",
        "            if owner.fencing is not None and owner.grants:\n",
        "            if False:\n",
    ),
    _in(
        "lock_state",
        "a lock that ended is still counted for its user",
        "        self.usage.remove_grant(grant)\n",
        "",
    ),
    _in(
        "usage",
        "locks that were waited for together are counted for ever",
        "                take_from(self.held, uid, len(keys))\n",
        "                pass\n",
    ),
    _in(
        "usage",
        "what a lock that ended said still counts",
        "            take_from(self.text, uid, "
        "text_bytes((grant.key,), label, reason))\n",
        "            pass\n",
    ),
    _in(
        "usage",
        "what a lock says does not count",
        "            add_to(self.text, uid, text_bytes((grant.key,), label, reason))\n",
        "            pass\n",
    ),
    _in(
        "recovery/snapshot",
        "what locks say is not counted after a load",
        "        state.usage.add_grant(grant)\n",
        "        uid, held = grant.owner.uid, state.usage.held\n"
        "        held[uid] = held.get(uid, 0) + 1\n",
    ),
    _in(
        "recovery/snapshot",
        "a load forgets the time allowed",
        '    "deadline",\n',
        "",
    ),
    _in(
        "owners",
        "the lock is released before its holder is fenced",
        "            if not self._state.must_fence(grant):\n",
        "            if True:\n",
    ),
    _in(
        "owners",
        "a broken lock is released before its holder is fenced",
        "        if command.fence and self._state.must_fence(grant):\n",
        "        if False:\n",
    ),
    _in(
        "requests",
        "whatever the owner holds is held already",
        "if (held := state.held_by(strand, key)) is not None:",
        "if (held := next((g for g in owner.grants.values() if g.key == key), None)):",
    ),
    _in(
        "requests",
        "whatever the owner waits for is waited for already",
        "if strand.requests and (again := _waits_already(strand, command)):",
        "if again := next(\n"
        "            filter(None, (_waits_already(r.strand, command)"
        " for r in owner.waiting())), None\n"
        "        ):",
    ),
    _in(
        "requests",
        "every strand is the whole owner",
        "        if command.strand:\n",
        "        if False:\n",
    ),
    _in(
        "requests",
        "a name means any strand",
        "            held = state.held_by(owner.whole, key)\n",
        "            held = next(\n"
        "                (g for g in owner.grants.values() if g.key == key), None\n"
        "            )\n",
        "tests/engine/test_strands.py",
    ),
    _in(
        "requests",
        "a strand converts for the whole owner",
        "        strand = owner.strand_of(held)\n",
        "        strand = owner.whole\n",
    ),
    _in(
        "session",
        "strands of two sessions are the same",
        "self.strands.get(name) or (Strand(name)",
        "next((x for x in self.strands.values() if x.number == name[1]), None)"
        " or (Strand(name)",
    ),
    _in(
        "session",
        "a strand that only waits is not kept",
        "            self.strands[strand.name] = strand\n",
        "            if strand.held:\n"
        "                self.strands[strand.name] = strand\n",
    ),
    _in(
        "session",
        "a strand is kept for ever",
        "            self.strands.pop(strand.name, None)\n",
        "            pass\n",
    ),
    _in(
        "recovery/snapshot",
        "a request forgets its strand",
        "    strand = session.owner.strand(record.strand)\n",
        "    strand = session.owner.whole\n",
    ),
    _in(
        "waits/cycles",
        "who holds nothing under this strand has nobody behind it",
        "strand.held or len(strand.requests) > 1 or session.within\n",
        "strand.held and len(strand.requests) > 1 or session.within\n",
    ),
    _in(
        "session",
        "who holds a lock does not wait for who is inside",
        "            yield from ((request, grant)"
        " for request in session.requests.values())\n",
        "            pass\n",
    ),
    _in(
        "waits/cycles",
        "who is inside closes no cycle",
        "                if session and session.session_id in obstacle.insiders:\n",
        "                if False:\n",
    ),
    _in(
        "waits/cycles",
        "nobody waits for who is inside and holds nothing",
        "strand.held or len(strand.requests) > 1 or session.within\n",
        "strand.held or len(strand.requests) > 1\n",
    ),
    _in(
        "requests",
        "an upgrade at once forgets who is inside",
        "not (len(strand.requests) > 1 or strand.insiders):\n",
        "not len(strand.requests) > 1:\n",
    ),
    _in(
        "lock_state",
        "a session is inside after its end",
        "            strand.let_out(token, session.session_id)\n",
        "            pass\n",
    ),
    _in(
        "session",
        "a session is inside a lock that was released",
        "            strand.let_out(fencing_token, *strand.insiders)\n",
        "            pass\n",
    ),
    _in(
        "session",
        "the end of one session lets everybody out",
        "        for session_id in session_ids:\n",
        "        for session_id in list(self.insiders):\n",
    ),
    _in(
        "recovery/snapshot",
        "a session forgets what it is inside",
        "        list(session.within),\n",
        "        [],\n",
    ),
    _in(
        "lock_state",
        "nobody is told that a session is inside",
        "        self._let_in(session, own)\n"
        '        self.mark("session", session.session_id)\n',
        "        self._let_in(session, own)\n",
    ),
    _in(
        "resource",
        "a sibling is let in beside another",
        "            grant.fencing_token in around or strand is request.strand\n",
        "            grant.fencing_token in around or grant.inside\n",
    ),
    _in(
        "resource",
        "the end of what is around frees the lock of who is inside",
        "        return compatible(held, mode)\n\n    def lets_pass",
        "        return all(\n"
        "            compatible(held.mode, mode) or held.inside\n"
        "            for held in holders.values()\n"
        "        )\n\n    def lets_pass",
    ),
    _in(
        "resource",
        "a waiter goes before who is inside",
        "        for request in self.inner:\n",
        "        for request in () if self.waiting else self.inner:\n",
    ),
    _in(
        "resource",
        "who overtakes nobody inside is let pass",
        "        if self.inner and not request.goes_down:\n",
        "        if False:\n",
    ),
    _in(
        "resource",
        "a convert to shared waits for who is inside",
        "        if self.inner and not request.goes_down:\n",
        "        if self.inner:\n",
    ),
    _in(
        "holding/slots",
        "who is deeper inside waits for who is not",
        "    return -request.inside[key][-1], request.order\n",
        "    return 0, request.order\n",
    ),
    _in(
        "holding/slots",
        "who is inside more that is over goes before those inside what is held",
        "    return -request.inside[key][-1], request.order\n",
        "    return -len(request.inside[key]), request.order\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "exclusive inside shared is granted",
        "        if wish.mode == EXCLUSIVE and self.mode == SHARED:\n",
        "        if False:\n",
    ),
    _in(
        "resource",
        "a stranger is let in as if it were inside",
        "for x in self.holders.values() if x.fencing_token in tokens]",
        "for x in self.holders.values()]",
    ),
    _in(
        "resource",
        "who is inside has the mode that it asked for",
        "        mode = self.mode or self.anchor or request.mode\n",
        "        mode = request.mode\n",
    ),
    _in(
        "resource",
        "a grant is inside what is over",
        "        return tuple(token for token in around if token in held)\n",
        "        return around\n",
    ),
    _in(
        "resource",
        "those inside wait only for those that exclude what they asked for",
        "        return EXCLUSIVE if joins else request.mode\n",
        "        return request.mode\n",
    ),
    _in(
        "requests",
        "a grant inside closes a circle at once",
        "        if cycle := self._cycle_if_let_in(request, resources):\n",
        "        if cycle := ():\n",
    ),
    _in(
        "lock_table",
        "who waits inside closes a circle for those behind it",
        "        if (request.converting or request.inside) and not cycle:\n",
        "        if request.converting and not cycle:\n",
    ),
    _in(
        "waits/obstacles",
        "who is inside waits for who is around it",
        "inside = request.inside and resource.is_inside(request, strand)",
        "inside = False",
    ),
    _in(
        "requests",
        "the mode changes around who is inside",
        "        if not alone and resource.has_inside(held):\n",
        "        if False:\n",
    ),
    _in(
        "requests",
        "the mode changes inside what is held",
        "        around = held.inside and resource.around(held.inside)\n",
        "        around = ()\n",
    ),
    _in(
        "lock_table",
        "who waits inside for more than is left waits on",
        "        for request in resource.uncovered():\n",
        "        for request in ():\n",
    ),
    _in(
        "lock_table",
        "a file is opened again for who is inside",
        "            if request.inside and resource.join(request):\n",
        "            if False:\n",
    ),
    _in(
        "lock_table",
        "others get one file inside while another is opened",
        "            resource.open_anchor(request, resource.mode or request.mode)\n",
        "            pass\n",
    )._replace(tests=INNER_GRANTS),
    _in(
        "requests",
        "what is partly inside is granted",
        "            if key not in inside:\n",
        "            if False:\n",
    ),
    _in(
        "requests",
        "a shared hold inside is not counted",
        "            and (held.mode == SHARED or held.inside)\n",
        "            and held.mode == SHARED\n",
    ),
    _in(
        "lock_state",
        "who is inside hears what was heard around it",
        "        if inside and last.grant.fencing_token < inside[0]:\n",
        "        if False:\n",
    ),
    _in(
        "recovery/snapshot",
        "a request forgets what it is inside",
        "wish, record.since, inside=inside)\n",
        "wish, record.since)\n",
    ),
    _in(
        "recovery/mending",
        "a chain is taken for holders that exclude each other",
        "grant is first or grant.fencing_token in first.inside or",
        "grant is first or",
    ),
    _in(
        "waits/obstacles",
        "a cycle through holders is missed",
        "            for strand in known.holders_before(request):\n"
        "                yield key, strand\n",
        "",
    ),
    _in(
        "waits/obstacles",
        "a cycle through a queue is missed",
        "                if not compatible(resource.mode_for(other), mode):\n",
        "                if other.converting:\n",
    ),
    _in(
        "waits/obstacles",
        "who shares is taken for an obstacle of who will share with it",
        "                if not compatible(resource.mode_for(other), mode):\n",
        "                if True:\n",
    ),
    _in(
        "waits/obstacles",
        "a cycle through a shared request for several is missed",
        "                elif len(other.keys) > 1 or behind_own:\n",
        "                elif behind_own:\n",
    ),
    _in(
        "waits/obstacles",
        "what waits behind ones own request is taken for what waits for it",
        "                elif len(other.keys) > 1 or behind_own:\n",
        "                elif len(other.keys) > 1:\n",
        INNER_GRANTS,
    ),
    _in(
        "waits/obstacles",
        "a search forgets what was none for the same strand only",
        "        return found + new\n",
        "        return new\n",
        INNER_GRANTS,
    ),
    _in(
        "lock_table",
        "a file that is open for those around is opened in another mode",
        "            resource.open_anchor(request, resource.mode or request.mode)\n",
        "            resource.open_anchor(request, request.mode)\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "the mode changes around one inside whose other file is being opened",
        "        inside = (self._pending_inside, *(x.inside ",
        "        inside = ((), *(x.inside ",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "one inside goes before a convert to shared, because of another file",
        "        if next(iter(self.converting), request).goes_down:\n",
        "        if False:\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "one more waits inside than may, while a file is opened",
        "        inside = len(self.line_of(request)) + bool(self._pending_inside)\n",
        "        inside = len(self.line_of(request))\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "a file that stays open for one inside is not whole once all around it ended",
        "        return request.wish.whole or (bool(request.inside) and "
        "self.stays_whole)\n",
        "        around = self.still_around(request)\n"
        "        return request.wish.whole or (bool(around) and self.stays_whole)\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "a file that is opened again for one inside is whole",
        "        self.stays_whole = joins and any(",
        "        self.stays_whole = self.stays_whole or any(",
        INNER_GRANTS,
    ),
    _in(
        "recovery/snapshot",
        "a file that stays open for one inside is not whole after a crash",
        "            if record.whole:\n",
        "            if False:\n",
        INNER_GRANTS,
    ),
    _in(
        "resource",
        "one inside goes before one further inside after a busy file",
        "        if not request.inside:  # these are sorted\n",
        "        if True:\n",
        INNER_GRANTS,
    ),
    _in(
        "waits/obstacles",
        "the strand of a shared request for several is waited for, not its grant",
        "                    yield key, other\n",
        "                    yield key, other.strand\n",
    ),
    _in(
        "waits/cycles",
        "a cycle of three is missed",
        "                    frontier.append(other)\n",
        "                    if request in starts:\n"
        "                        frontier.append(other)\n",
    ),
    _in(
        "waits/obstacles",
        "what a shared request does not wait for is skipped for exclusive ones",
        "        alike = mode, request.inside",
        "        alike = SHARED, request.inside",
    ),
    _in(
        "waits/obstacles",
        "a convert hides its own hold from others",
        "(left if inside or strand is own else found)",
        "(left if inside else found)",
    ),
    _in(
        "lock_table",
        "a cycle that a convert closes for its strand is missed",
        "        if (request.converting or request.inside) and not cycle:\n",
        "        if request.inside and not cycle:\n",
    ),
    _in(
        "requests",
        "a cycle that an upgrade closes at once is missed",
        "        elif cycle := self._cycle_if_raised(request, held):\n",
        "        elif cycle := ():\n",
    ),
    _in(
        "lock_table",
        "several are granted when only one of them is free",
        "if not all(other.lets_pass(request) for other in others):",
        "if not any(other.lets_pass(request) for other in others):",
    ),
    _in(
        "requests",
        "a counted hold is released whole",
        "        if held.count > 1:\n"
        "            self._state.put_grant(held.replace(count=held.count - 1))\n",
        "        if held.count > 2:\n"
        "            self._state.put_grant(held.replace(count=held.count - 1))\n",
    ),
    _in(
        "owners",
        "who left is granted",
        "        for request in list(session.requests.values()):\n"
        "            self._table.answered(request)\n",
        "",
    ),
    _in(
        "lock_table",
        "the anchor is closed before the last holder is gone",
        "        if not resource.holders:\n"
        "            if resource.anchor is not None:\n",
        "        if len(resource.holders) < 2:\n"
        "            if resource.anchor is not None:\n",
    ),
    _in(
        "lock_table",
        "the anchor is never closed",
        "                self._effects.append(CloseAnchor(resource.key))\n",
        "",
    ),
    _in(
        "lock_table",
        "several are granted when the first anchor is open",
        "        if not request.hear(refusal):\n            return None\n",
        "        request.hear(refusal)\n",
    ),
    _in(
        "lock_table",
        "a refused anchor is taken for an open one",
        "        if request.refusal is None:\n",
        '        if request.refusal is None or request.refusal.code == "io":\n',
    ),
    _in(
        "lock_table",
        "an upgrade does not ask the anchor",
        "            elif state.lockspaces[key.lockspace].anchored:\n",
        "            elif state.lockspaces[key.lockspace].anchored and not (\n"
        "                request.converting and request.mode == EXCLUSIVE\n"
        "            ):\n",
    ),
    _in(
        "lock_table",
        "who loses its file to the outside loses its place",
        "            self._state.resources[key].enqueue_first(request)\n",
        "            self._state.resources[key].enqueue(request)\n",
    ),
    _in(
        "lock_state",
        "last holders are remembered without bound",
        "        if len(memory) > MAX_LAST_HOLDERS:\n",
        "        if len(memory) > 2 * MAX_LAST_HOLDERS:\n",
    ),
    _in(
        "owners",
        "the locks of a dead process are kept",
        "        for grant in list(owner.grants.values()):\n"
        "            self._lose(grant, cause, now)\n",
        "        for grant in list(owner.grants.values())[:1]:\n"
        "            self._lose(grant, cause, now)\n",
    ),
    _in(
        "owners",
        "locks of a process end with the session that took them",
        "        if not owner.is_process:\n"
        "            self._end_or_fence(owner, now)\n",
        "        if not (owner.is_process and owner.sessions):\n"
        "            self._end_or_fence(owner, now)\n",
    ),
    _in(
        "lock_state",
        "nobody is told of a grant",
        "            self.changed.grants[self.last_token] = grant\n",
        "            pass\n",
    ),
    _in(
        "lock_state",
        "nobody is told that a grant changed",
        "            self.changed.grants[grant.fencing_token] = grant\n",
        "            pass\n",
    ),
    _in(
        "lock_state",
        "nobody is told of the end of a grant",
        "            self.changed.grants[token] = None\n",
        "            pass\n",
    ),
    _in(
        "lock_state",
        "nobody is told of the last holder",
        "            self.changed.last_holders[last.grant.key] = (self.ended, last)\n",
        "            pass\n",
    ),
    _in(
        "lock_state",
        "nobody is told that a last holder is forgotten",
        "                self.changed.last_holders[forgotten] = None\n",
        "                pass\n",
    ),
    _in(
        "lock_state",
        "nobody is told of who waits",
        "        self.usage.add_request(request)\n"
        "        if self.changed is not None:\n"
        '            self.changed.others["request", request.order] = request\n',
        "        self.usage.add_request(request)\n",
    ),
    _in(
        "lock_state",
        "nobody is told of an answer",
        "        self.usage.remove_request(request)\n"
        "        if self.changed is not None:\n"
        '            self.changed.others["request", request.order] = request\n',
        "        self.usage.remove_request(request)\n",
    ),
    _in(
        "lock_table",
        "nobody is told what anchor is being opened",
        "        resource.open_anchor(request, mode)\n"
        '        self._state.mark("request", request.order, request)\n',
        "        resource.open_anchor(request, mode)\n",
    ),
    _in(
        "lock_table",
        "nobody is told what an anchor answered",
        "        assert request is not None\n"
        '        self._state.mark("request", request.order, request)\n',
        "        assert request is not None\n",
    ),
    _in(
        "resource",
        "what an anchor was asked for is remembered too long",
        "self.pending = self.anchor_wanted = None",
        "self.pending = None",
    ),
    _in(
        "lock_state",
        "nobody is told of a lockspace",
        '        self.mark("lockspace", lockspace.name)\n',
        "",
    ),
    _in(
        "lock_state",
        "nobody is told of a new owner",
        "(dict.fromkeys(owner.grants, owner))\n"
        '        self.mark("owner", owner.owner_id)\n',
        "(dict.fromkeys(owner.grants, owner))\n",
    ),
    _in(
        "lock_state",
        "nobody is told of a new session",
        "self._grants_of(session.within))\n"
        '        self.mark("session", session.session_id)\n\n    def enter',
        "self._grants_of(session.within))\n\n    def enter",
    ),
    _in(
        "owners",
        "nobody is told that a session registered",
        "        owner.introduce(command)\n"
        '        self._state.mark("session", session.session_id)\n',
        "        owner.introduce(command)\n",
    ),
    _in(
        "owners",
        "nobody is told of a registered owner",
        '        self._state.mark("session", session.session_id)\n'
        '        self._state.mark("owner", owner.owner_id)\n',
        '        self._state.mark("session", session.session_id)\n',
    ),
    _in(
        "owners",
        "nobody is told that a session gave up its own owner",
        "        self._state.remove_owner(session.session_id)\n",
        "        del self._state.owners[session.session_id]\n",
    ),
    _in(
        "lock_state",
        "nobody is told that a session ended",
        "        del self.sessions[session.session_id]\n"
        '        self.mark("session", session.session_id)\n',
        "        del self.sessions[session.session_id]\n",
    ),
    _in(
        "owners",
        "nobody is told that a process is being ended",
        "            owner.fence(cause)\n"
        '            self._state.mark("owner", owner.owner_id)\n',
        "            owner.fence(cause)\n",
    ),
    _in(
        "owners",
        "nobody is told that an owner is over",
        '        owner.end()\n        self._state.mark("owner", owner.owner_id)\n',
        "        owner.end()\n",
    ),
    _in(
        "owners",
        "nobody is told that an owner is forgotten",
        "        self._state.remove_owner(owner.owner_id)\n",
        "        del self._state.owners[owner.owner_id]\n",
    ),
    _in(
        "lock_table",
        "nobody is told that an anchor is slow",
        "            request.become(DELAYED)\n"
        '            self._state.mark("request", request.order, request)\n',
        "            request.become(DELAYED)\n",
    ),
    _in(
        "recovery/records",
        "a crash gives who opens a place in line, too",
        "            if not place.anchors:\n",
        "            if True:\n",
    ),
    _in(
        "recovery/records",
        "tokens begin anew when the counts are lost",
        '        found["last_token"] = max(found["last_token"], *self.grants, 0)\n',
        "",
    ),
    _in(
        "recovery/mending",
        "holders that exclude each other are believed",
        "        _drop_incompatible(resource)\n",
        "        pass\n",
    ),
    _in(
        "recovery/mending",
        "who waits behind a lost holder waits for ever",
        "    for request in dict.fromkeys(suspects):\n",
        "    for request in []:\n",
    ),
    _in(
        "recovery/mending",
        "who converts what it does not hold is believed",
        "request.is_answered or all(request.strand in x.holders for x in resources)",
        "True",
    ),
    _in(
        "recovery/mending",
        "a request that lost one of its places goes on",
        "        if not _is_in_place(state, request):\n",
        "        if False:\n",
    ),
    _in(
        "recovery/mending",
        "an owner whose session is lost goes on for ever",
        "        if not owner.sessions\n",
        "        if False\n",
    ),
    _in(
        "recovery/mending",
        "a crash lets go the anchors of what is held",
        "        resource.anchor_is(resource.mode if anchored else None)\n",
        "        pass\n",
    ),
    _of_files(
        "files",
        "nobody looks who has a file outside lockd",
        "        looks = not (in_use or only_byte)\n",
        "        looks = False\n",
    ),
    _of_files(
        "files",
        "the command of a holder stands in the way of who joins it",
        "        looks = not (in_use or only_byte)\n",
        "        looks = not only_byte\n",
    ),
    _of_files(
        "kernel",
        "a QEMU that writes is taken for one that reads",
        "    if found is None and mode == SHARED:\n",
        "    if False:\n",
    ),
    _of_files(
        "kernel",
        "who marks a file looks for nobody",
        "        locked = _find_other(fd, mode, marks=marks) is None\n",
        "        locked = True\n",
    ),
    _of_files(
        "kernel",
        "who shares a file looks for no mark",
        "    found = find(fd, _MARK)\n",
        "    found = None\n",
    ),
    _of_files(
        "files",
        "a successor lets go what somebody else tries to get",
        "                kernel.lock_again(fd, mode, marks=file.marks)\n",
        "                kernel.lock(fd, mode, None, marks=file.marks)\n",
    ),
    _of_files(
        "files",
        "a whole file is not narrowed for who follows",
        "            self._narrow(file, path)\n",
        "",
    ),
    _of_files(
        "kernel",
        "a whole shared lock looks for no QEMU that writes",
        "            _find_other(fd, mode, marks=False) or _find_change(fd)\n",
        "            _find_other(fd, mode, marks=False)\n",
    ),
    _of_files(
        "files",
        "a new file that was removed before its lock counts",
        "        return status.st_nlink > 0\n",
        "        return True\n",
    ),
    _of_files(
        "directory",
        "the path of a spare file is not looked at after the lock",
        "        if status is None or (status.st_dev, status.st_ino) != file.inode:\n",
        "        if status is None:\n",
    ),
    _of_files(
        "directory",
        "a spare file that is locked elsewhere by now is in the way",
        "        if status is None or (status.st_dev, status.st_ino) != file.inode:\n",
        "        if refusal is None and (\n"
        "            status is None or (status.st_dev, status.st_ino) != file.inode\n"
        "        ):\n",
    ),
    _of_files(
        "directory",
        "an open spare file serves two lockspaces",
        "        if create is False or file.key.lockspace != self.name:\n",
        "        if create is False:\n",
    ),
    _of_files(
        "directory",
        "a spare file is there for who may not make one",
        "        if create is False or file.key.lockspace != self.name:\n",
        "        if file.key.lockspace != self.name:\n",
    ),
    _of_files(
        "directory",
        "a spare file stays locked",
        "        if not (spares.has_room(path) and unlock(file.fd)):\n",
        "        if not spares.has_room(path):\n",
    ),
    _of_files(
        "directory",
        "a file that was there before is removed as a spare one",
        "        if file is None or not file.may_stay:\n",
        "        if file is None:\n",
    ),
    _of_files(
        "spares",
        "a spare file is removed while somebody else has it locked",
        "        if not is_slow and remove_ours(file, path):\n",
        "        os.unlink(path)\n        if True:\n",
    ),
    _of_files(
        "spares",
        "what took the place of a spare file is removed",
        "        if not leads_to(path, file.inode):\n            return False\n",
        "",
    ),
    _of_files(
        "spares",
        "a copy of a spare file that went stays locked",
        "        unlock(file.fd)\n",
        "",
    ),
    _of_files(
        "spares",
        "a spare file is closed before it is forgotten",
        "        self._forget(file.key)\n        os.close(file.fd)\n",
        "        os.close(file.fd)\n        self._forget(file.key)\n",
    ),
    _of_files(
        "spares",
        "a spare file that is old stays open",
        "        self._forget(file.key)\n        os.close(file.fd)\n",
        "        self._forget(file.key)\n",
    ),
    _of_files(
        "directory",
        "a spare file is shared with who holds it under another name",
        "            self._check_alias(file, path, mode)\n",
        "",
    ),
    _of_files(
        "files",
        "a spare file that is adopted hides who holds it",
        "        if mode is not None:\n            self._shared.by_inode",
        "        if True:\n            self._shared.by_inode",
    ),
    _of_files(
        "files",
        "a lockspace that retires leaves its spare files",
        "        self.finish()\n        self.make_room()\n",
        "        self.finish()\n",
    ),
    _of_files(
        "open_files",
        "spare files keep a file system busy that somebody unmounts",
        "        self.spares.remove_all()\n",
        "",
    ),
]
