"""Receives and sends the bytes of a client, so that none is lost or sent twice.

`PlainFlow` uses recv(2) and send(2). Received bytes exist in this process only.

`KeptFlow` survives a kill at any moment. A process that has the socket can then find
out from the kernel:

- Which requests were carried out but are still in the socket: requests are read with
  MSG_PEEK, and removed after their effects are recorded. SO_PEEK_OFF (socket(7)) is the
  number of peeked bytes that are not yet removed.
- Which bytes of the answers have been sent: they go through a pipe. splice(2) moves
  them from there into the socket in one step. Bytes in the pipe have not been sent.

The positions are cells in shared memory, stored after each step. A damaged cell is
detected, and costs only the connection of its client.
"""

import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
from typing import Final

READ_SIZE: Final = 8_192
"""The most bytes to read from one client before the others."""

SO_PEEK_OFF: Final = 42

_PEEK: Final = int(socket.MSG_PEEK)

PIPE_SIZE: Final = 65_536
"""The capacity of an empty pipe (pipe(7))."""

CELLS_SIZE: Final = 8 * 1024 * 1024
"""Room for the positions of half a million clients. Unused room takes no memory."""

_PRIME: Final = 65_521
"""A cell holds this multiple of its number, plus its place: one word, one store. It
detects every flipped bit, and all but one in so many of other damages."""

LARGEST: Final = (1 << 47) - 1
"""The longest stream: a cell has 48 bits for a number beside its check."""


class PlainFlow:
    """The bytes of a client that ends with this process."""

    slot = 0
    sent = 0

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def receive(self) -> bytes:
        """Returns received bytes; none at the end.

        Raises:
            OSError: BlockingIOError if there are none; otherwise the connection is
                broken.
        """
        return self._sock.recv(READ_SIZE)

    def send(self, data: bytes | bytearray) -> int:
        """Sends as many bytes as the socket accepts. Returns how many.

        Raises:
            OSError: the connection is broken.
        """
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def settle(self) -> None:
        """Notes that all received requests are carried out, recorded and answered."""


