"""Keeps descriptors that outlive the process: unreceived messages between sockets.

A descriptor that was sent (SCM_RIGHTS, unix(7)) and not yet received refers to its open
file like any other. Its lock stays held, and its connection stays open. The service
manager keeps the few sockets that hold these messages, so they survive the death of the
daemon.

A queued message cannot be withdrawn. Only the first message can be removed. So there is
a young queue with one descriptor in each message, and old queues with up to 252. When
the young queue is full, its wanted descriptors move into one message of an old queue.
The first messages of an old queue move to its end without the unwanted descriptors. A
move first queues the copy, then removes the original. A kill between the two leaves
both, with the same serial.

A label travels with each descriptor and identifies it (`queues`).
"""

import errno
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from time import monotonic
from typing import Final

from lockd.daemon.stores.queues import (
    FULL,
    LONGEST_LABEL,
    SHORT,
    Descriptor,
    Queue,
    close_all,
    make_queues,
    open_queues,
)

YOUNG: Final = 250
"""The most messages in the young queue. The kernel accepts 330 of the longest."""

OLD: Final = 500
"""The most messages in an old queue. The kernel accepts 55 more, for the moves."""

OLD_QUEUES: Final = 3
"""Room for 3 * 500 * 252 descriptors, wanted or not."""

MOST_AT_ONCE: Final = 4 * FULL
"""The most descriptors to remove from an old queue in one step, in small messages."""

SPARE: Final = 8
"""So many old messages are always allowed, however few descriptors they have."""


