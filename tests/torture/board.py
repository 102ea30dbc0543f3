"""What workers write while they live: shared memory that outlives each of them.

All words are 64 bits, written one at a time, so that whoever reads sees a word old or
new. A record of a lock that was held is filled in the order in which it happens; the
reader completes those of workers that were killed.
"""

import json
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

SLOTS: Final = 48
RECORDS: Final = 60_000
"""Of each slot. A worker whose records are used up rests for the rest of the round."""

RESOURCES: Final = 256

EXCLUSIVE, SHARED = 1, 2
"""The modes of a hold."""

#: A hold that kept its token when it was converted; it has no place in a queue.
CONVERTED: Final = 1

#: A hold whose worker was killed: whether it had counted is not known.
KILLED: Final = 2

#: A hold that was asked for inside a lock that may have been over: if it was not, it
#: went before those outside, and maybe before others inside.
MAY_OVERTAKE: Final = 4

TALLIES: Final = (
    "grants",
    "cycles",
    "connections",
    "repeated connections",
    "answers",
    "waited",
    "queue places known",
    "converted",
    "several at once",
    "cancelled",
    "libvirt grants",
    "refused",
    "closed while held",
    "fenced",
    "read slowly",
    "cut messages",
    "strands",
    "resumed",
    "misdeeds",
    "stopped for a while",
    "slots",
    "pools emptied",
    "inside",
    "deeper inside",
    "yielded",
    "overdue",
    "broken",
)

FINDINGS: Final = ("went on", "ended", "stayed locked", "not locked", "granted twice")
"""What those say who look after a fault; not for the table of the load."""

_COLUMNS: Final = TALLIES + FINDINGS
_HEADER: Final = 64
_SLOT: Final = 64
_HOLDS: Final = 44  # the first word of the holds in a slot
HOLDS: Final = 4
_HOLD: Final = 4
_WAITS: Final = 60  # the word that says for what a worker waits
_LETS_IN: Final = 61  # and the word that says what others may get inside of
_TOKEN_BITS: Final = 53
_RECORD: Final = 8

_STOP, _FAULT = 0, 1
_COUNTERS: Final = _HEADER
_KEPT: Final = _COUNTERS + RESOURCES
_SLOTS: Final = _KEPT + RESOURCES


def now() -> int:
    """The one clock of the host, in nanoseconds."""
    return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Record:
    """One lock that was held: when asked for, known to be queued, granted, given up.

    Attributes:
        around: the token of the lock that it was inside of, or was asked for when that
            was held; 0: there is none, or it is not known.
    """

    slot: int
    index: int
    resource: int
    mode: int
    flags: int
    sent: int
    queued: int
    granted: int
    ended: int
    token: int
    value: int
    around: int = 0


