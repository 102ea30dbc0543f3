"""Refusals of file lockspaces: what is wrong with a file, and what to do."""

import errno
import os
from collections.abc import Callable
from typing import Final, NoReturn

from lockd.errors import (
    AnchorError,
    BusyError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lockd.names import quoted
from lockd.terms import OutsideHolder


def raise_busy(outside: OutsideHolder | None, path: str) -> NoReturn:
    """Raises the `BusyError` for a file that a program outside lockd has locked."""
    message = f"the file {quoted(path)} is locked from outside lockd"
    raise BusyError(message, {"outside": outside})


def raise_refusal(error: OSError, path: str) -> NoReturn:
    """Raises the `RequestError` that a failed system call means for the client."""
    reason = os.strerror(error.errno or 0)
    kind, sentence = _REFUSALS.get(error.errno or 0, (AnchorError, "cannot be locked"))
    step = _STEPS.get(kind, "fix that first")
    raise kind(f"the file {quoted(path)} {sentence} ({reason}): {step}") from None


#: The next step for the user.
_STEPS: Final[dict[Callable[[str], RequestError], str]] = {
    NotFoundError: "create it first, or correct the name",
    DeniedError: "let lockd read it, and write to the directories of its lockspaces "
    "(in its unit: ReadWritePaths=)",
    InvalidRequestError: "name a regular file",
    UnavailableError: "try later, or have an admin raise the limits of lockd",
    AnchorError: "repair the file system, and try again",
}

_Refusal = tuple[Callable[[str], RequestError], str]

_REFUSALS: Final[dict[int, _Refusal]] = {
    errno.ENOENT: (NotFoundError, "does not exist"),
    errno.ENOTDIR: (NotFoundError, "does not exist"),
    errno.EACCES: (DeniedError, "is not accessible to lockd"),
    errno.EPERM: (DeniedError, "is not accessible to lockd"),
    errno.EROFS: (DeniedError, "is read-only to lockd"),
    errno.EISDIR: (InvalidRequestError, "is not a regular file"),
    errno.ELOOP: (InvalidRequestError, "is a symbolic link"),
    errno.ENXIO: (InvalidRequestError, "is not a regular file"),
    errno.ENAMETOOLONG: (InvalidRequestError, "has a name that is too long"),
    errno.EMFILE: (UnavailableError, "cannot be opened now"),
    errno.ENFILE: (UnavailableError, "cannot be opened now"),
    errno.ENOMEM: (UnavailableError, "cannot be opened now"),
}
