"""What is said of an exception that should not have been.

What fails outside the lock table costs the client in whose name it happened its request
or its connection (`Server`, `Answers.blame`). It costs nobody else anything.
"""

import logging
from collections.abc import Callable

from lockd.errors import InternalError

logger = logging.getLogger(__name__)


def attempt(step: Callable[..., object], *args: object) -> None:
    """Does something on which nothing else depends; whatever it raises is logged."""
    try:
        step(*args)
    except Exception as error:
        defect(error)


def defect(error: Exception) -> InternalError:
    """Returns what a client is told of such an exception; logs the rest."""
    logger.error("this is a defect of lockd; please report it", exc_info=error)
    return InternalError(
        "this is a defect of lockd: report it with what its log says from here on"
    )
