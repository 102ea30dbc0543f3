"""Records that were spoilt while nobody looked: nothing may be given away for it.

The records are in shared memory that PID 1 has. While the daemon is stopped, bits of it
are turned or its end is cut off; then the daemon is killed. Who is told by the end of
the connection is told; who is not must have all that was granted. It is killed once
more, and then nothing is damaged: what is locked although nobody holds it stays so.
"""

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from torture import scenarios
from torture.board import Board
from torture.inside import Actor, Stage
from torture.judge import Judge
from torture.keepers import why_free
from torture.line import Line, LostError, Refused, UnansweredError
from torture.places import DIRECTORY
from torture.target import SERVICE, Target

SESSIONS: Final = 12
SECONDS: Final = 60.0

KINDS: Final = ("one bit", "a hundred bits", "a page of zeroes", "cut off", "all of it")


def victims(board: Board, stage: Stage) -> None:
    """Sessions with a lock each; looks what each of them still has."""
    try:
        _victims(board, stage)
    except UnansweredError:
        # Nobody serves. What was granted must be locked nevertheless.
        for number in range(SESSIONS):
            path = f"{DIRECTORY}/damaged-{number}"
            if why := why_free(path, 1):
                board.complain("free moment", f"{path} is {why}, and nobody serves")


def _victims(board: Board, stage: Stage) -> None:
    scene = scenarios.Scene(board, stage)
    lines = [scene.line() for _ in range(SESSIONS)]
    tokens = [
        scene.acquire(line, f"damaged-{n}", lockspace="files")
        for n, line in enumerate(lines)
    ]
    if not stage.step():
        return
    going_on: list[int] = []
    for number, (line, token) in enumerate(zip(lines, tokens, strict=True)):
        try:
            _look(scene, line, f"damaged-{number}", token)
        except LostError:
            board.tally(scenarios.SLOT, "ended")
        except Refused as refusal:
            board.complain("wrong state", f"after damage: {refusal}")
        else:
            board.tally(scenarios.SLOT, "went on")
            going_on.append(number)
    paths = [f"{DIRECTORY}/damaged-{number}" for number in range(SESSIONS)]
    locked = [path for path in paths if not why_free(path, 1)]
    if not stage.step():
        return
    scene.line()  # it serves again, and has let go of what it lets go of
    for number in going_on:
        _look(scene, lines[number], f"damaged-{number}", tokens[number])
    for path in locked:
        scene.must(why_free(path, 1), "", f"{path}, which nobody let go of")
    board.tally(scenarios.SLOT, "stayed locked", len(locked) - len(going_on))
    stage.step()


def _look(scene: scenarios.Scene, line: Line, name: str, token: int) -> None:
    is_current = line.call(
        "check", lockspace="files", resource=name, fencing_token=token
    )["current"]
    scene.must(is_current, True, "a lock of a session that goes on, after damage")
    scene.must(why_free(f"{DIRECTORY}/{name}", 1), "", "its file")
    scene.must_be_busy(name, lockspace="files")


class Damage:
    """Spoils what is kept."""

    def __init__(self, target: Target, board: Board, judge: Judge, seed: int) -> None:
        self._target, self._board, self._judge = target, board, judge
        self._chance = random.Random(seed)
        self.spoilt = 0
        self.violations = 0

    def memories(self) -> list[Path]:
        """Returns where the shared memory that PID 1 keeps for lockd can be opened."""
        found = []
        for entry in Path(f"/proc/{self._target.first_pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(entry).startswith("/memfd:lockd"):
                    found.append(entry)
        return found

    def once(self, kind: str) -> Counter[str]:
        """Spoils in one way; returns how many sessions went on, and were ended."""
        board = self._board
        board.clear()
        board.note_fault()
        actor = Actor(self._target.first_pid, partial(victims, board))
        if not actor.wait(SECONDS):
            board.complain("unanswered", f"no session after {kind} was damaged")
        starts = self._starts()
        self._target.kill(signal.SIGSTOP)
        for path in self.memories():
            self._spoil(path, kind)
        self._target.kill()
        board.note_fault()
        try:
            self._target.statistics(board)
        except UnansweredError:
            board.complain("unanswered", f"it does not serve: {self._said()}")
        self._must_have_started_once(board, kind, starts)
        board.note_fault()
        actor.go()
        actor.wait(SECONDS)
        self._target.kill()
        board.note_fault()
        actor.go()
        actor.wait(SECONDS)
        actor.end()
        for found, what, _ in board.complaints():
            # To end whose record cannot be read is what it should do.
            if found != "lost connection":
                self._judge.say(found, f"{kind}: {what}")
                self.violations += 1
        self._begin_anew()
        return Counter(
            {
                "went on": board.total("went on"),
                "were ended": board.total("ended"),
                "left a file that stays locked": board.total("stayed locked"),
            }
        )

    def _starts(self) -> int:
        return int(self._target.machine.show(SERVICE, "NRestarts"))

    def _must_have_started_once(self, board: Board, kind: str, before: int) -> None:
        if (starts := self._starts() - before) != 1:
            board.complain("wrong state", f"{kind}: {starts} starts: {self._said()}")

    def _said(self) -> str:
        return self._target.machine.journal(SERVICE)[-300:]

    def _begin_anew(self) -> None:
        """Has the next damage meet a daemon that has nothing of this one."""
        run = self._target.machine.run
        run("systemctl", "stop", SERVICE)
        run("systemctl", "reset-failed", SERVICE, check=False)
        run("systemctl", "start", SERVICE)

    def _spoil(self, path: Path, kind: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            used = list(_used(descriptor))
            if not used:
                return
            self.spoilt += 1
            if kind == "cut off":
                os.ftruncate(descriptor, self._chance.choice(used))
            elif kind == "all of it":
                os.pwrite(descriptor, self._chance.randbytes(used[-1] + 64), 0)
            elif kind == "a page of zeroes":
                os.pwrite(descriptor, bytes(4_096), self._chance.choice(used))
            else:
                for _ in range(1 if kind == "one bit" else 100):
                    at = self._chance.choice(used) + self._chance.randrange(64)
                    byte = os.pread(descriptor, 1, at)[0]
                    turned = byte ^ 1 << self._chance.randrange(8)
                    os.pwrite(descriptor, bytes([turned]), at)
        finally:
            os.close(descriptor)


def _used(descriptor: int) -> Iterator[int]:
    """Returns where there is anything but zeroes, in steps of 64 bytes."""
    size = os.fstat(descriptor).st_size
    at = 0
    while True:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but holes from here on
            return
        end = min(os.lseek(descriptor, at, os.SEEK_HOLE), size)
        data = os.pread(descriptor, end - at, at)
        yield from (at + n for n in range(0, len(data), 64) if any(data[n : n + 64]))
        at = end
