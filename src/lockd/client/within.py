"""The locks around this program, whose holders wait for its end: `LOCKD_WITHIN`.

`lockctl run` holds a lock and waits for its command. The daemon cannot see that wait.
So the command inherits the name of the lock, and its connections tell the daemon
(protocol 6.2). A wrong name gains nothing: it can only cause refusals to this user.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence

from lockd.hints import Final
from lockd.names import is_grant_name

VARIABLE: Final = "LOCKD_WITHIN"

MOST: Final = 64
"""The most names that the protocol allows. The innermost locks count."""


def inherited() -> list[str]:
    """Returns the names of the locks around this program, the outermost first."""
    words = os.environ.get(VARIABLE, "").split()
    return [word for word in words if is_grant_name(word)][-MOST:]


def tokens_of(instance: str) -> set[int]:
    """Returns the fencing tokens of the locks around this program.

    Args:
        instance: the daemon that gave them out.
    """
    words = (word.split(":") for word in inherited())
    return {int(token) for daemon, token in words if daemon == instance}


def apart(
    names: Sequence[str], around: Collection[int], holds: Callable[[str, int], bool]
) -> list[list[str]]:
    """Returns names in the parts to ask for one after the other.

    A request is for locks inside those around this program, or for others, never for
    both (protocol 5.14). What is outside comes first: who waits for it then keeps
    nobody inside from a lock.

    Args:
        names: the resources.
        around: the fencing tokens of the locks around this program.
        holds: returns whether a resource is held with a fencing token, or inside it
            (method `check`).
    """
    if not around or len(names) == 1:
        return [list(names)]
    inside = [name for name in names if any(holds(name, token) for token in around)]
    outside = [name for name in names if name not in inside]
    return [part for part in (outside, inside) if part]


def value(instance: str, tokens: Iterable[int]) -> str:
    """Returns `LOCKD_WITHIN` for a program that starts within more locks."""
    more = [f"{instance}:{token}" for token in tokens] if instance else []
    return " ".join([*inherited(), *more][-MOST:])
