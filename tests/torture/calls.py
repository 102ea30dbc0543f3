"""SIGKILL at every system call of a scenario, and an error of each of them.

strace(1) is attached to the daemon when a scenario is prepared, and has the kernel kill
it when it enters the Nth of its calls of one name from there on; N rises until there is
none, for every name.
"""

import itertools
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from torture import scenarios
from torture.board import Board
from torture.inside import Actor
from torture.judge import Judge
from torture.line import UnansweredError
from torture.nursery import Nursery
from torture.portion import ALL, Portion
from torture.target import Target

PATIENCE: Final = 20.0
TAIL: Final = 0.03
"""Seconds that the daemon has for what it does after its last answer."""

ERRORS: Final = {
    "accept4": ("EMFILE", "ENFILE", "ECONNABORTED"),
    "epoll_ctl": ("ENOSPC", "ENOMEM"),
    "epoll_wait": ("EINTR",),
    "fallocate": ("ENOSPC",),
    "fcntl": ("ENOLCK", "EIO"),
    "flock": ("ENOLCK", "EIO"),
    "fstat": ("EIO",),
    "ftruncate": ("ENOSPC",),
    "memfd_create": ("EMFILE", "ENOMEM"),
    "mmap": ("ENOMEM",),
    "newfstatat": ("EIO",),
    "openat": ("EMFILE", "ENFILE", "ENOSPC", "EIO"),
    "pidfd_open": ("EMFILE",),
    "pidfd_send_signal": ("EPERM",),
    "read": ("EIO",),
    "recvfrom": ("EAGAIN", "EIO", "ENOBUFS"),
    "recvmsg": ("EAGAIN", "EIO", "ENOBUFS"),
    "sendmsg": ("EAGAIN", "ENOBUFS", "ETOOMANYREFS"),
    "sendto": ("EAGAIN", "EIO", "ENOBUFS"),
    "setsockopt": ("EIO",),
    "socketpair": ("EMFILE",),
    "splice": ("EAGAIN", "EIO", "ENOMEM"),
    "unlink": ("EIO", "EROFS"),
    "write": ("EAGAIN", "EIO", "ENOSPC"),
}
"""What a call may fail with; others cannot, or are none of the daemon's business."""

_NEVER: Final = re.compile(r"epoll_ctl\(\d+, EPOLL_CTL_(?:DEL|MOD)")
"""What never fails so in the kernel: only to watch one more takes memory."""

_CALL: Final = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


NOT_LEFT: Final = ("execve", "exit_group", "rt_sigreturn")
"""Calls that are not delayed at their end, or have none."""

LOOKING: Final = (
    *("access", "brk", "close", "fstat", "futex", "getdents64", "getrandom", "ioctl"),
    *("lseek", "mmap", "mprotect", "munmap", "newfstatat", "openat", "read"),
    *("readlink", "rt_sigaction", "rt_sigprocmask"),
)
"""Calls with which an interpreter begins, thousands of them, and changes nothing."""

DELAY: Final = 0.15
"""Seconds for which a call does not come back. Who is killed meanwhile is not known to
be dead before they are over."""

UPGRADE_SECONDS: Final = 2.0
"""Within which the new program serves."""

STOPPED: Final = 0.03
"""Seconds for which a process is stopped that is being delayed, and no other."""


@dataclass
class Hit:
    """One scenario: how many system calls it has, at how many the daemon was killed.

    `hit` counts kills before a call had any effect, `hit_after` those after it. Of the
    calls that were seen once, `missed` are those that did not come again.
    """

    name: str
    total: int = 0
    hit: int = 0
    hit_after: int = 0
    violations: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)


class StuckError(Exception):
    """Raised when a scenario cannot be prepared: something was left by the last."""


