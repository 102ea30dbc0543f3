"""The procedures of virtlockd's program, and their arguments (lock_protocol.x)."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from lockd.libvirt.xdr import Unpacker

PROGRAM: Final = 0x0EA7BEEF
VERSION: Final = 1

MAX_STRING_BYTES: Final = 65_536
"""VIR_LOCK_SPACE_PROTOCOL_STRING_MAX."""

SHARED: Final = 1
AUTOCREATE: Final = 2
"""Flags of ACQUIRE_RESOURCE. AUTOCREATE creates a missing file, and removes it with its
last holder."""


class Procedure(IntEnum):
    """The procedures of the program."""

    REGISTER = 1
    RESTRICT = 2
    NEW = 3
    CREATE_RESOURCE = 4
    DELETE_RESOURCE = 5
    ACQUIRE_RESOURCE = 6
    RELEASE_RESOURCE = 7
    CREATE_LOCKSPACE = 8


class RegisterArgs(Struct, frozen=True):
    """The owner for whom a connection acts."""

    uuid: UUID
    name: str
    id: int
    pid: int
    flags: int


class RestrictArgs(Struct, frozen=True):
    """Flags only."""

    flags: int


class LockspaceArgs(Struct, frozen=True):
    """A lockspace, by its directory; CREATE_LOCKSPACE has no flags."""

    path: str
    flags: int = 0


class ResourceArgs(Struct, frozen=True):
    """A resource.

    `path` is the directory of its lockspace, or empty for direct paths.
    """

    path: str
    name: str
    flags: int


def decode_args(procedure: Procedure, payload: bytes) -> Any:
    """Returns the arguments of a call. Ignores bytes after them.

    Raises:
        XdrError: the payload does not have the arguments of the procedure.
    """
    return _DECODERS[procedure](Unpacker(payload))


def _register(unpacker: Unpacker) -> RegisterArgs:
    return RegisterArgs(
        UUID(bytes=unpacker.opaque(16)),
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
    return ResourceArgs(_text(unpacker), _text(unpacker), unpacker.uint())


def _text(unpacker: Unpacker) -> str:
    # As for file names (PEP 383). The check of names rejects text that is not UTF-8.
    return unpacker.string(MAX_STRING_BYTES).decode("utf-8", "surrogateescape")


_DECODERS: Final[dict[Procedure, Callable[[Unpacker], Any]]] = {
    Procedure.REGISTER: _register,
    Procedure.RESTRICT: _restrict,
    Procedure.NEW: _new,
    Procedure.CREATE_RESOURCE: _resource,
    Procedure.DELETE_RESOURCE: _resource,
    Procedure.ACQUIRE_RESOURCE: _resource,
    Procedure.RELEASE_RESOURCE: _resource,
    Procedure.CREATE_LOCKSPACE: _create_lockspace,
}
