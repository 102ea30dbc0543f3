"""The load of a round: who works, who holds, who looks; and who is killed."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

from torture import keepers
from torture.board import SLOTS, Board
from torture.inside import enter, fork
from torture.worker import Worker

QUIET: Final = 6
"""So many, the first ones, ask for nothing when they have got what they hold."""

FIRST_WORKER: Final = 11

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
        workers: int = 14,
        kill_every: float = 0.5,
        is_quiet: bool = False,
    ) -> None:
        self._board = board
        self._seed = seed
        self._workers = 0 if is_quiet else min(workers, SLOTS - FIRST_WORKER)
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
        for slot in range(QUIET if self._is_quiet else FIRST_WORKER + self._workers):
            self._start(slot, chance.randrange(2**32))
        while not self._board.is_over:
            self._sleep(chance.expovariate(1 / self._kill_every))
            self._kill_one(chance)
            self._reap()
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
        if slot >= FIRST_WORKER:
            return Worker(board, slot, seed).run
        keep = partial(keepers.keep, is_quiet=self._is_quiet)
        roles: list[Callable[[Board, int], None]] = [
            *(keep, keep, keepers.probe),
            *(keepers.guest, keepers.guest, keepers.guest),
            *(keepers.rival, keepers.libvirt, keepers.libvirt),
            *(keepers.fenced, keepers.fenced),
        ]
        return partial(roles[slot], board, slot)

    def _kill_one(self, chance: random.Random) -> None:
        """Kills a worker, whatever it does; what it held it held until then."""
        mortal = [pid for pid, slot in self._slots.items() if slot >= FIRST_WORKER]
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
        while self._slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
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
