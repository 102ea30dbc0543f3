"""Names what outlives the process: keys of records, and labels of descriptors."""

from typing import Any, Final

import msgspec

PEER: Final = "peer"
STATE: Final = "state"
POSITION: Final = "position"
UNSENT: Final = "unsent"
PARTIAL: Final = "partial"
PROCESS: Final = "process"
SPACE: Final = "space"
CONFIG: Final = "config"
DAEMON: Final = "daemon"
"""The kinds of records besides those of the engine (`records`)."""

PIECES: Final = (UNSENT, PARTIAL)
"""Kinds whose value is a piece of a stream. The name has the session, and the position
where the piece begins."""

FILE: Final = "file"
CONNECTION: Final = "connection"
PIDFD: Final = "pidfd"
STUCK: Final = "stuck"
UNREADABLE: Final = "unreadable"
"""The kinds of labels of descriptors. A stuck file has a lock whose holder is unknown,
because records were damaged. Its label says so, so that no start ever releases it."""

_PARTS: Final[dict[str, tuple[type, ...]]] = {
    FILE: (str, str, bool),
    CONNECTION: (int, str),
    PIDFD: (int,),
    STUCK: (str, str, int, int),
}

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


def key_of(kind: str, name: Any) -> bytes:
    """Returns the key of a record."""
    return _encode((kind, name))


def parts_of(label: bytes) -> list[Any]:
    """Returns kind and parts of a label; `UNREADABLE` if it cannot be read."""
    try:
        parts: list[Any] = _decode(label)
        if tuple(map(type, parts[1:])) == _PARTS[parts[0]]:
            return parts
    except (LookupError, TypeError, ValueError):
        pass
    return [UNREADABLE]


def label_of(kind: str, *parts: Any) -> bytes:
    """Returns the label of a descriptor."""
    return _encode((kind, *parts))
