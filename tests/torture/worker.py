"""A worker: it counts under locks, in all the ways in which locks can be had.

What it does to a counter is read, spin, write plus one: whoever shares a lock that is
not shared spoils the count. Every lock it holds is on the board, from the answer that
granted it to the moment before it is given up.
"""

import random
import time
from collections.abc import Callable
from typing import Any, Final

from torture.board import CONVERTED, EXCLUSIVE, HOLDS, SHARED, Board, now
from torture.line import (
    EndedError,
    Line,
    LostError,
    NeverServedError,
    Refused,
    UnansweredError,
)
from torture.places import (
    CONFIGURED,
    DWELT,
    FILES,
    IDLE,
    MEMORY,
    POOLS,
    TREES,
    Place,
)

LINE_LIFE: Final = 0.02
"""How likely a session ends after a cycle."""

STRANDS: Final = (0, 0, 1, 2**32 - 1)
"""For whom it asks: mostly for all of itself, else as one of its threads."""

MODES: Final = {EXCLUSIVE: "exclusive", SHARED: "shared"}


class Hold:
    """A lock on the board."""

    def __init__(
        self,
        board: Board,
        slot: int,
        place: Place,
        mode: int,
        times: tuple[int, int, int],
        token: int,
        flags: int = 0,
        around: int = 0,
    ) -> None:
        self.place, self.mode, self.token = place, mode, token
        self._board, self._slot = board, slot
        number = place.number
        self._index = board.begin(slot, number, mode, times, token, flags, around)
        board.tally(slot, "grants")
        self._shown = -1
        if place.path is not None:
            for number in range(HOLDS):
                if board.look(slot, number)[0] % 2 == 0:
                    board.show(slot, number, place.number, mode)
                    self._shown = number
                    break

    def again(self, mode: int) -> "Hold":
        """Begins the hold of another mode, under the same token."""
        times = (at := now()), 0, at
        board, slot = self._board, self._slot
        return Hold(board, slot, self.place, mode, times, self.token, CONVERTED)

    def count(self, spin: float) -> None:
        """Adds 1 to the counter, or looks whether it stays as it is."""
        board, number = self._board, self.place.number
        value = board.counter(number)
        if self.mode == EXCLUSIVE:
            board.set_value(self._slot, self._index, value)
        end = time.monotonic() + spin
        while time.monotonic() < end:
            pass
        if self.mode == EXCLUSIVE:
            board.set_counter(number, value + 1)
        elif board.counter(number) != value:
            board.complain("counter", f"{self.place.name} changed while held shared")

    def end(self) -> None:
        """To be called before the lock is given up."""
        self.end_at(now())

    def end_at(self, at: int) -> None:
        """Says until when it was held for sure."""
        if self._shown >= 0:
            self._board.hide(self._slot, self._shown)
        self._board.set_end(self._slot, self._index, at)


