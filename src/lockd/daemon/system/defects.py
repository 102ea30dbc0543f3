"""Reports an unexpected exception: a defect of lockd.

A defect outside the lock table costs the client that it affects its request or its
connection (`Server`, `Answers.blame`). It affects nobody else.
"""

import logging
from collections.abc import Callable

from lockd.errors import InternalError

logger = logging.getLogger(__name__)


def attempt(step: Callable[..., object], *args: object) -> None:
    """Runs a step on which nothing depends. Logs any exception."""
    try:
        step(*args)
    except Exception as error:
        defect(error)


def defect(error: Exception) -> InternalError:
    """Logs an unexpected exception. Returns the error for the client."""
    logger.error("this is a defect of lockd; please report it", exc_info=error)
    return InternalError(
        "this is a defect of lockd: report it with the lines that follow in its log"
    )
