"""What `lockctl top` costs the daemon, with 10,000 locks held and some of them in use.

    python -m campaigns.top [--locks 10000] [--seconds 20] [--pairs 100]

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
        self._pause = 1 / pairs if pairs else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            name = f"in-use-{self.done % 100}"
            self._client.acquire(name)
            self._client.release(name)
            self.done += 1

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


def share(pids: tuple[int, ...], seconds: float) -> list[float]:
    """Returns which part of a core each of some processes needs, for a while."""
    before = [on_processor(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    pairs = zip(pids, before, strict=True)
    return [(on_processor(pid) - then) / passed for pid, then in pairs]


def hold(client: Client, locks: int) -> None:
    for number in range(locks):
        client.acquire(f"held-{number:06}")


def measure(locks: int, seconds: float, pairs: float) -> Counts:
    counts = Counts(f"top, {locks} locks, {pairs:g} acquires and releases a second")
    with daemon() as lockd, connect(str(lockd.socket), name="holder") as holder:
        hold(holder, locks)
        use = Use(str(lockd.socket), pairs)
        (alone,) = share((lockd.pid,), seconds)
        began = on_processor(lockd.pid)
        with top(str(lockd.socket)) as pid:
            # The first listing, by its own rule, takes nine times what it costs.
            first, screen = share((lockd.pid, pid), seconds)
            reading = on_processor(lockd.pid) - began
            done = use.done
            watched, drawing = share((lockd.pid, pid), seconds)
            done = use.done - done
        use.close()
    counts.show("acquired and released", f"{done / seconds:.0f}", "a second")
    counts.show("daemon, nobody watches", f"{alone:.3f}", "of a core")
    counts.show("daemon, top reads everything at first", f"{reading:.3f}", "s")
    counts.must("daemon, that while more than without", first - alone, MOST)
    counts.must("daemon, top refreshes, more than without", watched - alone, MOST)
    counts.show("top itself, at first", f"{screen:.3f}", "of a core")
    counts.show("top itself, then", f"{drawing:.3f}", "of a core")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locks", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pairs", type=float, nargs="*", default=[0.01, 100, 1000])
    options = parser.parse_args()
    end(*(measure(options.locks, options.seconds, x) for x in options.pairs))


if __name__ == "__main__":
    main()