class Board:
    """The shared memory, and a file for what workers complain about."""

    def __init__(self, complaints: Path) -> None:
        words = _SLOTS + SLOTS * (_SLOT + RECORDS * _RECORD)
        self._memory = mmap.mmap(-1, words * 8)
        self.words = memoryview(self._memory).cast("q")
        self._path = complaints
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._complaints = os.open(complaints, flags, 0o600)
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.words.release()
        self._memory.close()
        os.close(self._complaints)

    def clear(self) -> None:
        """Begins a round: no records, no counters, nobody told to stop."""
        for index in range(_SLOTS):
            self.words[index] = 0
        for slot in range(SLOTS):
            at = self._slot(slot)
            for index in range(_SLOT):
                self.words[at + index] = 0

    # What is said to the workers.

    @property
    def is_over(self) -> bool:
        return self.words[_STOP] != 0

    def stop(self) -> None:
        self.words[_STOP] = 1

    @property
    def last_fault(self) -> int:
        return int(self.words[_FAULT])

    def note_fault(self) -> None:
        """Says that a fault was injected just now: answers may take their time."""
        self.words[_FAULT] = now()

    # What is counted under a lock, without any other protection.

    def counter(self, resource: int) -> int:
        return int(self.words[_COUNTERS + resource])

    def set_counter(self, resource: int, value: int) -> None:
        self.words[_COUNTERS + resource] = value

    # What is held for the whole round.

    def kept_since(self, resource: int) -> int:
        """Returns when it was granted; 0 while nobody holds it for the round."""
        return int(self.words[_KEPT + resource])

    def set_kept(self, resource: int, since: int) -> None:
        self.words[_KEPT + resource] = since

    # What others may get inside of, and for what somebody waits.

    def let_in(self, slot: int, resource: int, token: int) -> None:
        """Says that others may get inside a lock that is held."""
        word = (resource + 1) << _TOKEN_BITS | token
        self.words[self._slot(slot) + _LETS_IN] = word

    def let_nobody_in(self, slot: int) -> None:
        """Says that they may not any more, before it is given up."""
        self.words[self._slot(slot) + _LETS_IN] = 0

    def outer(self, resource: int) -> int:
        """Returns the token of a lock that others may get inside of; 0: there is none.

        As long as it is returned, the lock is held.
        """
        for slot in range(SLOTS):
            word = int(self.words[self._slot(slot) + _LETS_IN])
            if word >> _TOKEN_BITS == resource + 1:
                return word & (1 << _TOKEN_BITS) - 1
        return 0

    def begin_waiting(self, slot: int, resource: int) -> None:
        """Says that a worker has its place in the queue, and is not served yet."""
        self.words[self._slot(slot) + _WAITS] = resource + 1

    def end_waiting(self, slot: int) -> None:
        self.words[self._slot(slot) + _WAITS] = 0

    def is_waited_for(self, resource: int) -> bool:
        words = (self.words[self._slot(slot) + _WAITS] for slot in range(SLOTS))
        return resource + 1 in words

    # What is counted by a worker, for the table.

    def tally(self, slot: int, name: str, count: int = 1) -> None:
        self.words[self._slot(slot) + 1 + _COLUMNS.index(name)] += count

    def total(self, name: str) -> int:
        column = 1 + _COLUMNS.index(name)
        return sum(int(self.words[self._slot(s) + column]) for s in range(SLOTS))

    # Complaints.

    def complain(self, kind: str, what: str) -> None:
        """Reports what must not happen."""
        line = json.dumps([kind, what[:1_500], now()]) + "\n"
        os.write(self._complaints, line.encode())

    def complaints(self) -> list[tuple[str, str, int]]:
        """Returns those that were not returned before."""
        with self._path.open() as file:
            file.seek(self._read)
            text = file.read()
            self._read = file.tell()
        found: list[Any] = [json.loads(line) for line in text.splitlines()]
        return [(kind, what, at) for kind, what, at in found]

    # Records.

    def begin(
        self,
        slot: int,
        resource: int,
        mode: int,
        times: tuple[int, int, int],
        token: int,
        flags: int = 0,
        around: int = 0,
    ) -> int:
        """Adds the record of a hold that begins; returns its index, -1 if it is full.

        It is there at once, with all that it says: who writes it may be killed at any
        moment.

        Args:
            times: when it was asked for, when its place in the queue was known
                (0: never), when the answer was received.
        """
        at = self._slot(slot)
        index = int(self.words[at])
        if index == RECORDS:
            return -1
        record = self._record(slot, index)
        words = self.words
        words[record] = resource | mode << 32 | flags << 40
        words[record + 1], words[record + 2], words[record + 3] = times
        words[record + 4] = 0
        words[record + 5] = token
        words[record + 6] = -1
        words[record + 7] = around
        words[at] = index + 1
        return index

    def set_value(self, slot: int, index: int, value: int) -> None:
        """Says which value of the counter was read, before the next is written."""
        self.words[self._record(slot, index) + 6] = value

    def end(self, slot: int, index: int) -> None:
        """Says that the lock is given up now; to be called before it is."""
        self.set_end(slot, index, now())

    def set_end(self, slot: int, index: int, at: int) -> None:
        self.words[self._record(slot, index) + 4] = at

    def is_full(self, slot: int) -> bool:
        return int(self.words[self._slot(slot)]) > RECORDS - 16

    def end_all(self, slot: int) -> None:
        """Ends what a worker that is about to be killed still holds, or waits for."""
        self.end_waiting(slot)
        self.let_nobody_in(slot)
        for index in range(int(self.words[self._slot(slot)]) - 1, -1, -1):
            at = self._record(slot, index)
            if self.words[at + 4] == 0:
                self.words[at] |= KILLED << 40
                self.end(slot, index)
        for number in range(HOLDS):
            self.hide(slot, number)

    def records(self) -> Iterator[Record]:
        """Returns all records; of a killed worker's last one `value` may be -1."""
        for slot in range(SLOTS):
            for index in range(int(self.words[self._slot(slot)])):
                at = self._record(slot, index)
                words = map(int, self.words[at : at + _RECORD])
                first, *times, token, value, around = words
                sent, queued, granted, ended = times
                yield Record(
                    slot, index, first & 0xFFFFFFFF, first >> 32 & 0xFF, first >> 40,
                    sent, queued, granted, ended, token, value, around,
                )  # fmt: skip

    # What is held at this moment, for the prober.

    def show(self, slot: int, number: int, resource: int, mode: int) -> None:
        """Shows a hold; only what has a file and has been granted."""
        at = self._hold(slot, number)
        self.words[at + 1] = resource
        self.words[at + 2] = mode
        self.words[at] += 1  # odd: held

    def hide(self, slot: int, number: int) -> None:
        """Withdraws a hold that was shown, before it is given up."""
        at = self._hold(slot, number)
        if self.words[at] % 2:
            self.words[at] += 1

    def look(self, slot: int, number: int) -> tuple[int, int, int]:
        """Returns the turn (odd: held), the resource and the mode."""
        at = self._hold(slot, number)
        return int(self.words[at]), int(self.words[at + 1]), int(self.words[at + 2])

    def _slot(self, slot: int) -> int:
        return _SLOTS + slot * _SLOT

    def _hold(self, slot: int, number: int) -> int:
        return self._slot(slot) + _HOLDS + number * _HOLD

    def _record(self, slot: int, index: int) -> int:
        first = _SLOTS + SLOTS * _SLOT
        return first + (slot * RECORDS + index) * _RECORD
