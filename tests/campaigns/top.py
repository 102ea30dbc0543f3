"""What `lockctl top` costs the daemon, with 10,000 locks held and some of them in use.

    python -m campaigns.top [--locks 10000] [--seconds 20] [--pairs 0 100]

The daemon's time on a processor comes from /proc/PID/schedstat. It is taken without
anybody who watches, and with one `top` on a terminal of 80x24, while a client acquires
and releases at a steady pace: the difference is what watching costs.
"""

import argparse
import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from campaigns.tools import Counts, daemon, end
from lockd import Client, connect

MOST = 0.10
"""Of a core, that the daemon may need for one who watches."""


def on_processor(pid: int) -> float:
    """Returns for how many seconds a process, all its threads, has run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    spent = (int((task / "schedstat").read_text().split()[0]) for task in tasks)
    return sum(spent) / 1e9


class Use:
    """A client that acquires and releases one lock after the other, at a pace."""

    def __init__(self, socket: str, pairs: float) -> None:
        self.done = 0
        self._client = connect(socket, name="in use")
        self._pairs = pairs
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(0.01):
            # A machine that is too slow for the pace does not make up for it.
            due = max(due, time.monotonic() - 0.1)
            while due < time.monotonic() and self._pairs and not self._ended.is_set():
                name = f"in-use-{self.done % 100}"
                self._client.acquire(name)
                self._client.release(name)
                self.done += 1
                due += 1 / self._pairs

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()


@contextmanager
def top(socket: str) -> Iterator[int]:
    """Runs top on a terminal of 80x24 until it has drawn; yields its pid."""
    pid, master = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "lockd.ctl.main", "--socket", socket, "top"]
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm"})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    while b"grants/s" not in shown:
        shown += os.read(master, 65_536)
    drain = threading.Thread(target=_read_all, args=(master,))
    drain.start()
    try:
        yield pid
    finally:
        os.write(master, b"q")
        os.waitpid(pid, 0)
        drain.join()
        os.close(master)


def _read_all(master: int) -> None:
    try:
        while os.read(master, 65_536):
            pass
    except OSError:  # EIO: it has ended
        return


class Spell(NamedTuple):
    """What was used of the processors for a while, and what was done."""

    seconds: float
    daemon: float
    screen: float
    pairs: int

    def more_than(self, alone: "Spell") -> float:
        """Returns which part of a core the daemon used beyond what pairs cost."""
        cost = alone.daemon / alone.pairs if alone.pairs else 0.0
        idle = 0.0 if alone.pairs else alone.daemon / alone.seconds
        return (self.daemon - self.pairs * cost) / self.seconds - idle


def spell(seconds: float, use: Use, daemon_pid: int, screen: int | None) -> Spell:
    def now() -> tuple[float, float, float, int]:
        ours = on_processor(screen) if screen else 0.0
        return time.monotonic(), on_processor(daemon_pid), ours, use.done

    before = now()
    time.sleep(seconds)
    clock, spent, ours, done = now()
    return Spell(
        clock - before[0], spent - before[1], ours - before[2], done - before[3]
    )


def hold(client: Client, locks: int) -> None:
    for number in range(locks):
        client.acquire(f"held-{number:06}")


def measure(locks: int, seconds: float, pairs: float) -> Counts:
    counts = Counts(f"top, {locks} locks, {pairs:g} acquires and releases a second")
    with daemon() as lockd, connect(str(lockd.socket), name="holder") as holder:
        hold(holder, locks)
        use = Use(str(lockd.socket), pairs)
        alone = spell(seconds, use, lockd.pid, None)
        with top(str(lockd.socket)) as pid:
            # Everything is read once, and nine times as long as that takes rested.
            first = spell(seconds, use, lockd.pid, pid)
            then = spell(seconds, use, lockd.pid, pid)
        use.close()
    counts.show("acquired and released", f"{then.pairs / then.seconds:.0f}", "a second")
    counts.show("daemon, nobody watches", f"{alone.daemon / alone.seconds:.3f}", "core")
    counts.must("top reads everything, more than that", first.more_than(alone), MOST)
    counts.must("top refreshes, more than that", then.more_than(alone), MOST)
    counts.show("top itself", f"{then.screen / then.seconds:.3f}", "core")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locks", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pairs", type=float, nargs="*", default=[0, 100, 500, 3000])
    options = parser.parse_args()
    end(*(measure(options.locks, options.seconds, x) for x in options.pairs))


if __name__ == "__main__":
    main()
