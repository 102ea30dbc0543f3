"""Kept descriptors as the tests look at them, and the files that are locked by some."""

import fcntl
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from lockd.daemon.stores import in_flight as keeper_module
from lockd.daemon.stores.in_flight import InFlight

WHOLE: Final = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Raises the limit of descriptors; skips the test if that is not enough.

    Of a user without rights the kernel counts those in flight, too (RLIMIT_NOFILE).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < descriptors and os.geteuid() != 0:
        pytest.skip(f"takes {descriptors:,} descriptors in flight (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def shrink(setattr_: Callable[[object, str, int], None]) -> None:
    """Makes queues so small that few descriptors go all the ways there are."""
    for name, value in {"FULL": 4, "YOUNG": 5, "MOST_AT_ONCE": 12, "SPARE": 3}.items():
        setattr_(keeper_module, name, value)


def copies(fds: list[int]) -> list[int]:
    """Returns descriptors of the same files."""
    return [os.dup(fd) for fd in fds]


def contents(ends: list[int]) -> dict[bytes, int]:
    """Returns what a process that comes after would find: label and inode."""
    successor = InFlight(copies(ends))
    found = successor.recover()
    assert successor.problems == []
    inodes = {}
    for label, fd in found:
        inodes[label] = os.fstat(fd).st_ino
        os.close(fd)
    successor.close()
    assert len(inodes) == len(found)
    return inodes


def inode(fd: int) -> int:
    """Tells which file this is."""
    return os.fstat(fd).st_ino


def lock(path: Path) -> int:
    """Returns a descriptor that has a file locked (F_OFD_SETLK)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, WHOLE)
    return fd


def is_locked(path: Path) -> bool:
    """Asks the kernel."""
    with open(path, "r+b") as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, WHOLE)
        except BlockingIOError:
            return True
    return False