class Worker:
    """Goes on until the round is over, over as many sessions as it takes."""

    def __init__(self, board: Board, slot: int, seed: int) -> None:
        self._board, self._slot = board, slot
        self._chance = random.Random(seed)
        self._line: Line | None = None
        self._holds: list[Hold] = []
        self._strand = 0
        self._instance = ""
        self._made = 0

    def run(self) -> None:
        steps, weights = zip(*self._steps(), strict=True)
        while not self._board.is_over and not self._board.is_full(self._slot):
            (step,) = self._chance.choices(steps, weights)
            self._guarded(step)
            self._board.tally(self._slot, "cycles")
            if self._chance.random() < LINE_LIFE:
                self._guarded(self._leave)
            time.sleep(self._chance.choice((0, 0, 0, 0.001, 0.004)))
        self._guarded(self._leave)

    def _steps(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self._exclusive, 30),
            (self._queued, 30),
            (self._shared, 12),
            (self._convert, 8),
            (self._several, 8),
            (self._try, 4),
            (self._timeout, 3),
            (self._cancel, 4),
            (self._close_while_held, 1),
            (self._read_slowly, 0.5),
            (self._dwell, 1),
            (self._use_slot, 10),
            (self._empty_pool, 1),
            (self._let_in, 8),
            (self._want, 6),
            (self._want_in_vain, 3),
        ]

    def _guarded(self, step: Callable[[], None]) -> None:
        """Carries out a step; what goes wrong with the session ends the session."""
        try:
            step()
        except (LostError, NeverServedError, UnansweredError, EndedError):
            self._drop()
        except Refused as refusal:
            self._board.complain("unexpected answer", f"{step.__name__}: {refusal}")
            self._drop()

    def _session(self) -> Line:
        if self._line is None:
            self._made += 1
            name = f"worker {self._slot} session {self._made}"
            line = Line(self._board, self._slot, name)
            self._line = line
            told = line.call("hello", protocol=1, client="torture", **self._within())
            self._instance = told["instance"]
        return self._line

    def _within(self) -> dict[str, object]:
        """Returns what it says of the locks that it is within."""
        return {}

    def _drop(self) -> None:
        self._board.let_nobody_in(self._slot)
        for hold in self._holds:
            hold.end()
        self._holds = []
        if self._line is not None:
            self._line.close()
        self._line = None

    def _leave(self) -> None:
        if self._line is not None:
            line, self._line = self._line, None
            line.finish()

    def _place(self) -> Place:
        return self._chance.choice(self._chance.choice((MEMORY, FILES)))

    def _spin(self) -> float:
        return self._chance.choice((0, 0, 0.0002, 0.001))

    # The steps.

    def _exclusive(self) -> None:
        self._hold_and_release([self._place()], EXCLUSIVE, is_queued=False)

    def _queued(self) -> None:
        self._hold_and_release([self._place()], EXCLUSIVE, is_queued=True)

    def _shared(self) -> None:
        self._hold_and_release([self._place()], SHARED, is_queued=True)

    def _several(self) -> None:
        places = self._chance.sample(self._chance.choice((MEMORY, FILES)), 2)
        self._board.tally(self._slot, "several at once")
        self._hold_and_release(places, EXCLUSIVE, is_queued=True)

    def _hold_and_release(
        self, places: list[Place], mode: int, *, is_queued: bool
    ) -> None:
        if self._acquire(places, mode, is_queued=is_queued):
            for hold in self._holds:
                hold.count(self._spin())
            self._release()

    def _try(self) -> None:
        self._acquire_or([self._place()], ("busy",), timeout=0)

    def _timeout(self) -> None:
        self._acquire_or([self._place()], ("timeout",), timeout=0.02)

    def _acquire_or(
        self, places: list[Place], allowed: tuple[str, ...], **params: object
    ) -> None:
        try:
            self._acquire(places, EXCLUSIVE, is_queued=False, **params)
        except Refused as refusal:
            if refusal.code not in allowed:
                raise
            self._board.tally(self._slot, "refused")
            return
        for hold in self._holds:
            hold.count(0)
        self._release()

    def _cancel(self) -> None:
        line, place = self._session(), self._place()
        asked = now()
        wanted = self._params([place], EXCLUSIVE)
        msgid, cancel = line.ask_all(
            [("acquire", wanted), ("cancel", {"request": line.next_msgid})]
        )
        try:
            result, at = line.wait_timed(msgid)
        except Refused as refusal:
            if refusal.code != "cancelled":
                raise
            self._board.tally(self._slot, "cancelled")
        else:
            self._take([place], EXCLUSIVE, (asked, 0, at), result)
            self._release()
        line.wait(cancel)

    def _convert(self) -> None:
        """Shared, exclusive, shared again; of two who try the second is refused."""
        place, line = self._place(), self._session()
        self._acquire([place], SHARED, is_queued=False)
        try:
            line.call("convert", **self._names_of(self._holds[0]), mode="exclusive")
        except Refused as refusal:
            if refusal.code != "deadlock":
                raise
        else:
            self._holds[0].end()
            self._holds = [self._holds[0].again(EXCLUSIVE)]
            self._holds[0].count(self._spin())
            # It counts as exclusive to the moment before the question.
            (hold,), self._holds = self._holds, []
            hold.end()
            line.call("convert", **self._names_of(hold), mode="shared")
            self._holds = [hold.again(SHARED)]
            self._board.tally(self._slot, "converted")
        self._release()

    def _close_while_held(self) -> None:
        self._acquire([self._place()], EXCLUSIVE, is_queued=False)
        self._board.tally(self._slot, "closed while held")
        self._drop()

    def _dwell(self) -> None:
        """Holds for long what was held before, so that a kill most likely meets it."""
        self._acquire([self._chance.choice(DWELT)], EXCLUSIVE, is_queued=True)
        self._holds[0].count(0)
        time.sleep(self._chance.uniform(0.05, 0.3))
        self._release()

    def _read_slowly(self) -> None:
        """Asks for much at once, and reads it in small pieces."""
        line = self._session()
        name = f"own-{self._slot}"
        calls: list[tuple[str, dict[str, object]]] = []
        for index in range(30):
            one: dict[str, object] = {"resource": f"{name}-{index % 7}"}
            calls += [("acquire", one), ("query", one), ("release", one)]
        line.chunk, line.pause = 700, 0.0005
        try:
            for msgid in line.ask_all(calls):
                line.wait(msgid)
        finally:
            line.chunk, line.pause = 65_536, 0.0
        self._board.tally(self._slot, "read slowly")

    def _use_slot(self) -> None:
        pool = self._chance.choice(POOLS)
        told = pool is CONFIGURED and self._chance.random() < 0.5
        self._acquire(
            pool[:1],
            EXCLUSIVE,
            is_queued=True,
            mode="slot",
            slots=told or len(pool),
        )
        self._board.tally(self._slot, "slots")
        self._holds[0].count(self._spin())
        time.sleep(self._chance.uniform(0.02, 0.3))
        self._release()

    def _empty_pool(self) -> None:
        """Holds all slots at once: nobody is in any of them."""
        pool = self._chance.choice(POOLS)
        self._acquire(pool[:1], EXCLUSIVE, is_queued=True)
        self._board.tally(self._slot, "pools emptied")
        for place in pool[1:]:
            times = (at := now()), 0, at
            self._holds.append(
                Hold(self._board, self._slot, place, EXCLUSIVE, times, token=0)
            )
        for hold in self._holds:
            hold.count(self._spin())
        self._release()

    def _let_in(self) -> None:
        """Holds what others get inside of, and may release it before they do."""
        board, place = self._board, self._chance.choice(TREES)
        self._acquire([place], EXCLUSIVE, is_queued=True)
        self._holds[0].count(self._spin())
        board.let_in(self._slot, place.number, self._holds[0].token)
        time.sleep(self._chance.uniform(0.01, 0.1))
        board.let_nobody_in(self._slot)
        self._release()

    def _want(self) -> None:
        place = self._chance.choice(IDLE)
        self._hold_and_release([place], EXCLUSIVE, is_queued=True)

    def _want_in_vain(self) -> None:
        self._acquire_or([self._chance.choice(IDLE)], ("timeout",), timeout=0.01)

    # How a lock is had, and given up.

    def _names(self, place: Place) -> dict[str, object]:
        return {"lockspace": place.lockspace, "resource": place.name}

    def _names_of(self, hold: Hold) -> dict[str, object]:
        """Names a lock that it holds: a name alone means the whole session's."""
        if self._strand:
            return {"fencing_token": hold.token}
        return self._names(hold.place)

    def _params(self, places: list[Place], mode: int) -> dict[str, object]:
        params: dict[str, object] = {"lockspace": places[0].lockspace}
        if self._strand:
            params["strand"] = self._strand
        if len(places) == 1:
            params["resource"] = places[0].name
        else:
            params["resources"] = [place.name for place in places]
        return params | {"mode": MODES[mode]}

    def _acquire(
        self, places: list[Place], mode: int, /, *, is_queued: bool, **more: object
    ) -> bool:
        """Acquires; with `is_queued` it is learned when the place in the queue is sure.

        The question that follows on the same connection is answered after the request
        was carried out: who asks later than that must be behind.
        """
        line = self._session()
        self._strand = self._chance.choice(STRANDS)
        if self._strand:
            self._board.tally(self._slot, "strands")
        calls = [("acquire", self._params(places, mode) | more)]
        if is_queued:
            calls.append(("query", self._names(places[0])))
        cut = self._chance.randrange(1, 20) if self._chance.random() < 0.1 else 0
        if cut:
            self._board.tally(self._slot, "cut messages")
        asked = now()
        msgid, *query = line.ask_all(calls, cut)
        queued = 0
        if query:
            result, queued = line.wait_timed(query[0])
            self._board.tally(self._slot, "queue places known")
            if result["waiter_count"] and not line.is_answered(msgid):
                self._board.tally(self._slot, "waited")
                self._board.begin_waiting(self._slot, places[0].number)
            self._is_queued(places[0])
        try:
            result, at = line.wait_timed(msgid)
        finally:
            self._board.end_waiting(self._slot)
        self._take(places, mode, (asked, queued, at), result)
        return True

    def _is_queued(self, place: Place) -> None:
        """Is called when it has its place in the queue, or the lock."""

    def _take(
        self, places: list[Place], mode: int, times: tuple[int, int, int], result: Any
    ) -> None:
        grants = result["grants"] if len(places) > 1 else [result["grant"]]
        self._holds = []
        for place, grant in zip(places, grants, strict=True):
            at = self._slot_of(place, grant) if "slot" in grant else place
            token, around = grant["fencing_token"], self._around_of(grant)
            hold = Hold(self._board, self._slot, at, mode, times, token, *around)
            self._holds.append(hold)

    def _around_of(self, grant: dict[str, Any]) -> tuple[int, int]:
        """Returns flags, and the token of what it is inside of."""
        return 0, 0

    def _slot_of(self, place: Place, grant: dict[str, int]) -> Place:
        """Returns where it is in a pool."""
        pool = next(x for x in POOLS if place in x)
        if grant["slots"] != len(pool) or not 0 <= grant["slot"] < len(pool):
            self._board.complain("slot", f"{place.name} has {len(pool)}: {grant}")
            return place
        return pool[grant["slot"]]

    def _release(self) -> None:
        line, holds, self._holds = self._session(), self._holds, []
        for hold in holds:
            hold.end()
        holds = [hold for hold in holds if hold.token]  # the others are part of one
        if self._strand:
            for hold in holds:
                line.call("release", fencing_token=hold.token)
            return
        first = holds[0].place
        names = [hold.place.name for hold in holds]
        line.call("release", lockspace=first.lockspace, resources=names)