class InFlight:
    """Keeps descriptors in flight.

    Args:
        ends: the sockets of a predecessor, in the order of its `ends`. This object then
            owns them; call `recover` first. None creates new ones.

    Attributes:
        ends: all sockets that must be stored outside the process, in this order.
        limit: the most descriptors in flight, wanted or not. It is less than
            RLIMIT_NOFILE so that a successor can open all of them. Beyond that, the
            kernel would also refuse the moves that reduce their number (ETOOMANYREFS).
        problems: what `recover` could not read.

    Raises:
        ValueError: `ends` are not queues. The caller still owns them.
    """

    def __init__(self, ends: Sequence[int] | None = None) -> None:
        self._is_known = ends is None
        queues = make_queues(1 + OLD_QUEUES) if ends is None else open_queues(ends)
        self._young, *self._old = self._queues = queues
        self.ends = [x.fileno() for queue in queues for x in queue.sockets]
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 7 // 8
        self.problems: list[str] = []
        self._kept: dict[bytes, Descriptor] = {}
        self._serial = 0
        #: How many descriptors may be added before making room.
        self._room = 0

    @property
    def labels(self) -> Iterator[bytes]:
        """The labels of the kept descriptors."""
        return iter(self._kept)

    @property
    def count(self) -> int:
        """How many descriptors are in flight, wanted or not."""
        return sum(queue.total for queue in self._queues)

    def keep(self, label: bytes, fd: int) -> None:
        """Keeps a descriptor: from now on it outlives the process.

        It replaces the descriptor with the same label. The caller must keep it open
        until it drops it, because a move sends it again.

        Args:
            label: 1 to 5,000 bytes; more than 200 take another descriptor.
            fd: the descriptor.

        Raises:
            OSError: it is not kept, and nothing has changed.
        """
        if not 0 < len(label) <= LONGEST_LABEL:
            raise ValueError(f"a label of {len(label)} bytes")
        if self._room <= 0:
            self._make_room()
        descriptor = Descriptor(self._serial, label, fd, self._young)
        try:
            if len(label) <= SHORT:
                self._young.send_one(descriptor)
            else:
                self._young.send((descriptor,))
        except OSError:
            self._room = 0
            raise
        self._serial += 1
        self._room -= 1
        if label in self._kept:
            self.drop(label)
        self._kept[label] = descriptor

    def drop(self, label: bytes, gone: Callable[[], None] | None = None) -> None:
        """Stops keeping a descriptor. The caller may close its own.

        The copy in flight disappears later. Until then the file is open, locked unless
        it was unlocked, and a connection lives unless it was shut down (shutdown(2)).

        Args:
            label: its label.
            gone: called when the copy has disappeared. A caller that must not block in
                the last close of a file keeps its own descriptor open until then.

        Raises:
            KeyError: the label is unknown.
        """
        self._kept.pop(label).drop(gone)

    def tidy(self, seconds: float, *, thoroughly: bool = False) -> bool:
        """Removes unwanted descriptors if that pays. Returns whether there are more.

        Args:
            seconds: the time for steps; each takes about 0.5 ms.
            thoroughly: remove all of them, which takes longer the more is kept. For
                callers that wait until a file system is not in use.
        """
        self._check_known()
        end = monotonic() + seconds
        while (queue := self._wasteful(thoroughly=thoroughly)) is not None:
            if monotonic() >= end:
                return True
            if not self._can_move(queue):
                return False
        return False

    def recover(
        self, held: Mapping[bytes, int] | None = None
    ) -> list[tuple[bytes, int]]:
        """Returns all descriptors that a predecessor kept. They stay in flight.

        Some may be dropped ones; the caller drops them again. Of two with the same
        label the newest counts. An unreadable one has a label that begins with
        `unreadable-`, and a line in `problems`. Recovering consumes nothing: the next
        successor finds the same.

        Args:
            held: descriptors that are already open in this process, by label. All
                others in the result are new, and closed on execve(2).

        Raises:
            OSError: no descriptor was opened.
        """
        held = held or {}
        found: list[Descriptor] = []
        try:
            for queue in self._queues:
                for message in queue.recover(held, self.problems):
                    found += message
        except OSError:
            close_all(x.fd for x in found if x.label not in held)
            raise
        found.sort(key=attrgetter("serial"))
        self._kept = {descriptor.label: descriptor for descriptor in found}
        for descriptor in found:
            if self._kept[descriptor.label] is not descriptor:
                descriptor.drop()
                if descriptor.label not in held:
                    os.close(descriptor.fd)
        self._serial = found[-1].serial + 1 if found else 0
        self._is_known = True
        return [(label, descriptor.fd) for label, descriptor in self._kept.items()]

    def close(self) -> None:
        """Closes our sockets.

        What is in flight is lost unless somebody else has them.
        """
        for queue in self._queues:
            queue.close()

    def _make_room(self) -> None:
        self._check_known()
        is_urgent = self.count >= self.limit
        for _ in range(8 if is_urgent else 2):
            queue = self._wasteful(thoroughly=is_urgent)
            if queue is None or not self._can_move(queue):
                break
        if len(self._young.messages) >= YOUNG:
            self._can_move(self._young)
        room = self.limit - self.count
        if room <= 0:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        self._room = min(room, max(1, YOUNG - len(self._young.messages)))

    def _check_known(self) -> None:
        if not self._is_known:
            raise RuntimeError("what is in flight was not recovered")

    def _wasteful(self, *, thoroughly: bool) -> Queue | None:
        """Returns a queue that should become smaller.

        A full round of moves leaves no garbage in a queue, and no two neighbours that
        would fit into one message. So it has at most one more than twice the needed
        messages, and every queue that this returns has something to remove.
        """
        if thoroughly:
            return next((x for x in self._queues if x.total > x.wanted), None)
        wanted = sum(queue.wanted for queue in self._old)
        total = sum(queue.total for queue in self._old)
        if total > 2 * wanted + FULL:
            return max(self._old, key=lambda queue: queue.total - queue.wanted)
        if sum(len(x.messages) for x in self._old) > 2 * (wanted // FULL) + SPARE:
            return max(self._old, key=lambda x: len(x.messages) * FULL - 2 * x.wanted)
        return None

    def _can_move(self, source: Queue) -> bool:
        """Moves messages. Returns whether it worked."""
        try:
            self._move(source)
        except OSError:
            return False  # No memory or no descriptors: try later.
        return True

    def _move(self, source: Queue) -> None:
        """Removes the first messages of a queue, after sending the wanted ones again.

        Raises:
            OSError: nothing has changed.
        """
        wanted: list[Descriptor] = []
        count = total = 0
        for message in source.messages:
            found = [descriptor for descriptor in message if descriptor.is_wanted]
            total += len(message)
            if count and (len(wanted) + len(found) > FULL or total > MOST_AT_ONCE):
                break
            wanted += found
            count += 1
        if wanted:
            self._target(source).send_again(wanted, source)
        source.consume(count)

    def _target(self, source: Queue) -> Queue:
        if source is not self._young:
            return source
        target = min(self._old, key=lambda queue: len(queue.messages))
        if len(target.messages) >= OLD:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return target
