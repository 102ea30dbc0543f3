"""Opens anchors and changes files for `Runtime`, and makes a value of each failure.

It knows neither the engine's state nor the loop: a thread may run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lockd.daemon.system.defects import defect
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.errors import CodedError, InternalError, RequestError
from lockd.lockspaces.base import LockFile, Lockspace
from lockd.lockspaces.rights import User
from lockd.terms import ResourceKey


class Opened(NamedTuple):
    """An open anchor and its file."""

    key: ResourceKey
    file: LockFile


Outcome = Opened | c.AnchorRefused
"""The result of opening an anchor."""


def try_to_change(change: Callable[[str], None], resource: str) -> CodedError | None:
    """Creates or deletes a file. Returns the error, or None after success."""
    try:
        change(resource)
    except RequestError as error:
        return error
    except Exception as error:
        return defect(error)
    return None


def try_to_open(
    lockspace: Lockspace, effect: e.OpenAnchor, user: User | None, only_byte: bool
) -> Outcome:
    """Opens an anchor.

    Args:
        lockspace: the lockspace of the resource.
        effect: what to open.
        user: the user whose rights count.
        only_byte: see `Lockspace.open_anchor`.
    """
    key = effect.key
    try:
        file = lockspace.open_anchor(
            key.resource,
            effect.mode,
            create=effect.create,
            in_use=effect.in_use,
            user=user,
            only_byte=only_byte,
            whole=effect.whole,
        )
    except RequestError as error:
        outside = error.facts.get("outside")
        return c.AnchorRefused(key, error.code, error.message, outside)
    except Exception as error:
        return c.AnchorRefused(key, InternalError.code, defect(error).message)
    return Opened(key, file)
