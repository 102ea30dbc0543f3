"""The locks around this program, whose holders wait for its end: `LOCKD_WITHIN`.

`lockctl run` holds a lock and waits for its command. The daemon cannot see that wait.
So the command inherits the name of the lock, and its connections tell the daemon
(protocol 6.2). A wrong name gains nothing: it can only cause refusals to this user.
"""

import os
from collections.abc import Iterable
from typing import Final

from lockd.names import GRANT_NAME

VARIABLE: Final = "LOCKD_WITHIN"

MOST: Final = 64
"""The most names that the protocol allows. The innermost locks count."""


def inherited() -> list[str]:
    """Returns the names of the locks around this program, the outermost first."""
    words = os.environ.get(VARIABLE, "").split()
    return [word for word in words if GRANT_NAME.fullmatch(word)][-MOST:]


def tokens_of(instance: str) -> set[int]:
    """Returns the fencing tokens of the locks around this program.

    Args:
        instance: the daemon that gave them out.
    """
    words = (word.split(":") for word in inherited())
    return {int(token) for daemon, token in words if daemon == instance}


def value(instance: str, tokens: Iterable[int]) -> str:
    """Returns `LOCKD_WITHIN` for a program that starts within more locks."""
    more = [f"{instance}:{token}" for token in tokens] if instance else []
    return " ".join([*inherited(), *more][-MOST:])
