"""A round: load, faults, calm, and what the records, the kernel and the daemon say."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from torture import inside, keepers
from torture.board import Board
from torture.judge import Judge
from torture.line import UnansweredError
from torture.nursery import Nursery
from torture.places import GUEST_DISKS
from torture.target import Target, Use

ENOUGH: Final = 200
"""Grants before the first and after the last fault; with fewer a round is nothing."""

WARM_SECONDS: Final = 30.0
CALM_SECONDS: Final = 15.0

FDS_SLACK: Final = 4
IN_FLIGHT_SLACK: Final = 512
"""Copies of descriptors given up that may still wait for the next compaction."""

MEMORY_FACTOR: Final = 1.5
MEMORY_SLACK: Final = 32 * 1024
"""KiB. So many times as much as at the start, and so much more, may be in use when all
are gone, as in the soak: what comes and goes leaves holes between what stays."""

BACK_SECONDS: Final = 60.0
"""Within which all that was used must be given back when all are gone."""

MOST_SHARED: Final = 136 * 2**20
"""Bytes of shared memory that the daemon may have at any time.

Each of three users, root with the workers that read slowly among them, may leave 8 MiB
unread (`unread_bytes_per_user`). Both files of the ledger together take up to five
times as much. 16 MiB are for what is held.
"""


def most_of(kib: float) -> float:
    """Returns how much memory may be in use where there was so much at the start."""
    return MEMORY_FACTOR * kib + MEMORY_SLACK


@dataclass
class Counted:
    """What came of rounds of one kind."""

    name: str
    rounds: int = 0
    discarded: int = 0
    faults: int = 0
    faults_under_load: int = 0
    grants: int = 0
    violations: int = 0
    seconds: float = 0.0
    most_shared: int = 0
    tallies: dict[str, int] = field(default_factory=dict)


class Pulse:
    """Tells how much was granted since it was last asked."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._last = 0

    def take(self) -> int:
        total = self._board.total("grants")
        taken, self._last = total - self._last, total
        return taken


class Faults:
    """What a kind of round does to the daemon; it says each fault to `strike`."""

    def __init__(self, target: Target, board: Board, chance: random.Random) -> None:
        self.target, self.board, self.chance = target, board, chance
        self.count = 0
        self.under_load = 0
        self.most_shared = 0
        self._pulse = Pulse(board)

    def strike(self, fault: Callable[[], object]) -> None:
        """Injects a fault, and counts it: under load if anything was granted since."""
        self.board.note_fault()
        self.under_load += self._pulse.take() > 0
        self.look_at_memory()
        fault()
        self.count += 1
        self.board.note_fault()

    def look_at_memory(self) -> None:
        self.most_shared = max(self.most_shared, self.target.shared_bytes())


Kind = Callable[[Faults, float], None]
"""Injects faults for so many seconds."""


class Rounds:
    """Rounds of several kinds, judged one after the other."""

    def __init__(self, target: Target, board: Board, judge: Judge, seed: int) -> None:
        self.target, self.board, self.judge = target, board, judge
        self._chance = random.Random(seed)
        self._start = self.used = self._use()
        target.defects()

    def round(self, counted: Counted, kind: Kind, seconds: float) -> None:
        """Runs and judges one round."""
        began = time.monotonic()
        board = self.board
        known = self.judge.count
        board.clear()
        board.note_fault()
        nursery = Nursery(board, self.target.first_pid, self._chance.randrange(2**32))
        before = after = 0
        faults = Faults(self.target, board, self._chance)
        try:
            before = self._wait_for_grants(ENOUGH, WARM_SECONDS)
            kind(faults, seconds)
            faults.look_at_memory()
            self._settle()
            after = self._wait_for_grants(ENOUGH, CALM_SECONDS)
        except UnansweredError:  # has been complained of: what was it doing?
            self.judge.say("unanswered", self.target.story())
        finally:
            board.stop()
            nursery.wait()
        self.judge.judge(board)
        self._look_at_the_end(faults.most_shared)
        found = self.judge.count - known
        counted.rounds += 1
        counted.discarded += min(before, after) < ENOUGH
        counted.faults += faults.count
        counted.faults_under_load += faults.under_load
        counted.grants += board.total("grants")
        counted.violations += found
        counted.most_shared = max(counted.most_shared, faults.most_shared)
        counted.seconds += time.monotonic() - began

    def _wait_for_grants(self, count: int, seconds: float) -> int:
        pulse = Pulse(self.board)
        pulse.take()
        end = time.monotonic() + seconds
        granted = 0
        while granted < count and time.monotonic() < end:
            time.sleep(0.05)
            granted += pulse.take()
        return granted

    def _settle(self) -> None:
        """Waits until the daemon serves: from here on answers must come soon."""
        self.target.statistics(self.board)
        self.board.note_fault()

    def _use(self) -> Use:
        """Counts what is used by a daemon that was just started, and then was quiet."""
        self.target.machine.run("systemctl", "restart", "lockd.service")
        self.target.statistics(self.board)
        return self.target.quiet_use()

    def _look_at_the_end(self, most_shared: int) -> None:
        """When all are gone nothing is held, and nothing is used up.

        Args:
            most_shared: bytes of shared memory that were seen in the round.
        """

        def must(kind: str, what: str, is_good: bool) -> None:
            if not is_good:
                self.judge.say(kind, what)

        for place in GUEST_DISKS:
            free = inside.call(self.target.first_pid, partial(keepers.wait_free, place))
            must("left", f"{place.name} is locked when all are gone", free)
        end = time.monotonic() + 10
        while True:
            said = self.target.statistics(self.board)
            left = (said["held"], said["waiting"], said["sessions"] - 1)
            if not any(left) or time.monotonic() > end:
                break
            time.sleep(0.1)
        must("left", f"{left} held, waiting, sessions when all are gone", not any(left))
        end = time.monotonic() + BACK_SECONDS
        while self._left(used := self.target.quiet_use()) and time.monotonic() < end:
            time.sleep(1)
        for kind, what in self._left(used):
            must(kind, f"{what}: {used} from {self._start}", is_good=False)
        for line in self.target.defects():
            must("defect", line, is_good=False)
        must("shared memory", f"{most_shared / 2**20:.0f} MiB",
             most_shared <= MOST_SHARED)  # fmt: skip
        self.used = used

    def _left(self, used: Use) -> list[tuple[str, str]]:
        """Returns what is in use that was not before: the kind of finding, and what."""
        start = self._start
        more = {
            ("left", "descriptors of lockd"):
                used.daemon_fds - start.daemon_fds - FDS_SLACK,
            ("left", "descriptors of the keeper"):
                used.keeper_fds - start.keeper_fds - FDS_SLACK,
            ("left", "descriptors in flight"):
                used.in_flight - start.in_flight - IN_FLIGHT_SLACK,
            ("memory", "of lockd"): used.daemon_kib - most_of(start.daemon_kib),
            ("memory", "of the keeper"): used.keeper_kib - most_of(start.keeper_kib),
        }  # fmt: skip
        return [name for name, excess in more.items() if excess > 0]
