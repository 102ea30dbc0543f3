"""Descriptors that outlive the process: in flight, unread, in sockets kept elsewhere.

A descriptor that was sent (SCM_RIGHTS, unix(7)) and not yet received refers to its open
file as every other does: a lock of it is held, a connection stays open. The few sockets
whose queues they are in are kept by the service manager, so that they stay when we die.

What is queued cannot be withdrawn, only taken from the front. So there is a young queue
with one descriptor a message, and old ones with up to 252. When the young one is full,
what is still wanted of it goes into one message of an old one; the first messages of
an old queue go to its end without what is not wanted. Always: first the copy is queued,
then the original taken out. A kill between the two leaves both, with the same serial.

Descriptors are told by labels, which travel with them (`queues`).
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
"""Messages that the young queue grows to; the kernel takes 330 of the longest."""

OLD: Final = 500
"""Messages that an old queue grows to; the kernel takes 55 more, for the moves."""

OLD_QUEUES: Final = 3
"""Room for 3 * 500 * 252 descriptors, wanted or not."""

MOST_AT_ONCE: Final = 4 * FULL
"""Descriptors that are taken out of an old queue in one step, in small messages."""

SPARE: Final = 8
"""So many old messages may there always be, however little is in them."""


class InFlight:
    """Keeps descriptors in flight.

    Args:
        ends: the sockets of a predecessor, in the order in which `ends` had them; they
            are ours from now on. `recover` comes first then. None: new ones are made.

    Attributes:
        ends: the sockets that have to be kept elsewhere, all of them, in this order.
        limit: how many descriptors may be in flight, wanted or not. It is less than
            RLIMIT_NOFILE, so that a successor can open all of them; beyond that the
            kernel would refuse also what makes them fewer (ETOOMANYREFS).
        problems: what `recover` could not read.

    Raises:
        ValueError: those are not the ends of queues, and stay the caller's.
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
        #: So many can be kept before room must be made.
        self._room = 0

    @property
    def labels(self) -> Iterator[bytes]:
        """The labels of what is kept."""
        return iter(self._kept)

    @property
    def count(self) -> int:
        """How many descriptors are in flight: also those that are not wanted."""
        return sum(queue.total for queue in self._queues)

    def keep(self, label: bytes, fd: int) -> None:
        """Keeps a descriptor: it outlives us from now on.

        What was kept with that label is dropped. The descriptor must stay open until
        then, for it is sent more than once.

        Args:
            label: 1 to 5,000 bytes; more than 200 cost another descriptor.

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
        """Keeps a descriptor no longer; ours can be closed.

        Its copy in flight goes later: until then the file is open, and locked if it is
        not unlocked, and a connection goes on if it is not shut down (shutdown(2)).

        Args:
            gone: called when the copy is gone. Whoever must not have this process wait
                for the last close of a file keeps its own descriptor open until then.

        Raises:
            KeyError: nothing is kept with that label.
        """
        self._kept.pop(label).drop(gone)

    def tidy(self, seconds: float, *, thoroughly: bool = False) -> bool:
        """Takes out what is not wanted, where that pays; tells whether there is more.

        Args:
            seconds: after which no further step is taken; a step takes about 0.5 ms.
            thoroughly: all that is not wanted is to go, though that takes as long as
                much is kept: for those who wait until a file system is not in use.
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
        """Returns all that a predecessor kept; all of it is still kept.

        Also what it had dropped may be among it: the caller drops what is not wanted.
        Of two with the same label the newest counts. What cannot be read has a label
        that begins with `unreadable-`, and is one of the `problems`. Nothing is
        consumed: whoever comes after us finds the same.

        Args:
            held: descriptors that are open in this process already, by label. The
                others that are returned are fresh, and closed on execve(2).

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
        """Closes our ends: what is in flight goes if nobody else has them."""
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
        """Returns a queue that should be smaller.

        A queue that is moved once around has no garbage, and no two messages in a row
        that would fit into one: at most one more than twice as many as are needed.
        So whatever is returned has something that will go.
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
        """Moves; tells whether that could be done."""
        try:
            self._move(source)
        except OSError:
            return False  # For want of memory or descriptors: another time.
        return True

    def _move(self, source: Queue) -> None:
        """Takes the first messages out of a queue, when what is wanted is sent again.

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
