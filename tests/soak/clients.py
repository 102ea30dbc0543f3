"""The clients of the soak: the honest, who count under locks, and the others."""

import mmap
import os
import random
import signal
import time
from collections import Counter
from functools import partial
from typing import Final

from campaigns.misbehaving import MISDEEDS, Crowd, become
from torture.board import EXCLUSIVE, RECORDS, Board, now
from torture.inside import enter, fork
from torture.line import (
    SOCKET,
    EndedError,
    Line,
    LostError,
    NeverServedError,
    Refused,
    UnansweredError,
)
from torture.places import FILES, KEPT, MEMORY, Place
from torture.worker import Hold

HONEST_UID: Final = 61_003
MISBEHAVING_UIDS: Final = (61_001, 61_002)

CYCLES: Final = 20.0
"""How often each honest client takes a lock of its own and a shared one, a second."""

CONNECTIONS: Final = 8
PAUSE: Final = 1.0
"""Seconds between two things that one client does: all of them share the processors
with the daemon and the honest."""

DISTURBED: Final = 0.2
"""Seconds from one client that is killed or stopped to the next."""


class Honest:
    """Some clients of one user that take locks and put every grant on the board.

    Args:
        seconds: for which they will run, so that the board has room for it.
    """

    def __init__(
        self, board: Board, first_pid: int, count: int, seconds: float
    ) -> None:
        self._board = board
        self._pause = max(1 / CYCLES, 3 * seconds / RECORDS)
        self._pid = fork(partial(self._run, first_pid, count))

    def wait(self) -> None:
        """Waits for the end of all, after `Board.stop`."""
        _, status = os.waitpid(self._pid, 0)
        if status:
            self._board.complain("harness", f"the honest ended with {status}")

    def _run(self, first_pid: int, count: int) -> None:
        enter(first_pid)
        pids = [fork(partial(self._work, slot)) for slot in range(count)]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(statuses):
            raise ChildProcessError(statuses)

    def _work(self, slot: int) -> None:
        become(HONEST_UID)
        chance = random.Random(slot)
        line: Line | None = None
        while not self._board.is_over:
            try:
                if line is None:
                    line = Line(self._board, slot, f"honest client {slot}")
                self._hold(line, slot, own_place(slot))
                self._hold(line, slot, chance.choice(MEMORY + FILES))
            except (EndedError, LostError, NeverServedError, UnansweredError):
                line = None  # the line has complained of it
            except Refused as refusal:
                self._board.complain("unexpected answer", str(refusal))
            time.sleep(self._pause * chance.uniform(0.5, 1.5))
        if line is not None:
            line.finish()

    def _hold(self, line: Line, slot: int, place: Place) -> None:
        names: dict[str, object] = {
            "lockspace": place.lockspace,
            "resource": place.name,
        }
        asked = now()
        result, at = line.wait_timed(line.ask("acquire", **names))
        token = result["grant"]["fencing_token"]
        hold = Hold(self._board, slot, place, EXCLUSIVE, (asked, 0, at), token)
        hold.count(0)
        hold.end()
        line.call("release", **names)


def own_place(slot: int) -> Place:
    """A lock that only one honest client wants: it waits for nobody but the daemon."""
    return KEPT[slot]


class Misbehaving:
    """A crowd of those who misbehave, some of them killed or stopped all the time."""

    _WHAT: Final = ("acted", "killed", "stopped", "failed")

    def __init__(self, first_pid: int, count: int, seed: int) -> None:
        self._count = count
        #: How often what happened to whom. Each word has one writer at a time.
        self._words = memoryview(mmap.mmap(-1, 8 * count * len(self._WHAT))).cast("q")
        self._pid = fork(partial(self._run, first_pid, seed))

    def end(self) -> None:
        """Kills all of them at once."""
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)

    def counts(self) -> dict[str, Counter[str]]:
        """Returns how often each kind acted, was killed, was stopped, or failed."""
        found = {name: Counter[str]() for name in MISDEEDS}
        for number in range(self._count):
            name = list(MISDEEDS)[number % len(MISDEEDS)]
            for index, what in enumerate(self._WHAT):
                found[name][what] += self._words[number * len(self._WHAT) + index]
        return found

    def _note(self, number: int, what: str) -> None:
        self._words[number * len(self._WHAT) + self._WHAT.index(what)] += 1

    def _run(self, first_pid: int, seed: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        enter(first_pid)
        crowd = Crowd(
            SOCKET,
            MISBEHAVING_UIDS,
            count=self._count,
            connections=CONNECTIONS,
            pause=PAUSE,
            is_over=lambda: False,
            note=self._note,
            seed=seed,
        )
        while signal.sigtimedwait({signal.SIGTERM}, DISTURBED) is None:
            crowd.disturb()
        crowd.end()
