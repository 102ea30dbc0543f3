"""How what is kept is told apart: keys of records, and labels of descriptors."""

from typing import Any, Final

import msgspec

PEER: Final = "peer"
STATE: Final = "state"
UNSENT: Final = "unsent"
PARTIAL: Final = "partial"
PROCESS: Final = "process"
SPACE: Final = "space"
CONFIG: Final = "config"
DAEMON: Final = "daemon"
"""Kinds of records besides the engine's (`records`)."""

PIECES: Final = (UNSENT, PARTIAL)
"""Those of which the value is bytes of a stream, and the name says of which session,
and from where on."""

FILE: Final = "file"
CONNECTION: Final = "connection"
PIDFD: Final = "pidfd"
STUCK: Final = "stuck"
UNREADABLE: Final = "unreadable"
"""Kinds of labels of descriptors. A file is stuck whose lock nobody is known to hold,
since records were damaged: the label says so, so that no start ever lets go of it."""

_PARTS: Final[dict[str, tuple[type, ...]]] = {
    FILE: (str, str, bool),
    CONNECTION: (int, str),
    PIDFD: (int,),
    STUCK: (str, str, int, int),
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def key_of(kind: str, name: Any) -> bytes:
    """Returns the key of a record."""
    return _encode((kind, name))


def parts_of(label: bytes) -> list[Any]:
    """Returns kind and parts of a label; of one that cannot be read, `UNREADABLE`."""
    try:
        parts: list[Any] = _decode(label)
        if tuple(map(type, parts[1:])) == _PARTS[parts[0]]:
            return parts
    except (LookupError, TypeError, ValueError):
        pass
    return [UNREADABLE]


def label_of(kind: str, *parts: Any) -> bytes:
    """Returns the label of a kept descriptor."""
    return _encode((kind, *parts))