class Cells:
    """Numbers in shared memory: the positions in the streams of clients, by slot.

    The first three describe a running send: slot, position, and number of bytes; 0
    bytes if none runs.

    Args:
        fd: the memfd of a predecessor. A truncated part counts as damaged.

    Attributes:
        is_unsure: whether a predecessor may have sent bytes to an unknown client.
    """

    def __init__(self, fd: int | None = None) -> None:
        is_new = fd is None
        if fd is None:
            fd = os.memfd_create("lockd-cells", os.MFD_CLOEXEC)
        # An access beyond the end would be SIGBUS.
        os.ftruncate(fd, CELLS_SIZE)
        self.fd = fd
        self.is_unsure = False
        self._reserved = 0
        self._memory = mmap.mmap(fd, CELLS_SIZE)
        # Not struct.pack_into(), which first writes zeros: a word is one store.
        self._words = memoryview(self._memory).cast("Q")
        self.reserve(0)
        if is_new:
            self._words[2] = _word(2, 0)

    def reserve(self, slot: int) -> None:
        """Reserves memory for a slot: without it a store is SIGBUS.

        Raises:
            OSError: there is no memory, or no such slot.
        """
        end = 8 * _place(slot + 1)
        if end > self._reserved:
            end = (end + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > CELLS_SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(self.fd, self._reserved, end - self._reserved)
            self._reserved = end

    def close(self) -> None:
        """Unmaps and closes the memfd. Somebody else may still have it."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)

    def set_sent(self, slot: int, position: int) -> None:
        """Stores how many bytes have been sent."""
        place = _place(slot)
        self._words[place] = position * _PRIME + place + 1

    def set_consumed(self, slot: int, position: int) -> None:
        """Stores how many bytes have been removed from the socket."""
        place = _place(slot) + 1
        self._words[place] = position * _PRIME + place + 1

    def positions(self, slot: int) -> tuple[int, int]:
        """Returns how many bytes have been sent, and how many removed.

        Raises:
            ValueError: one of them is damaged.
        """
        place = _place(slot)
        sent, consumed = self._number(place), self._number(place + 1)
        if sent is None or consumed is None:
            raise ValueError("a position in its stream is damaged")
        return sent, consumed

    def begin_sending(self, slot: int, position: int, size: int) -> None:
        """Stores what is about to leave the pipe.

        The size is last: it makes the rest valid.
        """
        words = self._words
        words[0] = slot * _PRIME + 1
        words[1] = position * _PRIME + 2
        words[2] = size * _PRIME + 3

    def end_sending(self, slot: int, position: int) -> None:
        """Stores how many bytes have been sent, and that no send is running."""
        words = self._words
        place = 4 + 2 * slot
        words[place] = position * _PRIME + place + 1
        words[2] = 3

    def finish_sending(self, pipe: "Pipe") -> None:
        """Finds out how much of a running send a predecessor has completed.

        If the cells are damaged, a client may have received bytes that its position
        does not show. The pipe only has bytes that are still recorded as unsent, so a
        client with nothing to send is not affected. Each of the others might get some
        bytes twice (`KeptFlow.resume`). The content of the pipe is dropped in any case,
        because the records have it too. The cells stay damaged until these clients have
        ended, so that a successor after another kill finds the same.
        """
        slot, position, size = map(self._number, range(3))
        left = pipe.left()
        if size == 0:
            pass  # the other two do not matter
        elif (
            slot is None
            or position is None
            or size is None
            or left > size
            or _place(slot) >= len(self._words)
        ):
            self.is_unsure = True
        else:
            self.end_sending(slot, position + size - left)
        pipe.empty()

    def forget_sending(self) -> None:
        """Stores that no send is running, after the affected clients have ended."""
        self._words[2] = 3
        self.is_unsure = False

    def _number(self, place: int) -> int | None:
        """Returns the number in a cell; None if it is damaged."""
        if place >= len(self._words):
            return None
        number, rest = divmod(self._words[place] - place - 1, _PRIME)
        return number if rest == 0 <= number else None


class Pipe:
    """The pipe through which all kept answers pass."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        self.ends = ends or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fill(self, data: bytes | bytearray | memoryview) -> int:
        """Writes at most PIPE_SIZE bytes into the empty pipe. Returns how many."""
        return os.write(self.ends[1], data)

    def move(self, fd: int, size: int) -> int:
        """Moves bytes into a socket. Returns how many it accepted.

        Raises:
            OSError: the connection is broken. All bytes are still in the pipe.
        """
        try:
            return os.splice(self.ends[0], fd, size)
        except BlockingIOError:
            return 0

    def left(self) -> int:
        """Returns how many bytes are in the pipe."""
        raw = fcntl.ioctl(self.ends[0], termios.FIONREAD, bytes(4))
        left: int = struct.unpack("i", raw)[0]
        return left

    def empty(self) -> None:
        """Drops the content."""
        if left := self.left():
            os.read(self.ends[0], left)

    def close(self) -> None:
        """Closes both ends. Somebody else may still have them."""
        for fd in self.ends:
            os.close(fd)


class KeptFlow:
    """The bytes of a client that outlives this process.

    Args:
        sock: the socket.
        slot: the slot of its positions, used by no other client.
        cells: has the slot.
        pipe: the pipe for answers.

    Attributes:
        sent: how many bytes have been sent so far.
    """

    def __init__(
        self, sock: socket.socket, slot: int, cells: Cells, pipe: Pipe
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._cells = cells
        self._pipe = pipe
        self.slot = slot
        self.sent = self._consumed = 0
        self._peeked = 0

    def begin(self) -> None:
        """Begins a stream in which nothing has been received or sent.

        Raises:
            OSError: the connection is broken.
        """
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        self._cells.set_sent(self.slot, 0)
        self._cells.set_consumed(self.slot, 0)

    def resume(self, done: int, answers: range) -> None:
        """Continues the stream of a predecessor.

        Args:
            done: how many bytes of requests have been carried out.
            answers: the positions of the bytes that are recorded as unsent. Some may
                have been sent.

        Raises:
            OSError: the connection is broken.
            ValueError: the positions are damaged or contradict the records. Nothing has
                changed.
        """
        sent, consumed = self._cells.positions(self.slot)
        # Requests are recorded before they are removed, and answers before they are
        # sent.
        if consumed > done or not answers.start <= sent <= answers.stop:
            raise ValueError("its last records are missing")
        if self._cells.is_unsure and sent < answers.stop:
            raise ValueError("it may have got a part of an answer")
        self.sent, self._consumed = sent, consumed
        sock = self._sock
        # Peeked and not removed: everything that is not carried out, or more.
        peeked = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        rest = min(done - self._consumed, peeked)
        if rest > 0:
            # After this, a kill before the last line changes nothing.
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, rest)
            self._take_out(rest)
        self._consumed = done
        self._cells.set_consumed(self.slot, done)
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)

    def receive(self) -> bytes:
        """Returns received bytes, and leaves them in the socket; see `PlainFlow`."""
        if self.sent + self._consumed > LARGEST:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        data = self._sock.recv(READ_SIZE, _PEEK)
        self._peeked += len(data)
        return data

    def settle(self) -> None:
        """Removes the received bytes from the socket; see `PlainFlow`."""
        if self._peeked:
            self._take_out(self._peeked)
            self._consumed += self._peeked
            self._peeked = 0
            self._cells.set_consumed(self.slot, self._consumed)

    def _take_out(self, size: int) -> None:
        while size:
            taken = len(self._sock.recv(size))
            if not taken:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            size -= taken

    def send(self, data: bytes | bytearray) -> int:
        """Sends as many bytes as the socket accepts; see `PlainFlow`."""
        if len(data) <= PIPE_SIZE:
            return self._send_some(data)
        begun = self.sent
        with memoryview(data) as view:
            while rest := view[self.sent - begun :][:PIPE_SIZE]:
                if self._send_some(rest) < len(rest):
                    break
        return self.sent - begun

    def _send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Sends one filling of the pipe. Returns how many bytes the socket accepted."""
        cells, pipe = self._cells, self._pipe
        size = pipe.fill(data)
        cells.begin_sending(self.slot, self.sent, size)
        moved = 0
        try:
            moved = pipe.move(self._fd, size)
        finally:
            self.sent += moved
            cells.end_sending(self.slot, self.sent)
            if moved < size:
                pipe.empty()
        return moved


Flow = PlainFlow | KeptFlow


def _place(slot: int) -> int:
    return 4 + 2 * slot


def _word(place: int, number: int) -> int:
    return number * _PRIME + place + 1
