"""How bytes come from a client and go to it, so that none is lost or sent twice.

Plainly: recv(2) and send(2). What was received is in this process only.

Kept (`KeptFlow`): if this process is killed at any moment, another one that has the
socket can tell from what the kernel still has

- which requests were carried out and are to be taken out of the socket: they are read
  with MSG_PEEK, and taken out after what they did was recorded. SO_PEEK_OFF (socket(7))
  stands at what was peeked and not yet taken;
- which bytes of the answers have left: they go through a pipe, from which splice(2)
  moves them into the socket in one step. What is left in the pipe has not left.

The positions are cells of shared memory, stored after each step.
"""

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
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("lockd-cells", os.MFD_CLOEXEC)
            os.ftruncate(fd, CELLS_SIZE)
        self.fd = fd
        self._memory = mmap.mmap(fd, CELLS_SIZE)
        # Not struct.pack_into(), which fills with zeros first: a word is one store.
        self._words = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        """Lets go of the memory; somebody else may have it still."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)

    def set_sent(self, slot: int, position: int) -> None:
        """Stores how many bytes were sent."""
        self._words[_place(slot)] = position

    def set_consumed(self, slot: int, position: int) -> None:
        """Stores how many bytes were taken out of the socket."""
        self._words[_place(slot) + 1] = position

    def positions(self, slot: int) -> tuple[int, int]:
        """Returns how many bytes were sent, and how many were taken out."""
        place = _place(slot)
        return self._words[place], self._words[place + 1]

    def begin_sending(self, slot: int, position: int, size: int) -> None:
        """Stores what is about to leave the pipe; the size last, for it makes it so."""
        words = self._words
        words[0] = slot
        words[1] = position
        words[2] = size

    def end_sending(self, slot: int, position: int) -> None:
        """Stores how many bytes were sent, and that nothing is being sent any more."""
        words = self._words
        words[_place(slot)] = position
        words[2] = 0

    def finish_sending(self, pipe: "Pipe") -> None:
        """Finds out how far a predecessor came with what it was sending."""
        slot, position, size = self._words[:3]
        left = pipe.left()
        if size:
            self.end_sending(slot, position + size - left)
        pipe.empty()


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

    def resume(self, done: int) -> None:
        """Goes on with the stream of a predecessor, of which `done` bytes are done.

        Raises:
            OSError: the connection is broken.
        """
        self.sent, self._consumed = self._cells.positions(self.slot)
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
            size -= len(self._sock.recv(size))

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
