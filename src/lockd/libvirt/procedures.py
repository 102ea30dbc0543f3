"""The procedures of virtlockd's program, and their arguments (lock_protocol.x)."""

from collections.abc import Callable
from typing import Any, Final

from lockd.libvirt.arguments import (
    LockspaceArgs,
    RegisterArgs,
    ResourceArgs,
    RestrictArgs,
)
from lockd.libvirt.xdr import Unpacker

PROGRAM: Final = 0x0EA7BEEF
VERSION: Final = 1

MAX_STRING_BYTES: Final = 65_536
"""VIR_LOCK_SPACE_PROTOCOL_STRING_MAX."""

SHARED: Final = 1
AUTOCREATE: Final = 2
"""Flags of ACQUIRE_RESOURCE. AUTOCREATE creates a missing file, and removes it with its
last holder."""


# The procedures of the program.
REGISTER: Final = 1
RESTRICT: Final = 2
NEW: Final = 3
CREATE_RESOURCE: Final = 4
DELETE_RESOURCE: Final = 5
ACQUIRE_RESOURCE: Final = 6
RELEASE_RESOURCE: Final = 7
CREATE_LOCKSPACE: Final = 8

LONGEST: Final = 256
MOST: Final = 1_024
"""The longest arguments to remember, in bytes, and how many of them."""


def is_procedure(number: int) -> bool:
    """Returns whether the program has a procedure."""
    return number in _DECODERS


def decode_args(procedure: int, payload: bytes) -> Any:
    """Returns the arguments of a call. Ignores bytes after them.

    Raises:
        XdrError: the payload does not have the arguments of the procedure.
    """
    return _DECODERS[procedure](Unpacker(payload))


def _register(unpacker: Unpacker) -> RegisterArgs:
    return RegisterArgs(
        _uuid(unpacker),
        _text(unpacker),
        unpacker.uint(),
        unpacker.uint(),
        unpacker.uint(),
    )


def _restrict(unpacker: Unpacker) -> RestrictArgs:
    return RestrictArgs(unpacker.uint())


def _new(unpacker: Unpacker) -> LockspaceArgs:
    return LockspaceArgs(_text(unpacker), unpacker.uint())


def _create_lockspace(unpacker: Unpacker) -> LockspaceArgs:
    return LockspaceArgs(_text(unpacker))


def _resource(unpacker: Unpacker) -> ResourceArgs:
    data = unpacker.data
    args = _heard.get(data)
    if args is None:
        args = ResourceArgs(_text(unpacker), _text(unpacker), unpacker.uint())
        if len(data) <= LONGEST:
            if len(_heard) >= MOST:
                _heard.clear()
            _heard[data] = args
    return args


def _uuid(unpacker: Unpacker) -> str:
    digits = unpacker.opaque(16).hex()
    parts = digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]
    return "-".join(parts)


def _text(unpacker: Unpacker) -> str:
    # As for file names (PEP 383). The check of names rejects text that is not UTF-8.
    return unpacker.string(MAX_STRING_BYTES).decode("utf-8", "surrogateescape")


#: What the same bytes meant before: guests come again with the same disks. Only root
#: may call, so the time of an answer tells nobody what another user asks for.
_heard: dict[bytes, ResourceArgs] = {}

_DECODERS: Final[dict[int, Callable[[Unpacker], Any]]] = {
    REGISTER: _register,
    RESTRICT: _restrict,
    NEW: _new,
    CREATE_RESOURCE: _resource,
    DELETE_RESOURCE: _resource,
    ACQUIRE_RESOURCE: _resource,
    RELEASE_RESOURCE: _resource,
    CREATE_LOCKSPACE: _create_lockspace,
}
