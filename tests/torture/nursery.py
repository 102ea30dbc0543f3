"""The load of a round: who works, who holds, who looks, who misbehaves.

Some of them are killed, and of those who misbehave some are stopped for seconds.
"""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

from campaigns.misbehaving import MISDEEDS, Crowd
from torture import keepers
from torture.board import Board
from torture.inside import enter, fork
from torture.insiders import Insider
from torture.line import SOCKET
from torture.listeners import Idler, Late
from torture.worker import Worker

QUIET: Final = 6
"""So many, the first ones, ask for nothing when they have got what they hold."""

FIRST_LATE: Final = 11
FIRST_MORTAL: Final = 13
MORTAL: Final[tuple[type[Worker], ...]] = (*[Idler] * 2, *[Insider] * 3, *[Worker] * 12)
"""Who may be killed at any moment."""

FIRST_MISBEHAVING: Final = FIRST_MORTAL + len(MORTAL)

MISBEHAVING_UIDS: Final = (61_001, 61_002)
"""They are in the group lockd. What they do is charged to them, not to the workers."""

CONNECTIONS: Final = 50
"""Of each of them: many end at once, and each start takes over a few hundred. With more
a round is mostly starts; `campaigns.watchers` has the hundreds that end at once."""

MISDEED_PAUSE: Final = 0.04
"""Seconds between two things that one of them does, on average."""

TALLY_OF: Final = {"acted": "misdeeds", "stopped": "stopped for a while"}

LAST_SECONDS: Final = 60.0
"""Within which everybody must be done when the round is over."""


class Nursery:
    """Processes inside the machine; a parent of theirs kills some and makes new ones.

    Args:
        kill_every: seconds from one killed worker to the next, on average.
        is_quiet: only who holds for the whole round, and asks for nothing.
    """

    def __init__(
        self,
        board: Board,
        first_pid: int,
        seed: int,
        *,
        kill_every: float = 0.5,
        is_quiet: bool = False,
    ) -> None:
        self._board = board
        self._seed = seed
        self._is_quiet = is_quiet
        self._kill_every = kill_every
        self._slots: dict[int, int] = {}
        self._pid = fork(partial(self._run, first_pid))

    def wait(self) -> None:
        """Waits for the end of all, after `Board.stop`."""
        _, status = os.waitpid(self._pid, 0)
        if status:
            self._board.complain("harness", f"the nursery ended with {status}")

    def _run(self, first_pid: int) -> None:
        enter(first_pid)
        chance = random.Random(self._seed)
        for slot in range(QUIET if self._is_quiet else FIRST_MISBEHAVING):
            self._start(slot, chance.randrange(2**32))
        crowd = Crowd(
            SOCKET,
            MISBEHAVING_UIDS,
            count=0 if self._is_quiet else len(MISDEEDS),
            connections=CONNECTIONS,
            pause=MISDEED_PAUSE,
            is_over=lambda: self._board.is_over,
            note=self._note,
            seed=chance.randrange(2**32),
        )
        while not self._board.is_over:
            self._sleep(chance.expovariate(1 / self._kill_every))
            self._kill_one(chance)
            crowd.disturb()
            self._reap()
        crowd.end()
        self._end()

    def _sleep(self, seconds: float) -> None:
        """Sleeps for so long, but not beyond the end of the round."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._board.is_over:
            time.sleep(min(left, 0.05))

    def _start(self, slot: int, seed: int) -> None:
        self._slots[fork(partial(self._guarded, self._role(slot, seed), slot))] = slot

    def _guarded(self, role: Callable[[], None], slot: int) -> None:
        try:
            role()
        except Exception:
            self._board.end_all(slot)
            self._board.complain("harness", f"{slot}: {traceback.format_exc()}")

    def _role(self, slot: int, seed: int) -> Callable[[], None]:
        board = self._board
        if slot >= FIRST_MORTAL:
            return MORTAL[slot - FIRST_MORTAL](board, slot, seed).run
        if slot >= FIRST_LATE:
            return Late(board, slot, seed).run
        keep = partial(keepers.keep, is_quiet=self._is_quiet)
        roles: list[Callable[[Board, int], None]] = [
            *(keep, keep, keepers.probe),
            *(keepers.guest, keepers.guest, keepers.guest),
            *(keepers.rival, keepers.libvirt, keepers.libvirt),
            *(keepers.fenced, keepers.fenced),
        ]
        return partial(roles[slot], board, slot)

    def _note(self, number: int, what: str) -> None:
        if what == "failed":
            self._board.complain("harness", f"who misbehaves as number {number} failed")
        elif what in TALLY_OF:
            self._board.tally(FIRST_MISBEHAVING + number, TALLY_OF[what])

    def _kill_one(self, chance: random.Random) -> None:
        """Kills a worker, whatever it does; what it held it held until then."""
        mortal = [pid for pid, slot in self._slots.items() if slot >= FIRST_MORTAL]
        if not mortal or self._board.is_over:
            return
        pid = chance.choice(mortal)
        os.kill(pid, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        slot = self._slots.pop(pid)
        if not os.WIFSTOPPED(status):
            return  # it has ended by itself
        self._board.end_all(slot)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._start(slot, chance.randrange(2**32))

    def _reap(self) -> None:
        for pid in list(self._slots):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._note_end(pid, status)

    def _note_end(self, pid: int, status: int) -> None:
        slot = self._slots.pop(pid)
        if status:
            self._board.complain("killed", f"{slot} ended with {status}")
            self._board.end_all(slot)

    def _end(self) -> None:
        end = time.monotonic() + LAST_SECONDS
        while self._slots and time.monotonic() < end:
            self._reap()
            time.sleep(0.01)
        for pid, slot in self._slots.items():
            self._board.complain("unanswered", f"{slot} does not come to its end")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._board.end_all(slot)
