"""The exit statuses of lockctl in one table, and how to die of a signal.

The numbers are those of sysexits.h if it has a fitting one.
"""

import errno
import os
from contextlib import suppress

from lockd.errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    AnchorError,
    BusyError,
    ConnectionLostError,
    DeadlockError,
    DeniedError,
    InvalidRequestError,
    LimitError,
    LockdError,
    LockLostError,
    MissingPartError,
    NotFoundError,
    RestrictedError,
    UnavailableError,
    UnknownMethodError,
)
from lockd.hints import Final, NoReturn
from lockd.lean import signal

OK: Final = 0
USAGE: Final = 64
UNAVAILABLE: Final = 69
INTERNAL: Final = 70
DEADLOCK: Final = 73
UNWRITTEN: Final = 74
BUSY: Final = 75
LOST: Final = 76
DENIED: Final = 77
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127


class Exit:
    """One exit status of lockctl: its meaning, and the errors that cause it."""

    def __init__(
        self, status: int, meaning: str, errors: tuple[type[LockdError], ...] = ()
    ) -> None:
        self.status = status
        self.meaning = meaning
        self.errors = errors


EXITS: Final = (
    Exit(
        USAGE,
        "wrong usage, or a named object does not exist",
        (InvalidRequestError, NotFoundError),
    ),
    Exit(
        UNAVAILABLE,
        "the daemon cannot be reached, or cannot serve now",
        # A daemon that does not know a method is older than this program.
        (
            *(ConnectionLostError, UnavailableError, LimitError, AnchorError),
            *(UnknownMethodError, MissingPartError),
        ),
    ),
    Exit(INTERNAL, "a defect of lockd", (LockdError,)),
    Exit(
        DEADLOCK,
        "waiting would deadlock, or the owner holds the lock already",
        (DeadlockError, AlreadyHeldError),
    ),
    Exit(UNWRITTEN, "standard output could not be written"),
    Exit(BUSY, "busy or timed out (or -E N)", (BusyError, AcquireTimeoutError)),
    Exit(
        LOST,
        "the lock was lost, or --max-hold was over; the command was stopped first",
        (LockLostError,),
    ),
    Exit(DENIED, "permission denied", (DeniedError, RestrictedError)),
    Exit(NOT_EXECUTABLE, "the command cannot be executed"),
    Exit(NOT_FOUND, "the command was not found"),
)

_STATUS_OF_ERROR: Final = {
    error: exit_.status for exit_ in EXITS for error in exit_.errors
}


def status_of(error: LockdError) -> int:
    """Returns the exit status for an error."""
    kinds = type(error).__mro__
    return next(_STATUS_OF_ERROR[kind] for kind in kinds if kind in _STATUS_OF_ERROR)


def status_of_exec_failure(number: int) -> int:
    """Returns the status that a shell has for a command that cannot be executed."""
    return NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE


def die_of(signum: int) -> NoReturn:
    """Ends this process by a signal, so that a shell sees the death of the command."""
    import resource  # which nobody else needs

    # Only the command may dump core.
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    with suppress(OSError):  # SIGKILL
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
    os.kill(os.getpid(), signum)
    # Reached only if the default action of the signal is not to end the process.
    os._exit(128 + signum)
