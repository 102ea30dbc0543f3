"""How bytes come from a client and go to it, so that none is lost or sent twice.

Plainly: recv(2) and send(2). What was received is in this process only.

Kept (`KeptFlow`): if this process is killed at any moment, another one that has the
socket can tell from what the kernel still has

- which requests were carried out and are to be taken out of the socket: they are read
  with MSG_PEEK, and taken out after what they did was recorded. SO_PEEK_OFF (socket(7))
  stands at what was peeked and not yet taken;
- which bytes of the answers have left: they go through a pipe, from which splice(2)
  moves them into the socket in one step. What is left in the pipe has not left.

The positions are cells of shared memory, stored after each step. A cell that was
damaged is told from others, and costs the connection whose it is, and nobody else.
"""

import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
from typing import Final

READ_SIZE: Final = 2_048
"""Bytes taken from one client before the others have their turn."""

SO_PEEK_OFF: Final = 42

PIPE_SIZE: Final = 65_536
"""What a pipe takes at once when it is empty (pipe(7))."""

CELLS_SIZE: Final = 8 * 1024 * 1024
"""Room for the positions of half a million clients; what is not used costs nothing."""

_PRIME: Final = 65_521
"""A number is stored as so many times itself, and its place added: one word, one store.
No flipped bit leaves that so, and of other damage one in so many does."""

LARGEST: Final = (1 << 47) - 1
"""Where streams end: a number has room for 48 bits beside its check."""


class PlainFlow:
    """The bytes of a client whose end with this process is the end of all."""

    slot = 0
    sent = 0

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def receive(self) -> bytes:
        """Returns what has come; nothing at the end.

        Raises:
            OSError: BlockingIOError, if nothing has come; or the connection is broken.
        """
        return self._sock.recv(READ_SIZE)

    def send(self, data: bytes | bytearray) -> int:
        """Sends what the socket takes; returns how many bytes that was.

        Raises:
            OSError: the connection is broken.
        """
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def settle(self) -> None:
        """Is told that all that was received is carried out, recorded and answered."""


