"""The epoch and the reserved fencing tokens, on disk. Both only rise.

The file has two numbers: the epoch, which counts the starts, and the last fencing token
that this start may give. It reserves many tokens at once, so a grant writes nothing.
The next start continues after the last reserved token.

If the process or the machine dies, the file has the old numbers or the new ones, and
never less than what was used. The new content is on disk (fsync(2)) before it gets its
name (rename(2)). The name is on disk (fsync of the directory) before the first new
token is given.

The daemon also compares the file with what it knows. It writes a removed or reset file
again, while it serves and after a crash. If the whole directory is removed or exchanged
while it serves, it makes and locks the directory again, with all that was there.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import Final, NamedTuple

from lockd.daemon.system.instance import instance_of
from lockd.daemon.system.state_files import (
    NEW_FILE_FLAGS,
    READ_FLAGS,
    replace_file,
)
from lockd.errors import ConfigError
from lockd.lockspaces.places import check_place, make_directory
from lockd.names import quoted

logger = logging.getLogger(__name__)

TOKENS_AT_ONCE: Final = 2**24
"""How many tokens to reserve at once: at 50,000 grants a second it writes the file
every five minutes. A start that uses none wastes as many. Five hundred million starts
fit into the integers of a double (2^53), the only ones of JavaScript and jq."""

LAST_TOKEN: Final = 2**63 - 1
"""The greatest token that is a 64-bit signed integer."""

_TOKENS_OF_OLD_EPOCH: Final = 10**12
"""Before 0.1.0 the file only had the epoch, and each epoch had so many tokens."""

_FILE: Final = "epoch"
_LOCK_FILE: Final = "epoch.lock"


class Numbers(NamedTuple):
    """The content of the file.

    Attributes:
        epoch: how often a daemon has started empty.
        reserved: the last fencing token that may have been given.
    """

    epoch: int = 0
    reserved: int = 0


def numbers_of(epoch: int, reserved: int) -> Numbers:
    """Returns the numbers of a predecessor.

    Before 0.1.0 it reserved epochs, not tokens.
    """
    if 0 < reserved < TOKENS_AT_ONCE:
        reserved = (reserved + 1) * _TOKENS_OF_OLD_EPOCH
    return Numbers(epoch, reserved)


class Epoch:
    """The locked state directory, and our epoch.

    Attributes:
        directory: its path.
        number: the epoch.
        last_token: not less than any fencing token of an earlier start.
        reserved: the last fencing token that only this daemon may give.
    """

    def __init__(
        self,
        directory: str,
        fd: int,
        lock_fd: int,
        number: int,
        last_token: int,
        instance: str = "",
    ) -> None:
        self.directory = directory
        self.number = number
        self.last_token = last_token
        self.reserved = last_token
        self._known_instance = instance
        self._fd = fd
        self._lock_fd = lock_fd
        #: The state of the file when it was last read or written.
        self._seen: tuple[int, ...] | None = None
        #: Up to this token no reservation is due.
        self._enough = last_token - TOKENS_AT_ONCE // 2
        #: Whether a due reservation has failed.
        self._is_overdue = False

    @cached_property
    def instance(self) -> str:
        """The name of this daemon. Its first use writes it, after the numbers."""
        return instance_of(self.directory, self._known_instance)

    def ensure(self, last_token: int) -> None:
        """Reserves more tokens well before the reserved ones run out.

        Call it about once a second: a daemon gives far less than half of
        `TOKENS_AT_ONCE` in that time. If the file cannot be written, `look_after` tries
        again and reports why. `Limiter` gives no token beyond `reserved`.
        """
        if last_token <= self._enough or self._is_overdue:
            return
        try:
            self.reserve_more()
        except OSError:
            self._is_overdue = True

    def look_after(self) -> None:
        """Writes the file again if it was removed or reset, or if a reservation failed.

        Makes the directory again if it was removed or exchanged. Call it about once a
        second.

        Raises:
            OSError: it cannot be written.
            ConfigError: the directory cannot be made again, or another daemon uses it.
        """
        if self._has_lost_its_directory():
            self._move_in()
            return
        if self._is_overdue:
            self.reserve_more()
            return
        ours = Numbers(self.number, self.reserved)
        # This check takes no descriptor, as none may be free.
        if (state := _state(self._fd)) is not None and state == self._seen:
            return
        try:
            found = _read_or(ours, self._fd, self.directory)
        except OSError:  # no descriptor is free: it is checked again soon
            return
        self._seen = state
        if found.epoch < self.number or found.reserved < self.reserved:
            logger.warning(
                "the file %s is behind the tokens given out, so lockd writes it again",
                quoted(f"{self.directory}/{_FILE}"),
            )
            self._reserve(self.reserved)

    def _has_lost_its_directory(self) -> bool:
        try:
            found = os.stat(self.directory)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # nobody knows: the descriptor still leads to it
        return (found.st_dev, found.st_ino) != self.inode

    def _move_in(self) -> None:
        """Locks the directory that is now at the path, and writes all files there."""
        fd, lock_fd = _lock(self.directory)
        for old in (self._fd, self._lock_fd):
            os.close(old)
        self._fd, self._lock_fd, self._seen = fd, lock_fd, None
        ours = Numbers(self.number, self.reserved)
        found = _read_or(ours, fd, self.directory)
        self._reserve(max(self.reserved, found.reserved))
        instance_of(self.directory, self.instance)
        logger.warning(
            "the state directory %s was removed or exchanged while lockd ran, so lockd "
            "has made it again with the epoch, the fencing tokens and its own name",
            quoted(self.directory),
        )

    def complaint(self, error: OSError | ConfigError) -> str:
        """Returns the sentence for an admin about a file that cannot be written."""
        why, step = str(error), "fix that"
        if isinstance(error, OSError):
            why, step = os.strerror(error.errno or 0), "make it writable"
        told = f"{step}, or lockd rejects locks when the tokens run out"
        return f"the epoch cannot be written in {quoted(self.directory)}: {why}: {told}"

    def reserve_more(self) -> None:
        """Reserves more tokens, and writes the file."""
        self._reserve(self.reserved + TOKENS_AT_ONCE)

    def _reserve(self, reserved: int) -> None:
        replace_file(self._fd, _FILE, b"%d %d\n" % (self.number, reserved))
        self._seen = _state(self._fd)
        self.reserved = reserved
        self._enough = reserved - TOKENS_AT_ONCE // 2
        self._is_overdue = False

    @property
    def inode(self) -> tuple[int, int]:
        """The device and inode of the directory (stat(2))."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def dump(self, keep: Callable[[int], int]) -> list[int]:
        """Returns the data for `load_epoch`: epoch, last token, descriptors."""
        return [self.number, self.reserved, keep(self._fd), keep(self._lock_fd)]

    def close(self) -> None:
        """Unlocks the directory for another daemon."""
        os.close(self._fd)
        os.close(self._lock_fd)


