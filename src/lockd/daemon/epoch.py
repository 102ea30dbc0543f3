"""The number of this start of the daemon, on disk, so that fencing tokens only rise.

Every token of an epoch is greater than every one of the epochs before. The number is
written once, before the first grant; nothing is written per grant. Whenever the process
or the machine dies, the file holds the old number or the new one, never less than what
was used: the new content is on disk (fsync(2)) before it gets its name (rename(2)), and
the name is on disk (fsync of the directory) before `open_epoch` returns.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from lockd.errors import ConfigError
from lockd.lockspaces.places import make_directory
from lockd.names import quoted

TOKENS_PER_EPOCH: Final = 10**12
"""More grants than a start can make: 50,000 a second would take 231 days, and then
`Epoch.ensure` takes the next number. Decimal, so that people can read the epoch."""

MAX_EPOCH: Final = 2**63 // TOKENS_PER_EPOCH - 1
"""The last one whose tokens are integers to everybody."""

_FILE: Final = "epoch"
_LOCK_FILE: Final = "epoch.lock"
_NEW_FILE: Final = "epoch.new"
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW_FILE_FLAGS: Final = (
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)
"""Whoever could put a symbolic link or a FIFO there has no business there."""


class Epoch:
    """The state directory, locked for this daemon, and the epoch that is ours."""

    def __init__(self, directory: str, fd: int, lock_fd: int, number: int) -> None:
        self.directory = directory
        #: The epoch of this start.
        self.number = number
        #: The last one that nobody else will get.
        self.reserved = number
        self._fd = fd
        self._lock_fd = lock_fd

    @property
    def last_token(self) -> int:
        """A number that is not less than any fencing token given out before."""
        return self.number * TOKENS_PER_EPOCH

    def ensure(self, last_token: int) -> None:
        """Reserves the next epoch well before the tokens of this one are used up."""
        if last_token > (self.reserved + 1) * TOKENS_PER_EPOCH - 10**9:
            self.reserved += 1
            _write(self._fd, self.reserved)

    @property
    def inode(self) -> tuple[int, int]:
        """Identifies the directory (stat(2))."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def dump(self, keep: Callable[[int], int]) -> list[int]:
        """Returns what `load_epoch` needs: number, last reserved one, descriptors."""
        return [self.number, self.reserved, keep(self._fd), keep(self._lock_fd)]

    def close(self) -> None:
        """Lets another daemon use the directory."""
        os.close(self._fd)
        os.close(self._lock_fd)


def load_epoch(directory: str, data: list[int]) -> Epoch:
    """Goes on in the epoch of a predecessor in this process, which holds the lock."""
    number, reserved, fd, lock_fd = data
    os.set_inheritable(fd, False)
    os.set_inheritable(lock_fd, False)
    epoch = Epoch(directory, fd, lock_fd, number)
    epoch.reserved = reserved
    return epoch


def open_epoch(directory: str, *, most: int | None = None) -> Epoch:
    """Locks a state directory and begins the next epoch in it.

    Args:
        most: with it, the last one that was begun goes on if it is this one.

    Raises:
        ConfigError: the directory cannot be used, another daemon uses it, or what it
            holds is no epoch.
    """
    try:
        place = make_directory(os.path.abspath(directory))
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except ConfigError as error:
        raise ConfigError(f"the state directory: {error}") from None
    except OSError as error:
        raise _cannot(directory, error) from None
    with ExitStack() as unless_good:
        unless_good.callback(os.close, fd)
        try:
            lock_fd = os.open(_LOCK_FILE, _NEW_FILE_FLAGS, 0o600, dir_fd=fd)
            unless_good.callback(os.close, lock_fd)
            # Not on the directory, which may be that of the socket, too.
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            number = _read(fd, directory)
            if number != most:
                number += 1
                _write(fd, number)
        except BlockingIOError:
            raise ConfigError(
                f"the state directory {quoted(directory)} is used by another lockd: "
                "stop that, or take another with --state-dir"
            ) from None
        except OSError as error:
            raise _cannot(directory, error) from None
        unless_good.pop_all()
    return Epoch(directory, fd, lock_fd, number)


def resume_epoch(directory: str, number: int, reserved: int) -> Epoch:
    """Goes on in the epoch of a predecessor that was killed.

    If somebody else used the directory since then, the next epoch begins.

    Raises:
        ConfigError: as `open_epoch`.
    """
    epoch = open_epoch(directory, most=reserved)
    if epoch.number == reserved:
        epoch.number = number
    return epoch


def _read(directory_fd: int, directory: str) -> int:
    try:
        fd = os.open(_FILE, _READ_FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return 0
    with open(fd, "rb") as file:
        text = file.read(32).strip()
    if not text.isdigit() or int(text) >= MAX_EPOCH:
        # Starting from scratch would give out tokens a second time.
        raise ConfigError(
            f"the file {quoted(directory + '/' + _FILE)} holds no epoch number: "
            "write one that is greater than that of every start before"
        )
    return int(text)


def _write(directory_fd: int, number: int) -> None:
    fd = os.open(_NEW_FILE, _NEW_FILE_FLAGS, 0o600, dir_fd=directory_fd)
    with open(fd, "wb") as file:
        file.write(b"%d\n" % number)
        file.flush()
        os.fsync(fd)
    os.rename(_NEW_FILE, _FILE, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    os.fsync(directory_fd)


def _cannot(directory: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    return ConfigError(f"the state directory {quoted(directory)}: {reason}")
