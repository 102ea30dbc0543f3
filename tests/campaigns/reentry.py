"""The client is entered while it is inside itself: nothing hangs, nothing is left held.

    python -m campaigns.reentry [--generators 20000] [--seconds 10] [--every 0.003]

Generators that hold a lock are collected in cycles, wherever the collector finds them.
Then a signal handler takes locks at a high rate while the main thread does so, too.
"""

import argparse
import gc
import signal
import time
from collections import Counter
from collections.abc import Iterator

import lockd
from campaigns.tools import Counts, daemon, end

HANG = 60
"""Seconds without progress after which the campaign is ended by SIGALRM."""


def collect_generators(client: lockd.Client, count: int) -> Counts:
    """Has the garbage collector end generators that hold a lock."""

    def hold(name: str) -> Iterator[None]:
        with client.lock(name):
            yield

    started = time.monotonic()
    for number in range(count):
        generator = hold(f"generator {number}")
        next(generator)
        cycle: list[object] = [generator]
        cycle.append(cycle)
        del generator, cycle
        if number % 100 == 0:
            signal.alarm(HANG)
    gc.collect()
    signal.alarm(0)
    found = Counts("generators that hold a lock, collected in cycles")
    found.show("generators", count)
    found.show("time", f"{time.monotonic() - started:.1f}", "s")
    found.must("still held", client.statistics()["held"], 0)
    return found


def take_in_handler(client: lockd.Client, seconds: float, every: float) -> Counts:
    """Has a signal handler take locks while the main thread does, too."""
    done: Counter[str] = Counter()

    def handler(*_: object) -> None:
        # Another handler may come in between this one: a lock of its own thread is
        # refused, as it could only be waited for in vain.
        for name in ("flag", "work"):
            try:
                with client.lock(name):
                    done[f"{name!r} taken by the handler"] += 1
            except lockd.AlreadyHeldError:
                done[f"{name!r} refused to the handler: held by its own thread"] += 1

    ends = time.monotonic() + seconds
    alarmed = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        while time.monotonic() < ends:
            with client.lock("work"):
                done["'work' taken by the main thread"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarmed)
    found = Counts("a signal handler that takes a lock while its thread does")
    for what, count in sorted(done.items()):
        found.show(what, count)
    found.must("still held", client.statistics()["held"], 0)
    return found


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generators", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--every", type=float, default=0.003)
    asked = parser.parse_args()
    with daemon() as process, lockd.connect(process.socket) as client:
        end(
            collect_generators(client, asked.generators),
            take_in_handler(client, asked.seconds, asked.every),
        )


if __name__ == "__main__":
    main()