class Cells:
    """Numbers in shared memory: positions in the streams of clients, by slot.

    The first three say what is being sent: to which slot, from which position, how many
    bytes; none if nothing is.

    Args:
        fd: of a predecessor; what is cut off of it is damaged.

    Attributes:
        is_unsure: whether a predecessor may have sent something to somebody, and it is
            not known to whom.
    """

    def __init__(self, fd: int | None = None) -> None:
        is_new = fd is None
        if fd is None:
            fd = os.memfd_create("lockd-cells", os.MFD_CLOEXEC)
        # Beyond its end would be SIGBUS.
        os.ftruncate(fd, CELLS_SIZE)
        self.fd = fd
        self.is_unsure = False
        self._reserved = 0
        self._memory = mmap.mmap(fd, CELLS_SIZE)
        # Not struct.pack_into(), which fills with zeros first: a word is one store.
        self._words = memoryview(self._memory).cast("Q")
        self.reserve(0)
        if is_new:
            self._words[2] = _word(2, 0)

    def reserve(self, slot: int) -> None:
        """Sees to it that there is memory for a slot: a store without it is SIGBUS.

        Raises:
            OSError: there is none, or no such slot.
        """
        end = 8 * _place(slot + 1)
        if end > self._reserved:
            end = (end + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > CELLS_SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(self.fd, self._reserved, end - self._reserved)
            self._reserved = end

    def close(self) -> None:
        """Lets go of the memory; somebody else may have it still."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)

    def set_sent(self, slot: int, position: int) -> None:
        """Stores how many bytes were sent."""
        place = _place(slot)
        self._words[place] = position * _PRIME + place + 1

    def set_consumed(self, slot: int, position: int) -> None:
        """Stores how many bytes were taken out of the socket."""
        place = _place(slot) + 1
        self._words[place] = position * _PRIME + place + 1

    def positions(self, slot: int) -> tuple[int, int]:
        """Returns how many bytes were sent, and how many were taken out.

        Raises:
            ValueError: one of them is damaged.
        """
        place = _place(slot)
        sent, consumed = self._number(place), self._number(place + 1)
        if sent is None or consumed is None:
            raise ValueError("a position in its stream is damaged")
        return sent, consumed

    def begin_sending(self, slot: int, position: int, size: int) -> None:
        """Stores what is about to leave the pipe; the size last, for it makes it so."""
        words = self._words
        words[0] = slot * _PRIME + 1
        words[1] = position * _PRIME + 2
        words[2] = size * _PRIME + 3

    def end_sending(self, slot: int, position: int) -> None:
        """Stores how many bytes were sent, and that nothing is being sent any more."""
        words = self._words
        place = 4 + 2 * slot
        words[place] = position * _PRIME + place + 1
        words[2] = 3

    def finish_sending(self, pipe: "Pipe") -> None:
        """Finds out how far a predecessor came with what it was sending.

        Where that cannot be read, what left the pipe was perhaps received by somebody
        whose position does not say so. Whoever has nothing more to get was not that
        one, for only what is still to be sent is ever in the pipe; each of the others
        may be, and would get some bytes twice (`KeptFlow.resume`). What the pipe has
        is dropped in any case: it is all in the records, too. The cells stay damaged
        until those were ended, so that whoever is killed meanwhile finds the same.
        """
        slot, position, size = map(self._number, range(3))
        left = pipe.left()
        if size == 0:
            pass  # what it was before does not matter
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
        """Stores that nothing is being sent: whom it may concern was ended."""
        self._words[2] = 3
        self.is_unsure = False

    def _number(self, place: int) -> int | None:
        """Returns the number that is stored at a place; None: it is damaged."""
        if place >= len(self._words):
            return None
        number, rest = divmod(self._words[place] - place - 1, _PRIME)
        return number if rest == 0 <= number else None


class Pipe:
    """The pipe through which all that is kept of answers leaves."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        self.ends = ends or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fill(self, data: bytes | bytearray | memoryview) -> int:
        """Writes at most PIPE_SIZE bytes into the empty pipe; returns how many."""
        return os.write(self.ends[1], data)

    def move(self, fd: int, size: int) -> int:
        """Moves bytes into a socket; returns how many it took.

        Raises:
            OSError: the connection is broken; all of it is in the pipe still.
        """
        try:
            return os.splice(self.ends[0], fd, size)
        except BlockingIOError:
            return 0

    def left(self) -> int:
        """Returns how many bytes were not moved."""
        raw = fcntl.ioctl(self.ends[0], termios.FIONREAD, bytes(4))
        left: int = struct.unpack("i", raw)[0]
        return left

    def empty(self) -> None:
        """Drops what is left."""
        if left := self.left():
            os.read(self.ends[0], left)

    def close(self) -> None:
        """Closes both ends; somebody else may have them still."""
        for fd in self.ends:
            os.close(fd)


class KeptFlow:
    """The bytes of a client that outlives this process.

    Args:
        slot: where its positions are stored; nobody else's.

    Attributes:
        sent: how many bytes were sent so far.
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
        """Begins a stream of which nothing has come and nothing was sent.

        Raises:
            OSError: the connection is broken.
        """
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        self._cells.set_sent(self.slot, 0)
        self._cells.set_consumed(self.slot, 0)

    def resume(self, done: int, answers: range) -> None:
        """Goes on with the stream of a predecessor, of which `done` bytes are done.

        Args:
            answers: the positions of what was recorded as not sent; some of it may be.

        Raises:
            OSError: the connection is broken.
            ValueError: how far it came is not known, or contradicts what was recorded;
                nothing has changed.
        """
        sent, consumed = self._cells.positions(self.slot)
        # Done is recorded before it is taken out, and answers before they are sent.
        if consumed > done or not answers.start <= sent <= answers.stop:
            raise ValueError("its last records are missing")
        if self._cells.is_unsure and sent < answers.stop:
            raise ValueError("it may have got a part of an answer")
        self.sent, self._consumed = sent, consumed
        sock = self._sock
        # What was peeked and not taken out; all of what is not done, or more.
        peeked = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        rest = min(done - self._consumed, peeked)
        if rest > 0:
            # So that a kill between here and the last line changes nothing.
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, rest)
            self._take_out(rest)
        self._consumed = done
        self._cells.set_consumed(self.slot, done)
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)

    def receive(self) -> bytes:
        """Returns what has come, and leaves it where it is; see `PlainFlow`."""
        if self.sent + self._consumed > LARGEST:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        data = self._sock.recv(READ_SIZE, socket.MSG_PEEK)
        self._peeked += len(data)
        return data

    def settle(self) -> None:
        """Takes out of the socket what was received; see `PlainFlow`."""
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
        """Sends what the socket takes; see `PlainFlow`."""
        if len(data) <= PIPE_SIZE:
            return self._send_some(data)
        begun = self.sent
        with memoryview(data) as view:
            while rest := view[self.sent - begun :][:PIPE_SIZE]:
                if self._send_some(rest) < len(rest):
                    break
        return self.sent - begun

    def _send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Sends what the pipe takes at once; returns what the socket took of it."""
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
