"""The same random calls to virtlockd and to lockd: every answer must be the same.

    python -m campaigns.virtlockd_diff [--calls 100000] [--seed N] [--self-check]
        [--episode N]

Status, code, domain, level and numbers of each answer are compared, and after each
step what files there are, of which type and mode, how the kernel says that they are
locked, and who was killed. Differences that are meant are in `ALLOWED`.

With --self-check virtlockd is compared with itself, and nothing is allowed. With
--episode only that one is run, and told step by step.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaigns.guests import Nursery
from campaigns.steps import Episode
from campaigns.tools import Counts, end
from campaigns.twins import Side, Twins, Unexpected
from support.daemon_process import DaemonProcess
from support.virtlockd_process import VirtlockdProcess, why_not

EPISODE = 500
SHOWN = 10


@contextmanager
def twins(place: Path, *, self_check: bool = False) -> Iterator[Twins]:
    """Starts both daemons, each with a directory of its own."""
    for name in "a", "b":
        (place / name).mkdir()
    virtlockd = VirtlockdProcess(place / "a")
    other: VirtlockdProcess | DaemonProcess | None = None
    try:
        model = Side("virtlockd", virtlockd.socket, place / "a")
        if self_check:
            other = VirtlockdProcess(place / "b")
            measured = Side("virtlockd again", other.socket, place / "b")
        else:
            other = DaemonProcess(
                place / "b", "kill_grace = 5\n", checks=True, executed=True
            )
            other.start()
            measured = Side("lockd", other.virtlockd_socket, place / "b")
        with Nursery() as nursery:
            pair = Twins((model, measured), nursery)
            try:
                yield pair
            finally:
                pair.close()
    finally:
        virtlockd.close()
        if other is not None:
            other.close()


def campaign(
    calls: int, seed: int, *, self_check: bool = False, only: int | None = None
) -> Counts:
    allowed: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    unexpected: list[str] = []
    began = time.monotonic()
    title = "virtlockd and virtlockd" if self_check else "virtlockd and lockd"
    counts = Counts(f"{calls:,} random calls to {title}, seed {seed}")
    number, done = 0 if only is None else only - 1, 0
    while done < calls and len(unexpected) < SHOWN and (only is None or not done):
        with (
            tempfile.TemporaryDirectory(prefix="lockd-twins-", dir="/dev/shm") as place,
            twins(Path(place), self_check=self_check) as pair,
        ):
            is_over = False
            while done + pair.calls < calls and not is_over:
                number += 1
                chance = random.Random(f"{seed} {number}")
                pair.move_to(f"{number:06}")
                episode = Episode(pair, chance, allowed, happened, self_check)
                try:
                    episode.run(min(EPISODE, calls - done - pair.calls))
                except Unexpected as difference:
                    unexpected.append(f"episode {number}: {difference}")
                    print(f"  DIFFERENT {unexpected[-1]}")
                    print("   ", "\n    ".join(episode.last_steps()), flush=True)
                    episode.is_over = True
                finally:
                    episode.abandon()
                if only is not None:
                    print("\n".join(episode.story))
                # What virtlockd still has would be that of whoever gets the pid next.
                is_over = episode.is_over or self_check or only is not None
            done += pair.calls
    for what, count in sorted(happened.items()):
        counts.show(what, count)
    for reason, count in sorted(allowed.items()):
        counts.show(f"allowed: {reason}", count)
    seconds = time.monotonic() - began
    counts.show("episodes", number)
    counts.show("calls", done)
    counts.show("seconds", f"{seconds:.0f}")
    counts.must("differences that are not allowed", len(unexpected), 0)
    print(
        f"calls {done}, differences allowed {allowed.total()}, "
        f"not allowed {len(unexpected)}"
    )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument("--episode", type=int)
    wanted = parser.parse_args()
    if missing := why_not():
        print(f"skipped: {missing}")
        sys.exit(0)
    check, only = wanted.self_check, wanted.episode
    end(campaign(wanted.calls, wanted.seed, self_check=check, only=only))


if __name__ == "__main__":
    main()