def load_epoch(directory: str, data: list[int], instance: str = "") -> Epoch:
    """Continues the epoch of a predecessor in this process, which holds the lock.

    A file that cannot be written costs no locks: `look_after` reports it.
    """
    *numbers, fd, lock_fd = data
    os.set_inheritable(fd, False)
    os.set_inheritable(lock_fd, False)
    number, reserved = numbers_of(*numbers)
    epoch = Epoch(directory, fd, lock_fd, number, reserved, instance)
    epoch.last_token = 0
    with suppress(OSError, ConfigError):
        epoch.look_after()
    return epoch


def open_epoch(
    directory: str,
    before: Numbers = Numbers(),  # noqa: B008
    instance: str = "",
) -> Epoch:
    """Locks a state directory and begins the next epoch.

    Args:
        directory: its path.
        before: the known numbers of a predecessor, which the file must not undercut.
        instance: the known name of a predecessor; empty: that of the directory.

    Raises:
        ConfigError: the directory cannot be used, another daemon uses it, or the file
            has no epoch.
    """
    return _open(directory, before, instance, goes_on=False)


def check_epoch(directory: str) -> None:
    """Checks that `open_epoch` can use a state directory, but changes nothing.

    It ignores another daemon there: that may be the one to replace.

    Raises:
        ConfigError: as `open_epoch` says it.
    """
    place = os.path.abspath(directory)
    try:
        check_place(place)
        if not os.path.isdir(place):
            return
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except ConfigError as error:
        raise ConfigError(f"the state directory: {error}") from None
    except OSError as error:
        raise _cannot(directory, error) from None
    try:
        _read(fd, directory)
        with suppress(FileNotFoundError):
            flags = NEW_FILE_FLAGS & ~(os.O_CREAT | os.O_TRUNC)
            os.close(os.open(_LOCK_FILE, flags, dir_fd=fd))
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "")
    except OSError as error:
        raise _cannot(directory, error) from None
    finally:
        os.close(fd)


