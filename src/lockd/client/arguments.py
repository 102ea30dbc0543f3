"""Checks the arguments of a program before the client sends them.

A wrong type raises `TypeError`. A wrong value raises `InvalidRequestError`, which is a
`ValueError`. Each error names the parameter and the allowed values.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

from lockd.errors import InvalidRequestError
from lockd.hints import Any, Final
from lockd.lean import TIMEOUT_MAX
from lockd.names import MAX_NAME_BYTES, MAX_PATH_BYTES, check_text, path_text, quoted
from lockd.terms import EXCLUSIVE, MOST_SLOTS, SHARED, SLOT

MOST_AT_ONCE: Final = 64
"""The most resources in one request (protocol 6.1)."""

_MOST_CHARACTERS: Final = 4_096
"""The longest text that others see, such as a reason."""

_LONGEST_WAIT: Final = 1e9
"""Seconds."""


def checked(method: str, params: Mapping[str, object]) -> dict[str, Any]:
    """Returns the given parameters of a request as they are sent; None means not given.

    Raises:
        TypeError: one has the wrong type, or is needed and missing.
        InvalidRequestError: one has a value that is not allowed.
    """
    found = {}
    needed = _NEEDED.get(method, ())
    for name, value in params.items():
        if value is not None or name in needed:
            check = None if (method, name) == _MAP else _CHECKS.get(name)
            found[name] = value if check is None else check(name, value)
    return found


def resource_text(name: str, value: object) -> str:
    """Returns the name of a resource, which may be an `os.PathLike`."""
    if not isinstance(value, str) and not isinstance(value, os.PathLike):
        raise _wrong_type(name, "a name (text) or a path (text or pathlib.Path)", value)
    text = value if isinstance(value, str) else path_text(name, value)
    limit = MAX_PATH_BYTES if text.startswith("/") else MAX_NAME_BYTES
    check_text(text, name, limit)
    return text


def file_text(name: str, value: os.PathLike[str]) -> str:
    """Returns the name of a resource from a path, which must be absolute."""
    text = resource_text(name, value)
    if not text.startswith("/"):
        raise InvalidRequestError(
            f"{name} {quoted(text)} is a relative path: make it absolute, as "
            "Path.resolve() does, or give a name as text"
        )
    return text


def resource_texts(name: str, value: Iterable[object]) -> list[Any]:
    """Returns the names of the resources of one request."""
    allowed = f"1 to {MOST_AT_ONCE} names in a list"
    if isinstance(value, str | bytes | os.PathLike):
        raise _wrong_type(name, allowed, value)
    try:
        given = list(islice(value, MOST_AT_ONCE + 1))
    except TypeError:
        raise _wrong_type(name, allowed, value) from None
    if not given:
        raise InvalidRequestError(f"{name} must be {allowed}, not an empty one")
    if len(given) > MOST_AT_ONCE:
        raise InvalidRequestError(
            f"{name} must be {allowed}, not more: take them in several requests"
        )
    return given


def function(name: str, value: object) -> None:
    """Checks that a value can be called."""
    if not callable(value):
        raise _wrong_type(name, "a function", value)


def path(name: str, value: str | os.PathLike[str]) -> str:
    """Returns a path as text."""
    text = path_text(name, value)
    _check_utf8(name, text)
    if (size := len(text.encode())) > MAX_PATH_BYTES:
        raise InvalidRequestError(
            f"{name} {quoted(text, 40)} has {size} bytes, at most {MAX_PATH_BYTES} are "
            "allowed"
        )
    return text


def patience(name: str, value: object) -> float:
    """Checks the timeout of a lock, as `threading.Lock` does, but for infinity.

    Returns it in seconds; -1 waits without a limit.
    """
    allowed = "a number of seconds from 0, -1 (for ever), or None"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, allowed, value)
    if value in (-1, math.inf):
        return -1
    if value > TIMEOUT_MAX:
        raise _TooLongError(f"{name} must be {allowed}, at most {TIMEOUT_MAX:.0f}")
    if not value >= 0:  # rejects nan too
        raise _wrong_value(name, allowed, value)
    return value if value <= _LONGEST_WAIT else -1


def no_patience(name: str, value: object) -> None:
    """Checks that a call that does not wait was given no timeout."""
    if value not in (None, -1):
        raise _wrong_value(name, "None if the call does not wait", value)


class _TooLongError(InvalidRequestError, OverflowError):
    """A timeout that `threading.Lock` rejects with an OverflowError."""


def _seconds(name: str, value: object) -> float:
    allowed = "a number from 0 to 1e9 (seconds), or None"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, allowed, value)
    if not 0 <= value <= _LONGEST_WAIT:  # rejects nan too
        raise _wrong_value(name, allowed, value)
    return value


def _hold_time(name: str, value: object) -> float:
    allowed = "a number above 0, at most 1e9 (seconds), or None"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, allowed, value)
    if not 0 < value <= _LONGEST_WAIT:  # rejects nan too
        raise _wrong_value(name, allowed, value)
    return value


def _integer(least: int, most: int, name: str, value: object) -> int:
    allowed = f"an integer from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, allowed, value)
    if not least <= value <= most:
        raise _wrong_value(name, allowed, value)
    return value


def _slots(name: str, value: object) -> int:
    """Checks a number of slots. True means as many as there are."""
    if value is True:
        return value
    allowed = f"an integer from 1 to {MOST_SLOTS}, or True"
    if isinstance(value, bool):
        raise _wrong_value(name, allowed, value)
    if not isinstance(value, int):
        raise _wrong_type(name, allowed, value)
    if not 1 <= value <= MOST_SLOTS:
        raise _wrong_value(name, allowed, value)
    return value


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "True or False", value)
    return value


def _choice(choices: tuple[str, ...], name: str, value: object) -> str:
    if isinstance(value, str) and value in choices:
        return value
    allowed = " or ".join(f'"{choice}"' for choice in choices)
    wrong = _wrong_value if isinstance(value, str) else _wrong_type
    raise wrong(name, allowed, value)


def _shown_text(name: str, value: object) -> str:
    """Checks a text that others see."""
    if not isinstance(value, str):
        raise _wrong_type(name, "text", value)
    if len(value) > _MOST_CHARACTERS:
        raise InvalidRequestError(
            f"{name} has {len(value)} characters, at most {_MOST_CHARACTERS} are "
            "allowed"
        )
    _check_utf8(name, value)
    return value


def _short_text(name: str, value: object) -> str:
    """Checks a text that each lock of an owner carries."""
    text = _shown_text(name, value)
    size = len(text.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"{name} has {size} bytes, at most {MAX_NAME_BYTES} are allowed"
        )
    return text


def printable_name(name: str, value: object) -> str:
    """Checks a name that is not a path."""
    if not isinstance(value, str):
        raise _wrong_type(name, "a name (text)", value)
    check_text(value, name, MAX_NAME_BYTES)
    return value


def _check_utf8(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{name} {quoted(value)} is not UTF-8") from None


def _wrong_type(name: str, allowed: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {allowed}, not {_shown(value)}")


def _wrong_value(name: str, allowed: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be {allowed}, not {_shown(value)}")


def _shown(value: object) -> str:
    # No repr() of an unknown type: it may be long, or raise.
    if isinstance(value, str):
        return quoted(value, 40)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return type(value).__name__


_ANY_NUMBER: Final = partial(_integer, 0, 2**63 - 1)

_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "client": _shown_text,
    "create": _truth,
    "fencing_token": _ANY_NUMBER,
    "kind": partial(_choice, ("memory", "directory", "direct")),
    "label": _shown_text,
    "lockspace": printable_name,
    "max_hold": _hold_time,
    "max_waiting": partial(_integer, 0, 1_024),
    "mode": partial(_choice, (EXCLUSIVE, SHARED, SLOT)),
    "name": printable_name,
    "on_disconnect": partial(_choice, ("release", "kill")),
    "outcome": partial(_choice, ("ok", "failed", "died")),
    "owner": _shown_text,
    "owner_id": partial(_integer, -(2**63), 2**63 - 1),
    "path": path,
    "pid": partial(_integer, 1, 2**31 - 1),
    "reason": _shown_text,
    "resource": resource_text,
    "session": _ANY_NUMBER,
    "slots": _slots,
    "strand": partial(_integer, 0, 2**32 - 1),
    "timeout": _seconds,
    "uid": partial(_integer, 0, 2**32 - 1),
    "unit": _shown_text,
    "until": partial(_choice, ("either", "both")),
    "uuid": _short_text,
    "wait": _truth,
    "waiting": _truth,
    "wanted": _truth,
    "whole": _truth,
}

_MAP: Final = ("register", "owner")
"""A map; its entries are checked one by one."""

_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "break": ("fencing_token", "reason"),
    "check": ("fencing_token",),
    "convert": ("mode",),
    "create_lockspace": ("name", "kind"),
    "create_resource": ("resource", "lockspace"),
    "delete_resource": ("resource", "lockspace"),
    "disconnect": ("session", "reason"),
    "register": ("name",),
}
"""The parameters that must be given."""
