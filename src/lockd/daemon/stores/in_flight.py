"""Descriptors that outlive the process: in flight, unread, in sockets kept elsewhere.

A descriptor that was sent (SCM_RIGHTS, unix(7)) and not yet received refers to its open
file as every other does: a lock of it is held, a connection stays open. The few sockets
whose queues they are in are kept by the service manager, so that they stay when we die.

What is queued cannot be withdrawn, only taken from the front. So there is a young queue
with one descriptor a message, and old ones with up to 252. When the young one is full,
what is still wanted of it goes into one message of an old one; the first messages of
an old queue go to its end without what is not wanted. Always: first the copy is queued,
then the original taken out. A kill between the two leaves both, with the same serial.

Descriptors are told by labels, which travel with them: that of a single one in the
message, a long one and those of many in a memfd, its first descriptor: a queue may
hold few bytes.
"""

import errno
import os
import resource
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from time import monotonic
from typing import Final

FORMAT: Final = 1
"""The first byte of each message."""

LONGEST_LABEL: Final = 5_000

SHORT: Final = 200
"""Bytes of a label that travels in the message: a queue may hold few."""

FULL: Final = 252
"""Descriptors in a message, beside the memfd: SCM_MAX_FD of the kernel is 253."""

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

SEND_BUFFER: Final = 212_992
"""SO_SNDBUF, which the kernel doubles: what may be asked for without a right."""

SO_PEEK_OFF: Final = 42
"""Where MSG_PEEK goes on (socket(7)); Python has no name for it."""

# Format, whether the labels are in a memfd, and how many; serial and length of each.
_HEADER: Final = struct.Struct("<BBH")
_TAG: Final = struct.Struct("<QH")
_ONE: Final = struct.Struct("<BBHQH")
_INT: Final = struct.Struct("@i")
_SPACE: Final = socket.CMSG_SPACE((FULL + 1) * _INT.size)


class _Descriptor:
    """A descriptor in flight: its serial and label, and where it is."""

    __slots__ = ("fd", "gone", "is_wanted", "label", "queue", "serial")

    def __init__(self, serial: int, label: bytes, fd: int, queue: "_Queue") -> None:
        self.serial = serial
        self.label = label
        self.fd = fd
        self.queue = queue
        self.is_wanted = True
        self.gone: Callable[[], None] | None = None


