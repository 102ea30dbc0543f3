"""The other ways to take a lock on one host, each as one acquire + release."""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.daemons import SkipError, redis
from benchmarks.wires import names

if TYPE_CHECKING:
    from redis import Redis

_NAMES: Final = 50

# What everybody writes: delete the key only if it still has the value that we gave it.
_COMPARE_AND_DELETE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
"""


@contextmanager
def flock_pair(directory: Path) -> Iterator[Callable[[], None]]:
    """flock(2) on a file that is opened and closed each time, as flock(1) does it."""
    directory.mkdir()
    paths = cycle([directory / name for name in names(_NAMES)])

    def pair() -> None:
        descriptor = os.open(next(paths), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.close(descriptor)

    yield pair


@contextmanager
def filelock_pair(directory: Path) -> Iterator[Callable[[], None]]:
    """The FileLock of PyPI's filelock."""
    try:
        import filelock
    except ImportError:
        raise SkipError("filelock comes from PyPI's filelock") from None
    directory.mkdir()
    locks = cycle([filelock.FileLock(directory / name) for name in names(_NAMES)])

    def pair() -> None:
        with next(locks):
            pass

    yield pair


@contextmanager
def redis_pair(directory: Path) -> Iterator[Callable[[], None]]:
    """SET NX with a random value, and compare-and-delete, over a UNIX socket."""
    with _redis_client(directory) as client:
        compare_and_delete = client.register_script(_COMPARE_AND_DELETE)
        keys = cycle(names(_NAMES))

        def pair() -> None:
            key, mine = next(keys), uuid.uuid4().hex
            if not client.set(key, mine, nx=True, px=30_000):
                raise RuntimeError("Redis: the key is taken")
            compare_and_delete(keys=[key], args=[mine])

        yield pair


@contextmanager
def redis_lock_pair(directory: Path) -> Iterator[Callable[[], None]]:
    """The Lock of redis-py, over a UNIX socket."""
    with _redis_client(directory) as client:
        locks = cycle([client.lock(name, timeout=30) for name in names(_NAMES)])

        def pair() -> None:
            with next(locks):
                pass

        yield pair


@contextmanager
def _redis_client(directory: Path) -> Iterator["Redis"]:
    try:
        from redis import Redis
    except ImportError:
        raise SkipError("redis-py comes from PyPI's redis") from None
    with redis(directory) as path, Redis(unix_socket_path=str(path)) as client:
        yield client
