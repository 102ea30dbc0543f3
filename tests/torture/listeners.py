"""Those who listen whether somebody waits for what they hold, or it is overdue."""

import time
from collections.abc import Callable
from typing import Final

from torture.board import EXCLUSIVE, now
from torture.line import PATIENCE, Line, Refused
from torture.places import HURRIED, HURRIED_SECONDS, IDLE, LATE
from torture.worker import Worker

SOON: Final = 0.1
"""Seconds for which one who is late says that it may hold."""

LONG: Final = 30.0
"""The same, where the lockspace allows less."""


class Idler(Worker):
    """Holds what it does not need, until it hears that somebody waits."""

    def _steps(self) -> list[tuple[Callable[[], None], float]]:
        return [(self._idle, 1)]

    def _idle(self) -> None:
        board, place = self._board, IDLE[self._slot % len(IDLE)]
        line = self._session()
        before = len(line.notices)
        self._acquire([place], EXCLUSIVE, is_queued=False, wanted=True)
        self._holds[0].count(self._spin())
        is_wanted, agreed = False, now()
        # Some of those who wait give up before it yields.
        while not is_wanted or self._chance.random() < 0.8:
            line.look(0.002)
            is_wanted = line.notices[before:][-1:] == ["wanted"]
            if is_wanted == board.is_waited_for(place.number):
                agreed = now()
                if board.is_over:
                    break
            elif now() - max(agreed, board.last_fault) > PATIENCE * 1e9:
                heard = line.notices[before:]
                board.complain("notice", f"idler {self._slot} heard only {heard}")
                break
        self._board.tally(self._slot, "yielded", is_wanted)
        self._release()


class Late(Worker):
    """Holds for longer than allowed. It must not be killed.

    What it holds ends without its doing, at a moment that it does not know: so it says
    only until when it holds for sure.
    """

    def _steps(self) -> list[tuple[Callable[[], None], float]]:
        return [(self._be_late, 1)]

    def _be_late(self) -> None:
        place = self._chance.choice(LATE)
        is_taken = place.lockspace == HURRIED
        own = self._chance.choice((None, SOON, LONG) if is_taken else (SOON,))
        wish: dict[str, object] = {} if own is None else {"max_hold": own}
        line = self._session()
        line.may_break = True
        before, asked = len(line.notices), now()
        try:
            if self._chance.random() < 0.5:
                self._acquire([place], EXCLUSIVE, is_queued=True, **wish)
            else:  # then it knows better when it was granted
                self._acquire([place], EXCLUSIVE, is_queued=False, timeout=0, **wish)
        except Refused as refusal:
            if refusal.code != "busy":
                raise
            time.sleep(self._chance.uniform(0, SOON))
            return
        (hold,) = self._holds
        seconds = min(own or LONG, HURRIED_SECONDS if is_taken else LONG)
        due = asked + int(seconds * 1e9)

        def heard() -> tuple[list[str], bool]:
            return line.notices[before:], hold.token in line.broken

        self._listen(line, lambda: now() >= due or heard() != ([], False))
        if now() < due:
            self._board.complain("overdue", f"{place.name} too early: {heard()}")
        if is_taken:
            hold.end_at(due)
            self._holds = []
        wanted = (["overdue"] if own else [], is_taken)
        since = now()
        self._listen(line, lambda: heard() == wanted or self._is_too_long(since))
        if not is_taken:
            self._release()
        line.call("statistics")  # what it was told before has come
        if heard() != wanted:
            self._board.complain("overdue", f"{place.name}: {heard()}, not {wanted}")
            self._drop()
        self._board.tally(self._slot, "overdue", len(wanted[0]))
        self._board.tally(self._slot, "broken", is_taken)

    def _is_too_long(self, since: int) -> bool:
        return now() - max(since, self._board.last_fault) > PATIENCE * 1e9

    def _listen(self, line: Line, is_done: Callable[[], bool]) -> None:
        while not is_done():
            line.look(0.002)
