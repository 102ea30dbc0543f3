"""A connection whose every byte is accounted for: raw MessagePack-RPC, blocking.

No library of lockd's own is used, so that none can hide what the daemon does.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgpack

from torture.board import Board, now

SOCKET: Final = "/run/lockd/lockd.sock"

PATIENCE: Final = 10.0
"""Seconds after the last fault, or the question, within which an answer must come."""

LONGEST: Final = 120.0
"""Seconds within which it must come however many faults there are."""


class LostError(Exception):
    """Raised when a connection on which something was answered has ended."""


class UnansweredError(Exception):
    """Raised when an answer does not come."""


class EndedError(Exception):
    """Raised when the round is over."""


class NeverServedError(Exception):
    """Raised when a new connection ends before it was answered anything."""


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """An answer that is an error."""

    def __init__(self, error: list[Any]) -> None:
        super().__init__(error[1])
        self.code = str(error[1]).partition(":")[0]


class Line:
    """One session. Each of its requests must be answered exactly once.

    Args:
        board: where it looks whether faults are going on, and complains.
        slot: whose tallies it adds to.
        name: how it is called in complaints.
    """

    def __init__(self, board: Board, slot: int, name: str, path: str = SOCKET) -> None:
        self._board = board
        self._slot = slot
        self.name = name
        self.socket = _connected(board, path)
        self.socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self._unpacker = msgpack.Unpacker(max_buffer_size=2**27)
        self._last = 0
        self._open: dict[int, int] = {}  # when what was asked
        self._answers: dict[int, tuple[Any, Any, int]] = {}
        self._is_served = False
        #: What it was told of its locks.
        self.notices: list[str] = []
        #: Whether its locks may be broken, and the tokens of those that were.
        self.may_break = False
        self.broken: list[int] = []
        self.chunk = 65_536
        self.pause = 0.0
        board.tally(slot, "connections")

    def close(self) -> None:
        self.socket.close()

    def ask(self, method: str, **params: object) -> int:
        """Sends a request; returns its msgid."""
        return self.ask_all([(method, params)])[0]

    def ask_all(
        self, calls: list[tuple[str, dict[str, object]]], cut: int = 0
    ) -> list[int]:
        """Sends requests with one call; with a `cut`, in two pieces with a pause."""
        msgids, data = [], b""
        for method, params in calls:
            self._last += 1
            msgids.append(self._last)
            data += msgpack.packb([0, self._last, method, [params]])
        sent = now()
        self._open.update(dict.fromkeys(msgids, sent))
        if cut:
            self._send(data[:cut])
            time.sleep(0.003)
        self._send(data[cut:])
        return msgids

    @property
    def next_msgid(self) -> int:
        return self._last + 1

    def wait(self, msgid: int, patience: float = PATIENCE) -> Any:
        """Waits for the answer; returns the result. Raises Refused."""
        return self.wait_timed(msgid, patience)[0]

    def wait_timed(self, msgid: int, patience: float = PATIENCE) -> tuple[Any, int]:
        """Waits; returns the result, and when it was received. Raises Refused."""
        if msgid not in self._answers:
            self._receive_until(
                lambda: msgid in self._answers, self._open[msgid], patience
            )
        error, result, at = self._answers.pop(msgid)
        if error is not None:
            raise Refused(error)
        return result, at

    def call(self, method: str, **params: object) -> Any:
        return self.wait(self.ask(method, **params))

    def look(self, seconds: float = 0) -> None:
        """Reads what has come without being waited for, or comes within so long."""
        if self._poll.poll(seconds * 1_000):
            self._receive()

    def hear(self, count: int) -> list[str]:
        """Waits until so many notices have come; returns all that have."""
        self._receive_until(lambda: len(self.notices) >= count, now(), PATIENCE)
        return self.notices

    def is_answered(self, msgid: int) -> bool:
        return msgid in self._answers

    def finish(self) -> None:
        """Closes; nothing may come that was not asked for, nothing be missing."""
        try:
            msgid = self.ask("statistics")
            self.wait(msgid)
        finally:
            self.socket.close()
        if self._answers:
            self._board.complain("harness", f"{self.name}: answers nobody waited for")

    def _receive_until(
        self, is_done: Callable[[], bool], asked: int, patience: float
    ) -> None:
        while not is_done():
            if not self._poll.poll(200):
                waited = (now() - max(asked, self._board.last_fault)) / 1e9
                total = (now() - asked) / 1e9
                if waited > patience or total > LONGEST:
                    self._board.complain(
                        "unanswered",
                        f"{self.name}: no answer in {total:.1f} s, {waited:.1f} s "
                        f"after the last fault; served before: {self._is_served}",
                    )
                    raise UnansweredError(self.name)
                continue
            self._receive()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                if self._poll.poll(0):
                    self._receive()
                select.select([], [self.socket], [], 0.05)
                if self._board.is_over:
                    raise EndedError from None
            except (BrokenPipeError, ConnectionResetError) as error:
                self._is_lost(repr(error))

    def _receive(self) -> None:
        if self.pause:
            time.sleep(self.pause)
        try:
            data = self.socket.recv(self.chunk)
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            self._is_lost(repr(error))
        if not data:
            self._is_lost("EOF")
        at = now()
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._take(message, at)

    def _is_lost(self, how: str) -> None:
        if not self._is_served:
            self._board.tally(self._slot, "repeated connections")
            raise NeverServedError(self.name)
        self._board.complain(
            "lost connection", f"{self.name}: {how}, {len(self._open)} requests open"
        )
        raise LostError(self.name)

    def _take(self, message: Any, at: int) -> None:
        self._is_served = True
        match message:
            case [1, int(msgid), error, result] if msgid in self._open:
                del self._open[msgid]
                self._answers[msgid] = (error, result, at)
                self._board.tally(self._slot, "answers")
            case [1, msgid, *_] if isinstance(msgid, int) and 0 < msgid <= self._last:
                self._board.complain("repeated answer", f"{self.name}: {message}")
            case [2, "resumed", *_]:
                self._board.tally(self._slot, "resumed")
            case [2, "notice", [{"what": what}]]:
                self.notices.append(what)
            case [2, "lost", [{"cause": "broken", "fencing_token": int(token)}]] if (
                self.may_break
            ):
                self.broken.append(token)
            case [2, "lost", [params]]:
                self._board.complain("lost lock", f"{self.name}: {params}")
            case _:
                self._board.complain("malformed", f"{self.name}: {message}")


def _connected(board: Board, path: str) -> socket.socket:
    """Connects; with the backlog full it tries again."""
    began = now()
    while True:
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(path)
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError) as error:
            end.close()
            if (now() - max(began, board.last_fault)) / 1e9 > PATIENCE:
                board.complain("unanswered", f"{path} cannot be connected: {error!r}")
                raise UnansweredError(path) from None
            time.sleep(0.01)
        else:
            return end
