"""Takes and releases a lock through a client, as often as each line of the input says.

    python -m benchmarks.pairs threads|trio|asyncio SOCKET

It answers each line with an empty one.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Final

import trio

import lockd
from lockd import aio

_NAME: Final = "counted"


def main() -> None:
    kind, socket = sys.argv[1:]
    PROGRAMS[kind](socket)


def in_threads(socket: str) -> None:
    with lockd.connect(socket) as client:
        lock = client.lock(_NAME)
        for times in _orders():
            for _ in range(times):
                with lock:
                    pass


async def in_tasks(socket: str) -> None:
    async with aio.connect(socket) as client:
        for times in _orders():
            for _ in range(times):
                async with client.hold(_NAME):
                    pass


PROGRAMS: Final[dict[str, Callable[[str], None]]] = {
    "threads": in_threads,
    "trio": lambda socket: trio.run(in_tasks, socket),
    "asyncio": lambda socket: asyncio.run(in_tasks(socket)),
}


def _orders() -> Iterator[int]:
    while line := sys.stdin.readline():
        yield int(line)
        print(flush=True)


if __name__ == "__main__":
    main()
