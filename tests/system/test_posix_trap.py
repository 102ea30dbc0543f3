"""Why lockd exists: a process loses its fcntl() locks whenever it closes the file.

POSIX locks belong to the process, so its threads and libraries do not exclude each
other, and any close of any descriptor of the file drops them all (fcntl_locking(2)).
The same sequences, through lockd, keep the lock.
"""

import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from lockd import BusyError, Client, connect
from support.daemon_process import DaemonProcess
from support.outside import Outside

T = TypeVar("T")


def in_another_thread(action: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result(timeout=30)


def read_file(path: Path) -> bytes:
    """What some library does that knows of no lock: opens, reads, closes."""
    with path.open("rb") as file:
        return file.read()


# The trap.


def test_posix_lock_is_lost_when_another_thread_reads_the_file(
    image: Path, outside: Outside
) -> None:
    with image.open("r+b") as locked:
        fcntl.lockf(locked, fcntl.LOCK_EX, 1)
        assert outside.probe(image) == ("exclusive", os.getpid())
        in_another_thread(lambda: read_file(image))
        assert outside.probe(image) is None
        assert outside.lock(image)


def test_two_threads_get_the_same_posix_lock_and_the_first_to_end_drops_it(
    image: Path, outside: Outside
) -> None:
    def lock_and_unlock() -> None:
        with image.open("r+b") as second:
            fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)

    with image.open("r+b") as first:
        fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        in_another_thread(lock_and_unlock)
        assert outside.probe(image) is None


# The way out.


@pytest.mark.parametrize("connections", [1, 2])
def test_lock_is_kept_when_another_thread_reads_the_file(
    house: DaemonProcess,
    client: Client,
    image: Path,
    outside: Outside,
    connections: int,
) -> None:
    def read_beside() -> None:
        if connections == 1:
            client.query(str(image))
            read_file(image)
            return
        with connect(house.socket) as other:
            other.query(str(image))
            read_file(image)

    with client.lock(str(image)):
        in_another_thread(read_beside)
        assert outside.probe(image) == ("exclusive", -1)
        assert not outside.lock(image)
    client.query(str(image))  # the daemon takes its requests in order
    assert outside.probe(image) is None


def test_two_threads_of_one_connection_exclude_each_other(
    client: Client, image: Path, outside: Outside
) -> None:
    def lock_and_unlock() -> bool:
        with image.open("r+b"):
            return bool(client.lock(str(image)).acquire(blocking=False))

    with client.lock(str(image)):
        assert not in_another_thread(lock_and_unlock)
        assert outside.probe(image) == ("exclusive", -1)


def test_two_connections_of_one_process_exclude_each_other(
    house: DaemonProcess, client: Client, image: Path, outside: Outside
) -> None:
    def lock_and_unlock() -> None:
        with connect(house.socket) as other, image.open("r+b"):
            other.acquire(str(image), timeout=0)

    client.acquire(str(image))
    with pytest.raises(BusyError) as refusal:
        in_another_thread(lock_and_unlock)
    assert [who["pid"] for who in refusal.value.facts["holders"]] == [os.getpid()]
    assert outside.probe(image) == ("exclusive", -1)
