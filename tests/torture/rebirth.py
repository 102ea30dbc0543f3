"""SIGKILL at every system call of recovery itself, up to twenty times in a row.

The unit is started through a script which takes the next line of a plan: the call at
which strace(1) has the kernel kill this start. Without a line it starts as ever.
"""

import random
import re
import time
from collections import Counter
from functools import partial
from typing import Final

from torture import scenarios
from torture.board import Board
from torture.calls import Hit
from torture.inside import Actor, Stage
from torture.judge import Judge
from torture.line import LostError, Refused, UnansweredError
from torture.portion import ALL, Portion
from torture.target import Target

PLACE: Final = "/run/torture"
IN_A_ROW: Final = 20
SECONDS: Final = 60.0

STUCK: Final = 0.5
"""Seconds after which a start that was not killed is looked at."""

_CALL: Final = re.compile(r"^(\w+)\(", re.MULTILINE)
_KILLED: Final = re.compile(r" = \?\n(\+\+\+ killed by SIGKILL \+\+\+\n)?$")

_SCRIPT: Final = """#!/bin/sh
# $1: where the plan is; the rest: what is started.
place=$1; shift
read -r line < $place/plan
if [ -z "$line" ]; then exec "$@"; fi
sed -i 1d $place/plan
set -- "$@"
number=${line%% *}
# Not with --seccomp-bpf: strace 6.1 forgets with it what is to be injected.
exec strace -D -o $place/trace-$number ${line#* } "$@"
"""

# ptrace(2) is not among what the daemon may call; nothing else is different.
_UNIT: Final = """[Service]
ExecStart=
ExecStart=/bin/sh {place}/start {place} {command}
ReadWritePaths={place}
SystemCallFilter=
SystemCallFilter=@system-service @debug
RestartSec=0
"""

_COMMAND: Final = re.compile(r"argv\[\]=(.*?) ;")


def witness(board: Board, stage: Stage) -> None:
    """Has locks and places in a queue, and looks at each step whether it still has."""
    scene = scenarios.Scene(board, stage)
    try:
        holder, waiter = scene.line(), scene.line()
        token = scene.acquire(holder, "witnessed", lockspace="files")
        msgid = scenarios.waits(scene, waiter, "witnessed")
        while stage.step():
            state = scene.query("witnessed", lockspace="files")
            scene.must(state, ([token], 1), "after recovery")
            scene.lines.pop().finish()
        holder.call("release", fencing_token=token)
        waiter.wait(msgid)
    except (LostError, UnansweredError):
        pass  # has been complained of
    except Refused as refusal:
        board.complain("unexpected answer", f"a witness: {refusal}")


def _ends_with(trace: str, at: int) -> bool:
    """Tells whether a start was killed at the `at`-th call of those that are traced.

    Whoever came so far as to serve was killed, too, for that. That somebody was killed
    is not always written: the manager ends the tracer with the rest of the service.
    """
    return len(_CALL.findall(trace)) == at and bool(_KILLED.search(trace))


class Rebirth:
    """Kills the daemon while it comes back."""

    def __init__(self, target: Target, board: Board, judge: Judge, seed: int) -> None:
        self._target, self._board, self._judge = target, board, judge
        self._chance = random.Random(seed)

    def every(self, found: Hit, portion: Portion = ALL) -> None:
        """Kills each start at another call until all of a portion had one."""
        machine = self._target.machine
        shown = machine.show("lockd.service", "ExecStart")
        command = _COMMAND.search(shown)
        assert command is not None, shown
        machine.run("mkdir", "-p", PLACE)
        machine.write(f"{PLACE}/start", _SCRIPT)
        machine.write(f"{PLACE}/plan", "")
        machine.run("chown", "-R", "lockd:", PLACE)
        self._target.drop_in(_UNIT.format(place=PLACE, command=command[1]))
        actor = Actor(self._target.first_pid, partial(witness, self._board))
        try:
            assert actor.wait(SECONDS)
            self._run(found, actor, portion)
        finally:
            self._plan([])
            self._target.drop_in("")
            # It may be traced still.
            self._target.kill()
            self._board.note_fault()
            actor.end()

    def _run(self, found: Hit, actor: Actor, portion: Portion) -> None:
        self._batch(["0 -e trace=all"])
        seen = Counter(_CALL.findall(self._trace(0)))
        every = [(call, at) for call in seen for at in range(1, seen[call] + 1)]
        found.total = len(every)
        chosen = [pair for pair in every if portion.has(*pair)]
        self._chance.shuffle(chosen)
        chosen = chosen[: len(chosen) // portion.one_in]
        # Not each start comes to the same calls.
        missed = self._kill_each(found, actor, chosen)
        missed = self._kill_each(found, actor, missed)
        found.missed = Counter(call for call, _ in missed)

    def _kill_each(
        self, found: Hit, actor: Actor, chosen: list[tuple[str, int]]
    ) -> list[tuple[str, int]]:
        """Kills a start at each of some calls; returns those it did not come to."""
        missed = []
        for start in range(0, len(chosen), IN_A_ROW):
            batch = chosen[start : start + IN_A_ROW]
            self._batch(
                [
                    f"{number} -e trace={c} -e inject={c}:signal=SIGKILL:when={at}"
                    for number, (c, at) in enumerate(batch, 1)
                ]
            )
            for number, (call, at) in enumerate(batch, 1):
                if _ends_with(self._trace(number), at):
                    found.hit += 1
                    found.calls[call] += 1
                else:
                    missed.append((call, at))
            actor.go()
            actor.wait(SECONDS)
            for kind, what, _ in self._board.complaints():
                found.violations += 1
                self._judge.say(kind, f"recovery, killed in {batch}: {what}")
        return missed

    def _plan(self, lines: list[str]) -> None:
        """Says what the next starts are to meet; whose file it is stays so."""
        plan = self._target.file(f"{PLACE}/plan")
        plan.write_text("".join(f"{line}\n" for line in lines))

    def _batch(self, lines: list[str]) -> None:
        """Has one start after the other meet its line, and then one meet none."""
        for trace in self._target.file(PLACE).glob("trace-*"):
            trace.unlink()
        self._plan(lines)
        plan = self._target.file(f"{PLACE}/plan")
        self._target.kill()
        began = time.monotonic()
        last, since = "", began
        while left := plan.read_text():
            self._board.note_fault()
            now = time.monotonic()
            assert now - began < SECONDS, self._target.states()
            if left != last:
                last, since = left, now
            elif now - since > STUCK and self._target.is_serving():
                self._target.kill()  # it did not come to its call
                since = now
            time.sleep(0.003)
        # The last line is met by a start which perhaps serves, traced.
        self._board.note_fault()
        self._target.statistics(self._board)

    def _trace(self, number: int) -> str:
        try:
            return self._target.file(f"{PLACE}/trace-{number}").read_text()
        except FileNotFoundError:
            return ""
