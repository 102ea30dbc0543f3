"""`filelock.FileLock` with lockd behind it.

filelock's own base class does all that its users see: options, re-entrance, singletons,
`Timeout`. It tries a lock again and again. Here a thread waits in the daemon's queue
instead, so those who wait get the lock in order.

Some of what this overrides is not public in filelock. `make test-peers` runs filelock's
tests on it.
"""

import logging
import time
from collections.abc import Callable
from threading import TIMEOUT_MAX

from lockd.client.threads.locks import Lock
from lockd.client.threads.process import lock
from lockd.errors import ForkedSessionError, NotHeldError
from lockd.hints import Any, Final
from lockd.names import name_of_path, plain
from lockd.parts import part

with part("filelock", "lockd.FileLock"):
    from filelock import BaseFileLock, Timeout

__all__ = ["FileLock", "Timeout"]

_LOG: Final = logging.getLogger("lockd.compat.filelock")

_HELD: Final = -1
"""The descriptor of a file that is locked. There is no file."""

_NOWHERE: Final = (0, 0)
"""Device and inode of that file. So filelock does not look for them."""

_LOCK: Final = "lockd"
"""Where the state of a thread has its lock."""


class FileLock(BaseFileLock):
    """A lock with the interface of `filelock.FileLock`. It makes and locks no file.

    The path is only a name, in the lockspace `default` (`lockd.names.name_of_path`). So
    no right to a file is needed, and no file is left behind. It excludes
    `lockctl flock` of the same path, but not programs that lock the path with filelock
    itself.

    The process connects to lockd at the first acquire, as for `lockd.lock`. Waiting
    threads and processes get the lock in order, unless they have a `cancel_check`. Who
    held the lock when `Timeout` was raised is in the log, at level INFO.

    `mode`, `fallback_to_soft`, `preserve_lock_file` and `close_error_policy` change
    nothing, as there is no file. `lifetime` is ignored with a warning, and
    `on_acquired` is refused.

    Raises:
        LockLostError: `release` does, if the lock had been lost before.
        LockdError: the daemon cannot be reached, or rejected a request.
    """

    _on_acquired_supported = False
    _lifetime_unsupported_reason = "lockd breaks no lock by its age"

    def _acquire(self) -> None:
        self._take(0)

    def _check_give_up(
        self,
        *args: Any,
        blocking: bool,
        cancel_check: Callable[[], bool] | None,
        timeout: float,
        start_time: float,
    ) -> bool:
        # Called between two tries. filelock lets no thread fork during a try.
        given_up = super()._check_give_up(
            *args,
            blocking=blocking,
            cancel_check=cancel_check,
            timeout=timeout,
            start_time=start_time,
        )
        state = self._state()
        if given_up:
            _LOG.info("%s", state.pop(_LOCK, ""))
            return True
        patience = -1.0
        if timeout >= 0:
            left = start_time + timeout - time.perf_counter()
            patience = min(max(left, 0), TIMEOUT_MAX)
        if cancel_check is not None:
            once = self.poll_interval
            patience = once if patience < 0 else min(patience, once)
        self._take(patience)
        return False

    def _poll_delay(self, poll_interval: float, attempt: int) -> float:
        return 0  # it has waited

    def _take(self, patience: float) -> None:
        """Waits for the lock. If it is granted, the base class finds it locked.

        Args:
            patience: seconds; -1 waits without a limit.
        """
        path = self._lock_path  # as it was found when the acquire began
        taken = lock(name_of_path(path), lockspace="default", label=plain(path))
        try:
            acquired = taken.acquire(timeout=patience)
            if acquired:
                self._state()[_LOCK] = taken
                self._mark_descriptor_owned(_HELD, _NOWHERE)
            else:
                self._state()[_LOCK] = acquired.refusal
        except BaseException:
            if taken.locked() and not self.is_locked:
                taken.release()
            raise

    def _release(self) -> None:
        taken: Lock = self._state()[_LOCK]
        try:
            taken.release()
        except (ForkedSessionError, NotHeldError):
            pass  # it is the parent's; or a signal interrupted an earlier call
        finally:
            self._mark_descriptor_released()

    def _state(self) -> dict[str, Any]:
        """Returns what filelock keeps for this lock in this thread."""
        return vars(self._hold_state())
