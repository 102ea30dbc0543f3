"""A queue of descriptors: messages that nobody receives, in a pair of sockets.

A message has up to 252 descriptors and their labels. A single short label is in the
message itself. All other labels are in a memfd, the first descriptor of the message,
because a queue holds few bytes. Messages can be peeked. Only the first ones can be
removed.
"""

import errno
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

FORMAT: Final = 1
"""The first byte of each message."""

LONGEST_LABEL: Final = 5_000

SHORT: Final = 200
"""The longest label in a message itself: a queue holds few bytes."""

FULL: Final = 252
"""The most descriptors in a message, besides the memfd: the kernel's SCM_MAX_FD is 253.
"""

SEND_BUFFER: Final = 212_992
"""SO_SNDBUF, which the kernel doubles: the most without a privilege."""

SO_PEEK_OFF: Final = 42
"""The position for MSG_PEEK (socket(7)); Python has no name for it."""

# Format, whether the labels are in a memfd, count; serial and length of each.
_HEADER: Final = struct.Struct("<BBH")
_TAG: Final = struct.Struct("<QH")
_ONE: Final = struct.Struct("<BBHQH")
_INT: Final = struct.Struct("@i")
_SPACE: Final = socket.CMSG_SPACE((FULL + 1) * _INT.size)


class Descriptor:
    """A descriptor in flight: its serial, its label, and its queue."""

    __slots__ = ("fd", "gone", "is_wanted", "label", "queue", "serial")

    def __init__(self, serial: int, label: bytes, fd: int, queue: "Queue") -> None:
        self.serial = serial
        self.label = label
        self.fd = fd
        self.queue = queue
        self.is_wanted = True
        self.gone: Callable[[], None] | None = None

    def drop(self, gone: Callable[[], None] | None = None) -> None:
        """Notes that it is not wanted any more.

        Args:
            gone: called when its message is removed.
        """
        self.is_wanted = False
        self.gone = gone
        self.queue.wanted -= 1


class Queue:
    """A pair of sockets, and the messages queued in it.

    Attributes:
        messages: the messages, in order.
        number: the number of the queue, for problems.
        total: how many descriptors are in the messages.
        wanted: how many of these are wanted.
    """

    __slots__ = ("messages", "number", "receiver", "sender", "total", "wanted")

    def __init__(
        self, number: int, sender: socket.socket, receiver: socket.socket
    ) -> None:
        self.number = number
        self.sender = sender
        self.receiver = receiver
        self.messages: deque[Sequence[Descriptor]] = deque()
        self.total = 0
        self.wanted = 0

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Both sockets, as `open_queues` needs them."""
        return self.sender, self.receiver

    def send_one(self, descriptor: Descriptor) -> None:
        """Queues a message with one descriptor that has a short label.

        Raises:
            OSError: it is not queued.
        """
        label = descriptor.label
        text = _ONE.pack(FORMAT, 0, 1, descriptor.serial, len(label)) + label
        self._send(text, _INT.pack(descriptor.fd))
        self.messages.append((descriptor,))
        self.total += 1
        self.wanted += 1

    def send(self, message: Sequence[Descriptor]) -> None:
        """Queues a message.

        Raises:
            OSError: it is not queued.
        """
        tags = b"".join([_TAG.pack(x.serial, len(x.label)) + x.label for x in message])
        memfd = _write(tags)
        try:
            fds = array("i", [memfd, *(descriptor.fd for descriptor in message)])
            self._send(_HEADER.pack(FORMAT, 1, len(message)), fds)
        finally:
            os.close(memfd)
        self._enter(message)
        self.wanted += len(message)

    def send_again(self, message: Sequence[Descriptor], source: "Queue") -> None:
        """Queues descriptors that will be removed from another queue, or from this one.

        Raises:
            OSError: it is not queued.
        """
        self.send(message)
        source.wanted -= len(message)
        for descriptor in message:
            descriptor.queue = self

    def _send(self, text: bytes, fds: "bytes | array[int]") -> None:
        try:
            self.sender.sendmsg((text,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, fds),))
        except BlockingIOError:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None

    def _enter(self, message: Sequence[Descriptor]) -> None:
        self.messages.append(message)
        self.total += len(message)

    def consume(self, count: int) -> None:
        """Removes the first messages. The kernel closes their descriptors."""
        fd = self.receiver.fileno()
        for _ in range(count):
            os.read(fd, 1)
            message = self.messages.popleft()
            self.total -= len(message)
            for descriptor in message:
                if descriptor.gone is not None:
                    descriptor.gone()

    def recover(
        self, held: Mapping[bytes, int], problems: list[str]
    ) -> Iterator[list[Descriptor]]:
        """Notes all queued messages, and yields each.

        Unreadable descriptors get a label that begins with `unreadable-`, and a line in
        `problems`.

        Args:
            held: descriptors that are already open in this process, by label. All
                others are new, and closed on execve(2).
            problems: gets a sentence for each unreadable message.

        Raises:
            OSError: (EMFILE) there is no room for so many descriptors.
        """
        self.messages.clear()
        self.total = self.wanted = 0
        for text, fds in self._peek():
            message = self._understand(text, fds, held, problems)
            self._enter(message)
            self.wanted += len(message)
            yield message

    def _understand(
        self,
        text: bytes,
        fds: list[int],
        held: Mapping[bytes, int],
        problems: list[str],
    ) -> list[Descriptor]:
        try:
            tags = list(_read(text, fds))
        except (OSError, ValueError, struct.error) as error:
            place = f"{self.number}-{len(self.messages)}"
            problems.append(f"the message {place} of those in flight: {error}")
            tags = [(0, f"unreadable-{place}-{i}".encode()) for i in range(len(fds))]
        message = []
        for (serial, label), fd in zip(tags, fds, strict=True):
            if label in held:
                os.close(fd)
            message.append(Descriptor(serial, label, held.get(label, fd), self))
        return message

    def _peek(self) -> Iterator[tuple[bytes, list[int]]]:
        """Yields each message with new descriptors; leaves all messages in the queue.

        Raises:
            OSError: (EMFILE) there is no room for so many descriptors.
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
                close_all(fds)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            yield text, list(fds)

    def close(self) -> None:
        """Closes both sockets.

        Queued descriptors are lost unless somebody else has them.
        """
        self.sender.close()
        self.receiver.close()


def make_queues(number: int) -> list[Queue]:
    """Creates empty queues."""
    queues = []
    for place in range(number):
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender.setblocking(False)
        receiver.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        queues.append(Queue(place, sender, receiver))
    return queues


def open_queues(ends: Sequence[int]) -> list[Queue]:
    """Opens the queues of a predecessor. `Queue.recover` reads their messages.

    Args:
        ends: sender and receiver of each. The queues then own them.

    Raises:
        ValueError: they are something else. The caller still owns them.
    """
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
    pairs = zip(socks[::2], socks[1::2], strict=True)
    return [Queue(place, *pair) for place, pair in enumerate(pairs)]


def _write(tags: bytes) -> int:
    """Returns a memfd with the tags."""
    memfd = os.memfd_create("lockd-labels", os.MFD_CLOEXEC)
    try:
        if os.write(memfd, tags) != len(tags):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.close(memfd)
        raise
    return memfd


def _read(text: bytes, fds: list[int]) -> Iterator[tuple[int, bytes]]:
    """Yields serial and label of each descriptor of a message; removes the memfd.

    Raises:
        OSError, ValueError, struct.error: it is not one of our messages.
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


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors."""
    for fd in fds:
        os.close(fd)
