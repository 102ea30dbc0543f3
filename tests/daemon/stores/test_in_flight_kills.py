"""A process that keeps descriptors is killed: at every system call, and anywhere."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from daemon.stores.kept import contents, copies, is_locked, lock, shrink
from lockd.daemon.stores.in_flight import InFlight

SYSTEM_CALLS = {
    *("sendmsg", "recvmsg", "setsockopt", "close", "read", "write", "pread"),
    *("memfd_create", "open"),
}
"""The Python functions that call the kernel where anything changes."""

Say = Callable[[str], None]


pytestmark = pytest.mark.usefixtures("many_descriptors")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The ends as a service manager has them, of queues that are soon full."""
    shrink(monkeypatch.setattr)
    keeper = InFlight()
    ends = copies(keeper.ends)
    keeper.close()
    yield ends
    for fd in ends:
        os.close(fd)


class Killed:
    """A child that works with a keeper and says what it did."""

    def __init__(
        self, ends: list[int], work: Callable[[InFlight, Say], None], kill_at: int = 0
    ) -> None:
        self.said, saying = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.said)
                if kill_at:
                    sys.setprofile(_killer(kill_at))
                work(InFlight(ends), lambda word: _say(saying, word))
                sys.setprofile(None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.close(saying)

    def end(self, after: int | None = None) -> tuple[list[str], bool]:
        """Returns what it said, and whether it was killed.

        Args:
            after: how many words it may say before it is killed.
        """
        with open(self.said) as file:
            words = [word for _, word in zip(range(after or 0), file, strict=False)]
            if after is not None:
                os.kill(self.pid, signal.SIGKILL)
            words += file
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return [word.strip() for word in words], status != 0


def _say(fd: int, word: str) -> None:
    os.write(fd, f"{word}\n".encode())


def _killer(at: int) -> Callable[[FrameType, str, object], None]:
    """Returns what kills this process before or after a system call, the n-th."""
    left = at

    def count(frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event in ("c_call", "c_return"):
            left -= getattr(function, "__name__", "") in SYSTEM_CALLS
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return count


def kept_after(words: list[str], before: set[str]) -> set[str]:
    """Returns what must be kept after a child said all this."""
    kept = set(before)
    for word in words:
        kept = kept | {word[1:]} if word[0] == "+" else kept - {word[1:]}
    return kept


def work_in(directory: Path, keeper: InFlight, say: Say) -> None:
    """Goes on with what is there, and makes every kind of change to it."""
    fds = dict(keeper.recover())
    for i in range(100, 116):
        label = b"%d" % i
        fds[label] = lock(directory / str(i))
        keeper.keep(label, fds[label])
        say(f"+{i}")
        if i % 3 == 0:
            say(f"-{i - 1}")
            keeper.drop(b"%d" % (i - 1))
            os.close(fds.pop(b"%d" % (i - 1)))
    keeper.tidy(1e9)
    keeper.tidy(1e9, thoroughly=True)


def prepare(ends: list[int], directory: Path) -> set[str]:
    """Has some locks kept, and an older copy of some left, as a kill leaves it."""
    keeper = InFlight(copies(ends))
    keeper.recover()
    fds = [lock(directory / str(i)) for i in range(9)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    old, young = keeper._queues[1], keeper._queues[0]
    old.send([message[0] for message in young.messages])
    keeper.close()
    for fd in fds:
        os.close(fd)
    return {str(i) for i in range(9)}


def check(ends: list[int], directory: Path, kept: set[str]) -> None:
    """Finds every lock where it must be, now and when a successor has tidied."""
    for _ in range(2):
        found = contents(ends)
        for name in kept:
            assert found[name.encode()] == (directory / name).stat().st_ino
            assert is_locked(directory / name)
        successor = InFlight(copies(ends))
        fds = dict(successor.recover())
        successor.tidy(1e9, thoroughly=True)
        successor.close()
        for fd in fds.values():
            os.close(fd)


def drain(ends: list[int]) -> None:
    keeper = InFlight(copies(ends))
    for label, fd in keeper.recover():
        keeper.drop(label)
        os.close(fd)
    keeper.tidy(1e9, thoroughly=True)
    assert keeper.count == 0
    keeper.close()


@pytest.mark.interpreted
@pytest.mark.slow
def test_kill_at_any_system_call_loses_nothing(
    outside: list[int], tmp_path: Path
) -> None:
    kill_at, was_killed = 0, True
    while was_killed:
        kill_at += 1
        before = prepare(outside, tmp_path)
        child = Killed(outside, partial(work_in, tmp_path), kill_at)
        words, was_killed = child.end()
        check(outside, tmp_path, kept_after(words, before))
        drain(outside)
        assert not any(is_locked(path) for path in tmp_path.iterdir())
    assert kill_at > 200, "so few were tried"


@pytest.mark.slow
def test_kills_in_a_row_lose_nothing(outside: list[int], tmp_path: Path) -> None:
    chance = Random(5)
    kept: set[str] = set()
    names = iter(range(10**9))

    def work(life: int, keeper: InFlight, say: Say) -> None:
        fds = dict(keeper.recover())
        while True:
            if len(fds) < 40 or chance.random() < 0.5:
                name = f"{life}-{next(names)}"
                fds[name.encode()] = lock(tmp_path / name)
                keeper.keep(name.encode(), fds[name.encode()])
                say(f"+{name}")
            else:
                label = chance.choice(list(fds))
                say(f"-{label.decode()}")
                keeper.drop(label)
                os.close(fds.pop(label))
            keeper.tidy(1e9, thoroughly=chance.random() < 0.1)

    for life in range(40):
        after = chance.randrange(1, 60)
        words, was_killed = Killed(outside, partial(work, life)).end(after)
        assert was_killed
        assert len(words) >= after
        kept = kept_after(words, kept)
        check(outside, tmp_path, kept)
    assert len(kept) > 20