class _Queue:
    """A socket pair, and what we know to be queued in it."""

    __slots__ = ("messages", "receiver", "sender", "total", "wanted")

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender = sender
        self.receiver = receiver
        self.messages: deque[Sequence[_Descriptor]] = deque()
        self.total = 0
        self.wanted = 0

    def send_one(self, descriptor: _Descriptor) -> None:
        """Queues a message with one descriptor; what it costs is what `keep` costs.

        Raises:
            OSError: it is not queued.
        """
        label = descriptor.label
        text = _ONE.pack(FORMAT, 0, 1, descriptor.serial, len(label)) + label
        self._send(text, _INT.pack(descriptor.fd))
        self.messages.append((descriptor,))
        self.total += 1
        self.wanted += 1

    def send(self, message: Sequence[_Descriptor]) -> None:
        """Queues a message.

        Raises:
            OSError: nothing of it is queued.
        """
        tags = b"".join([_TAG.pack(x.serial, len(x.label)) + x.label for x in message])
        memfd = _write(tags)
        try:
            fds = array("i", [memfd, *(descriptor.fd for descriptor in message)])
            self._send(_HEADER.pack(FORMAT, 1, len(message)), fds)
        finally:
            os.close(memfd)
        self.enter(message)
        self.wanted += len(message)
        for descriptor in message:
            descriptor.queue = self

    def _send(self, text: bytes, fds: "bytes | array[int]") -> None:
        try:
            self.sender.sendmsg((text,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, fds),))
        except BlockingIOError:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None

    def enter(self, message: Sequence[_Descriptor]) -> None:
        """Notes what is queued."""
        self.messages.append(message)
        self.total += len(message)

    def forget(self) -> None:
        """Forgets what was noted."""
        self.messages.clear()
        self.total = self.wanted = 0

    def consume(self, count: int) -> None:
        """Takes the first messages out; what is in them is closed by the kernel."""
        fd = self.receiver.fileno()
        for _ in range(count):
            os.read(fd, 1)
            message = self.messages.popleft()
            self.total -= len(message)
            for descriptor in message:
                if descriptor.gone is not None:
                    descriptor.gone()

    def peek(self) -> Iterator[tuple[bytes, list[int]]]:
        """Yields each message with fresh descriptors, and leaves all of them there.

        Raises:
            OSError: (EMFILE) there is no place for so many descriptors.
        """
        flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        while True:
            try:
                text, control, said, _ = self.receiver.recvmsg(1024, _SPACE, flags)
            except BlockingIOError:
                return
            if not text:
                return
            fds = array("i")
            for _, _, raw in control:
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
            if said & socket.MSG_CTRUNC:
                _close(fds)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            yield text, list(fds)


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
        ValueError: those are not the ends of a in_flight, and stay the caller's.
    """

    def __init__(self, ends: Sequence[int] | None = None) -> None:
        self._is_known = ends is None
        pairs = _make_pairs() if ends is None else _open_pairs(ends)
        self._young, *self._old = queues = [_Queue(*pair) for pair in pairs]
        self._queues = queues
        self.ends = [sock.fileno() for pair in pairs for sock in pair]
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 7 // 8
        self.problems: list[str] = []
        self._kept: dict[bytes, _Descriptor] = {}
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
        descriptor = _Descriptor(self._serial, label, fd, self._young)
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
        descriptor = self._kept.pop(label)
        descriptor.is_wanted = False
        descriptor.gone = gone
        descriptor.queue.wanted -= 1

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
        found: list[_Descriptor] = []
        try:
            for queue in self._queues:
                queue.forget()
                for text, fds in queue.peek():
                    found += self._enter(queue, text, fds, held)
        except OSError:
            _close(x.fd for x in found if x.label not in held)
            raise
        found.sort(key=attrgetter("serial"))
        self._kept = {descriptor.label: descriptor for descriptor in found}
        for descriptor in found:
            descriptor.is_wanted = self._kept[descriptor.label] is descriptor
            descriptor.queue.wanted += descriptor.is_wanted
            if not descriptor.is_wanted and descriptor.label not in held:
                os.close(descriptor.fd)
        self._serial = found[-1].serial + 1 if found else 0
        self._is_known = True
        return [(label, descriptor.fd) for label, descriptor in self._kept.items()]

    def close(self) -> None:
        """Closes our ends: what is in flight goes if nobody else has them."""
        for queue in self._queues:
            queue.sender.close()
            queue.receiver.close()

    def _enter(
        self, queue: _Queue, text: bytes, fds: list[int], held: Mapping[bytes, int]
    ) -> list[_Descriptor]:
        """Notes a message of a predecessor; returns what is in it."""
        try:
            tags = list(_read(text, fds))
        except (OSError, ValueError, struct.error) as error:
            place = f"{self._queues.index(queue)}-{len(queue.messages)}"
            self.problems.append(f"the message {place} of those in flight: {error}")
            tags = [(0, f"unreadable-{place}-{i}".encode()) for i in range(len(fds))]
        message = []
        for (serial, label), fd in zip(tags, fds, strict=True):
            if label in held:
                os.close(fd)
            message.append(_Descriptor(serial, label, held.get(label, fd), queue))
        queue.enter(message)
        return message

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

    def _wasteful(self, *, thoroughly: bool) -> _Queue | None:
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

    def _can_move(self, source: _Queue) -> bool:
        """Moves; tells whether that could be done."""
        try:
            self._move(source)
        except OSError:
            return False  # For want of memory or descriptors: another time.
        return True

    def _move(self, source: _Queue) -> None:
        """Takes the first messages out of a queue, when what is wanted is sent again.

        Raises:
            OSError: nothing has changed.
        """
        wanted: list[_Descriptor] = []
        count = total = 0
        for message in source.messages:
            found = [descriptor for descriptor in message if descriptor.is_wanted]
            total += len(message)
            if count and (len(wanted) + len(found) > FULL or total > MOST_AT_ONCE):
                break
            wanted += found
            count += 1
        if wanted:
            self._target(source).send(wanted)
            source.wanted -= len(wanted)
        source.consume(count)

    def _target(self, source: _Queue) -> _Queue:
        if source is not self._young:
            return source
        target = min(self._old, key=lambda queue: len(queue.messages))
        if len(target.messages) >= OLD:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return target


def _make_pairs() -> list[tuple[socket.socket, socket.socket]]:
    pairs = []
    for _ in range(1 + OLD_QUEUES):
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender.setblocking(False)
        receiver.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        pairs.append((sender, receiver))
    return pairs


def _open_pairs(ends: Sequence[int]) -> list[tuple[socket.socket, socket.socket]]:
    if len(ends) < 4 or len(ends) % 2:
        raise ValueError(f"{len(ends)} descriptors are not the ends of queues")
    socks = []
    try:
        for fd in ends:
            socks.append(sock := socket.socket(fileno=fd))
            if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
                raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
    except OSError as error:
        for sock in socks:
            sock.detach()
        raise ValueError(f"descriptor {fd} is no end of a queue: {error}") from None
    for sock in socks:
        sock.set_inheritable(False)
        sock.setblocking(False)
    return list(zip(socks[::2], socks[1::2], strict=True))


def _write(tags: bytes) -> int:
    """Returns a memfd that holds the tags."""
    memfd = os.memfd_create("lockd-labels", os.MFD_CLOEXEC)
    try:
        if os.write(memfd, tags) != len(tags):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.close(memfd)
        raise
    return memfd


def _read(text: bytes, fds: list[int]) -> Iterator[tuple[int, bytes]]:
    """Yields serial and label of each descriptor of a message; takes out the memfd.

    Raises:
        OSError, ValueError, struct.error: this is no message of ours.
    """
    version, has_memfd, count = _HEADER.unpack_from(text)
    if version != FORMAT or len(fds) != count + has_memfd:
        raise ValueError(f"format {version} with {len(fds)} descriptors")
    tags, place = text, _HEADER.size
    if has_memfd:
        memfd = fds.pop(0)
        try:
            tags, place = os.pread(memfd, FULL * (_TAG.size + LONGEST_LABEL), 0), 0
        finally:
            os.close(memfd)
    for _ in range(count):
        serial, length = _TAG.unpack_from(tags, place)
        place += _TAG.size + length
        if place > len(tags):
            raise ValueError("a label is cut off")
        yield serial, tags[place - length : place]


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