class Tracer:
    """strace(1), attached to a process."""

    def __init__(self, pid: int, output: Path, *options: str) -> None:
        self._output = output
        self._process = subprocess.Popen(
            ["strace", "-o", str(output), *options, "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        assert "attached" in said, said

    def close(self) -> str:
        """Detaches it; returns what it wrote."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=30)
        return self._output.read_text(errors="replace")

    def wait(self, seconds: float) -> None:
        """Waits until the process has ended that is traced, or so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


def _is_delayed(pid: int, actor: Actor | None) -> bool:
    """Waits until a traced process stays stopped; tells if it does before all is done.

    Otherwise it is stopped for no longer than the tracer takes to write a line.

    Args:
        actor: when it has done what it does, little will come; None: much may.
    """
    end, since = time.monotonic() + PATIENCE, None
    while (now := time.monotonic()) < end:
        if not _is_stopped(pid):
            since = None
        elif since is None:
            since = now
        elif now - since > STOPPED:
            return True
        if actor is not None and actor.has_come():
            end, actor = now + TAIL + STOPPED, None
        time.sleep(0.001)
    return False


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] == "t"


SOON: Final = "[Service]\nRestartSec=0\n"


@contextmanager
def bystanders(target: Target, board: Board, judge: Judge) -> Iterator[None]:
    """Those who hold locks all the time and ask for nothing, and the prober.

    Meanwhile the daemon is started again as soon as it is dead.
    """
    board.clear()
    target.drop_in(SOON)
    board.note_fault()
    nursery = Nursery(board, target.first_pid, 1, is_quiet=True)
    try:
        end = time.monotonic() + PATIENCE
        # Two keepers with 15 each, three guests.
        while board.total("grants") < 33:
            assert time.monotonic() < end, board.complaints()
            time.sleep(0.05)
        yield
    finally:
        board.stop()
        nursery.wait()
        target.drop_in("")
        judge.judge(board)


class Calls:
    """Plays scenarios while the daemon is killed."""

    def __init__(self, target: Target, board: Board, judge: Judge, seed: int) -> None:
        self._target, self._board, self._judge = target, board, judge
        self._chance = random.Random(seed)
        self._trace = target.scratch / "trace"
        self._context = ""

    def every(
        self, found: Hit, scenario: scenarios.Scenario, portion: Portion = ALL
    ) -> None:
        """Kills at every system call, or at those of a portion.

        strace counts each call by itself: the third recvfrom, the first unlink. So of
        each it is done until there is no such call any more.
        """
        self._context = found.name
        with self._unless_stuck(found):
            trace, found.violations = self._play(scenario, "-e", "trace=all")
            seen = Counter(_CALL.findall(trace))
            found.total = seen.total()
            if portion.is_sample:
                pairs = [(x, at) for x in seen for at in range(1, seen[x] + 1)]

                def is_hit(pair: tuple[str, int]) -> bool:
                    return "killed by SIGKILL" in self._kill(found, scenario, *pair)

                portion.take(pairs, self._chance, is_hit)
            else:
                self._every(found, scenario, seen, portion)

    @contextmanager
    def _unless_stuck(self, found: Hit) -> Iterator[None]:
        try:
            yield
        except StuckError:
            self._judge.say("left", f"{self._context}: what came before was not ended")
            found.violations += self._take_complaints(False) + 1
        except UnansweredError:
            self._context = f"after {self._context}"
            found.violations += self._take_complaints(False)
            self._target.kill()

    def _every(
        self,
        found: Hit,
        scenario: scenarios.Scenario,
        seen: Counter[str],
        portion: Portion,
    ) -> None:
        waiting = list(seen)
        while waiting:
            call = waiting.pop()
            for at in filter(partial(portion.has, call), itertools.count(1)):
                if at > seen[call] and portion.of > 1:
                    break  # somebody else looks whether there are more
                trace = self._kill(found, scenario, call, at)
                more = Counter(_CALL.findall(trace))
                waiting += [other for other in more if other not in seen]
                seen |= more
                if "killed by SIGKILL" not in trace:
                    break
        found.total = max(found.total, found.hit)
        if portion == ALL:
            found.missed = seen - found.calls

    def _kill(
        self, found: Hit, scenario: scenarios.Scenario, call: str, at: int
    ) -> str:
        """Kills before and after the `at`-th of a call; returns the first trace."""
        trace = self._kill_at(found, scenario, call, at)
        if "killed by SIGKILL" in trace:
            found.hit += 1
            found.calls[call] += 1
            is_upgrade = scenario is scenarios.UPGRADE
            if call not in NOT_LEFT and not (is_upgrade and call in LOOKING):
                self._kill_after(found, scenario, call, at)
        return trace

    def _kill_after(
        self, found: Hit, scenario: scenarios.Scenario, call: str, at: int
    ) -> None:
        """Plays with a kill when the `at`-th of a call is done, and not yet known.

        What the daemon writes into shared memory between two calls is not there then.
        """
        self._context = f"{found.name}, killed when {call} {at} was done"
        option = f"inject={call}:delay_exit={DELAY * 1e6:.0f}:when={at}"
        for _ in range(2):
            trace, violations = self._play(
                scenario, "-e", "trace=all", "-e", option, is_killed_soon=True
            )
            found.violations += violations
            if _CALL.findall(trace)[-1:] == [call]:
                found.hit_after += 1
                break

    def _kill_at(
        self, found: Hit, scenario: scenarios.Scenario, call: str, at: int
    ) -> str:
        """Plays with a kill at the `at`-th of a call; once more if it did not come."""
        self._context = f"{found.name}, killed at {call} {at}"
        for _ in range(2):
            option = f"inject={call}:signal=SIGKILL:when={at}"
            # To write down all of an upgrade takes as long as to start.
            shown = call if scenario is scenarios.UPGRADE else "all"
            trace, violations = self._play(
                scenario, "-e", f"trace={shown}", "-e", option
            )
            found.violations += violations
            if "killed by SIGKILL" in trace:
                break
        return trace

    def errors(
        self, found: Hit, scenario: scenarios.Scenario, portion: Portion = ALL
    ) -> None:
        """Has every system call fail once, with each error that it may have.

        Who acts may be refused or lose the session; nobody else may notice.
        """
        self._context = found.name
        with self._unless_stuck(found):
            trace, found.violations = self._play(scenario, "-e", "trace=all")
            seen: Counter[str] = Counter()
            failures = []
            for line in trace.splitlines():
                for call in _CALL.findall(line):
                    seen[call] += 1
                    if not _NEVER.search(line):
                        errors = ERRORS.get(call, ())
                        failures += [(call, error, seen[call]) for error in errors]
            found.total = len(failures)
            failures = [x for x in failures if portion.has(x[0] + x[1], x[2])]
            portion.take(
                failures, self._chance, lambda x: self._fails(found, scenario, *x)
            )

    def _fails(
        self, found: Hit, scenario: scenarios.Scenario, call: str, error: str, at: int
    ) -> bool:
        self._context = f"{found.name}, {error} from {call} {at}"
        option = f"inject={call}:error={error}:when={at}"
        trace, violations = self._play(
            scenario, "-e", "trace=all", "-e", option, is_tolerant=True
        )
        found.violations += violations
        is_hit = "(INJECTED)" in trace
        found.hit += is_hit
        found.calls[call] += is_hit
        return is_hit

    def _play(
        self,
        scenario: scenarios.Scenario,
        *options: str,
        is_tolerant: bool = False,
        is_killed_soon: bool = False,
    ) -> tuple[str, int]:
        """Plays it once, traced; returns the trace, and how much was wrong.

        Args:
            is_killed_soon: it is killed when it should be where it is delayed.
        """
        board = self._board
        self._target.statistics(board)
        board.note_fault()
        actor = Actor(self._target.first_pid, partial(scenarios.play, board, scenario))
        if not actor.wait(PATIENCE):
            actor.end()
            raise StuckError
        time.sleep(TAIL)
        before = self._target.wait_pid()
        tracer = Tracer(before, self._trace, *options)
        board.note_fault()
        actor.go()
        is_upgrade = scenario is scenarios.UPGRADE
        if is_upgrade:
            self._target.kill(signal.SIGUSR1)
        if is_killed_soon:
            if _is_delayed(before, None if is_upgrade else actor):
                self._target.kill()
        elif is_upgrade:
            tracer.wait(UPGRADE_SECONDS)
        actor.wait(PATIENCE)
        tracer.wait(TAIL)
        trace = tracer.close()
        board.note_fault()
        actor.go()
        status = actor.end()
        if status:
            board.complain("harness", f"an actor ended with {status}")
        if any("(INJECTED)" in x for x in trace.splitlines() if _NEVER.search(x)):
            # Calls came in another order than before. Whatever follows says nothing.
            self._board.complaints()
            self._target.kill()
            return "", 0
        return trace, self._take_complaints(is_tolerant)

    def _take_complaints(self, is_tolerant: bool) -> int:
        """Tells the judge; who acts may be refused, or lose what it has."""
        found = self._board.complaints()
        own = [
            what
            for kind, what, _ in found
            if kind in ("lost connection", "unexpected answer")
            and what.startswith("actor")
        ]
        is_allowed = is_tolerant and bool(own)
        count = 0
        for kind, what, _ in found:
            is_of_it = what in own or kind == "wrong state" or "a try was" in what
            if not (is_allowed and is_of_it):
                self._judge.say(kind, f"{self._context}: {what}")
                count += 1
        return count
