"""Threads and tasks of one program: no false deadlock, each real one, and a long line.

    python -m campaigns.strands [--runs 10] [--threads 1000]

Two programs of tasks, and two clients of threads, each hold one lock at a time: nobody
may be refused. Two threads of one client wait for each other: one must be refused.
A thousand threads wait for one lock, and a stranger comes last: it is served last.
"""

import argparse
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import anyio

import lockd
from campaigns.tools import Counts, daemon, end
from client.adapters import Thread
from support.wire_client import WireClient, wait_for_waiters

TASKS, NAMES, ROUNDS = 10, 20, 60
THREADS, THREAD_NAMES = 4, 6


async def run_tasks(socket: str, seed: int) -> int:
    """Has tasks hold one lock at a time; returns how many were refused."""
    refused = 0

    async def work(client: lockd.aio.Client, number: int) -> None:
        nonlocal refused
        chance = random.Random(seed * TASKS + number)
        for _ in range(ROUNDS):
            try:
                async with client.hold(f"name {chance.randrange(NAMES)}"):
                    await anyio.sleep(chance.random() * 0.002)
            except lockd.DeadlockError:
                refused += 1

    async with lockd.aio.connect(socket) as client, anyio.create_task_group() as tasks:
        for number in range(TASKS):
            tasks.start_soon(work, client, number)
    return refused


def programs(socket: Path, runs: int) -> Counts:
    """Runs two programs of tasks side by side, again and again."""
    found = Counts(f"two programs of {TASKS} tasks, {NAMES} names, {runs} runs")
    refused = 0
    for run in range(runs):
        command = [sys.executable, "-m", "campaigns.strands", "--tasks-of", str(socket)]
        both = [
            subprocess.Popen(
                [*command, "--seed", str(2 * run + one)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for one in range(2)
        ]
        refused += sum(int(program.communicate()[0]) for program in both)
    found.show("requests", 2 * runs * TASKS * ROUNDS)
    found.must("refused for a deadlock", refused, 0)
    return found


def clients(socket: Path, runs: int) -> Counts:
    """Has the threads of two clients hold one lock at a time."""
    found = Counts(f"two clients of {THREADS} threads, {THREAD_NAMES} names")
    refused: list[lockd.DeadlockError] = []

    def work(client: lockd.Client, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(ROUNDS * runs):
            try:
                with client.lock(f"name {chance.randrange(THREAD_NAMES)}"):
                    pass
            except lockd.DeadlockError as error:
                refused.append(error)

    with lockd.connect(socket) as first, lockd.connect(socket) as second:
        threads = [
            Thread(partial(work, client, THREADS * place + number))
            for number in range(THREADS)
            for place, client in enumerate((first, second))
        ]
        for thread in threads:
            thread.result()
    found.show("requests", 2 * THREADS * ROUNDS * runs)
    found.must("refused for a deadlock", len(refused), 0)
    return found


def crossing(socket: Path, runs: int) -> Counts:
    """Has two threads of one client wait for each other."""
    found = Counts("two threads that wait for each other")
    missed, longest = 0, 0.0

    def cross(client: lockd.Client) -> None:
        with client.lock("a"), client.lock("b"):
            pass

    with lockd.connect(socket) as client, WireClient(socket) as watcher:
        for _ in range(runs):
            with client.lock("b"):
                other = Thread(partial(cross, client))
                wait_for_waiters(watcher, "b", 1)
                started = time.monotonic()
                try:
                    with client.lock("a", timeout=10):
                        missed += 1
                except lockd.DeadlockError:
                    longest = max(longest, time.monotonic() - started)
                except lockd.AcquireTimeoutError:
                    missed += 1
            other.result()
    found.must("deadlocks that nobody was told of", missed, 0)
    found.must("longest time to a refusal", longest, 1, "s")
    return found


def line(socket: Path, count: int) -> Counts:
    """Has many threads of one client wait for one lock, and a stranger after them."""
    found = Counts(f"{count} threads in line, and a stranger last")
    served: list[int] = []

    def work(number: int) -> None:
        with client.lock("disk"):
            served.append(number)

    with (
        lockd.connect(socket) as client,
        WireClient(socket) as watcher,
        WireClient(socket) as stranger,
    ):
        with client.lock("disk"):
            threads = [Thread(partial(work, number)) for number in range(count)]
            wait_for_waiters(watcher, "disk", count)
            request = stranger.send("acquire", resource="disk")
            wait_for_waiters(watcher, "disk", count + 1)
            started = time.monotonic()
        stranger.result(request)
        took = time.monotonic() - started
        found.must("threads that the stranger overtook", count - len(served), 0)
        for thread in threads:
            thread.result()
    found.must("time until all were served", took, 2, "s")
    return found


def main() -> None:
    """Runs all, or the tasks of one program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1_000)
    parser.add_argument("--tasks-of", help="run the tasks of one program, at a socket")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.tasks_of:
        print(anyio.run(run_tasks, asked.tasks_of, asked.seed))
        return
    with daemon() as process:
        end(
            programs(process.socket, asked.runs),
            clients(process.socket, asked.runs),
            crossing(process.socket, asked.runs),
            line(process.socket, asked.threads),
        )


if __name__ == "__main__":
    main()