def resume_epoch(directory: str, before: Numbers, instance: str = "") -> Epoch:
    """Continues the epoch of a predecessor that was killed.

    If another daemon has used the directory since then, the next epoch begins.

    Raises:
        ConfigError: as for `open_epoch`.
    """
    return _open(directory, before, instance, goes_on=True)


def _open(directory: str, before: Numbers, instance: str, *, goes_on: bool) -> Epoch:
    fd, lock_fd = _lock(directory)
    with ExitStack() as unless_good:
        unless_good.callback(os.close, fd)
        unless_good.callback(os.close, lock_fd)
        try:
            found = _read_or(before, fd, directory)
            number = max(found.epoch, before.epoch)
            last_token = max(found.reserved, before.reserved)
            epoch = Epoch(directory, fd, lock_fd, number, last_token, instance)
            if goes_on and found.epoch <= before.epoch:
                # The records have the last token.
                epoch.last_token = 0
                epoch.look_after()
            else:
                epoch.number += 1
                epoch.reserve_more()
        except OSError as error:
            raise _cannot(directory, error) from None
        unless_good.pop_all()
    return epoch


def _lock(directory: str) -> tuple[int, int]:
    """Makes a state directory if it is missing, and locks it.

    Returns:
        Its descriptor, and that of the locked file in it.

    Raises:
        ConfigError: it cannot be used, or another daemon uses it.
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
            lock_fd = os.open(_LOCK_FILE, NEW_FILE_FLAGS, 0o600, dir_fd=fd)
            unless_good.callback(os.close, lock_fd)
            # Do not lock the directory: the socket may be in it, too.
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _holder_of(lock_fd)
            stop = "stop that" if pid is None else f"stop that with `kill {pid}`"
            raise ConfigError(
                f"another lockd uses the state directory {quoted(directory)}: "
                f"{stop}, or choose another directory with --state-dir"
            ) from None
        except OSError as error:
            raise _cannot(directory, error) from None
        unless_good.pop_all()
    return fd, lock_fd


def _holder_of(lock_fd: int) -> int | None:
    """Returns the process that holds the lock on a file; None if it is unknown.

    The kernel names it (proc_locks(5)), unless it is in another PID namespace. A pid in
    a file could be that of a dead process.
    """
    status = os.fstat(lock_fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        for line in locks:
            # The line of a waiter has an arrow before the kind.
            match line.split():
                case [_, "FLOCK", _, _, pid, file, *_] if int(pid) > 0:
                    if file == f"{device}:{status.st_ino}":
                        return int(pid)
    return None


def _read_or(before: Numbers, directory_fd: int, directory: str) -> Numbers:
    """Returns the content of the file.

    If it is invalid and `before` is known, returns zeros.
    """
    try:
        return _read(directory_fd, directory)
    except ConfigError:
        if before == Numbers():
            raise
        return Numbers()


def _read(directory_fd: int, directory: str) -> Numbers:
    try:
        fd = os.open(_FILE, READ_FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return Numbers()
    with open(fd, "rb") as file:
        words = file.read(64).split()
    found = Numbers(LAST_TOKEN, LAST_TOKEN)
    if len(words) in (1, 2) and all(word.isdigit() for word in words):
        # Before 0.1.0 there was no second number.
        found = numbers_of(int(words[0]), int(words[-1]))
    if found.reserved > LAST_TOKEN - 2 * TOKENS_AT_ONCE:
        # Starting at 0 would give tokens a second time.
        raise ConfigError(
            f"the file {quoted(directory + '/' + _FILE)} holds no epoch: write two "
            "numbers that are greater than the epoch and the fencing token of every "
            "start before"
        )
    return found


def _state(directory_fd: int) -> tuple[int, ...] | None:
    """Returns values that change with the file; None if it is missing."""
    try:
        found = os.stat(_FILE, dir_fd=directory_fd, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _cannot(directory: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    return ConfigError(f"the state directory {quoted(directory)}: {reason}")
