"""The terms of lockd: each means one thing, on the wire and in the code.

This module knows nothing of locking; every room may import it.
"""

from collections.abc import Callable
from functools import partial

from lockd.hints import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from lockd.term_types import Create as Create
    from lockd.term_types import Kind as Kind
    from lockd.term_types import LockedBy as LockedBy
    from lockd.term_types import Mode as Mode
    from lockd.term_types import OnDisconnect as OnDisconnect
    from lockd.term_types import OnOverdue as OnOverdue
    from lockd.term_types import Outside as Outside
    from lockd.term_types import Until as Until
    from lockd.term_types import WorkOutcome as WorkOutcome

EXCLUSIVE: Final = "exclusive"
SHARED: Final = "shared"
SLOT: Final = "slot"
"""One of the N numbered places of a resource, beside the holders of the others."""

MOST_SLOTS: Final = 1024
"""The most slots of a resource."""

TEMPORARY: Final = "temporary"
"""A `Create`."""

DEFAULT_LOCKSPACE: Final = "default"
DIRECT_LOCKSPACE: Final = "direct"


class ResourceKey(NamedTuple("ResourceKey", [("lockspace", str), ("resource", str)])):
    """The full name of a resource."""

    __slots__ = ()

    def __str__(self) -> str:
        if self.lockspace in (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE):
            return self.resource
        return f"{self.lockspace}:{self.resource}"


key_of: Final[Callable[[tuple[str, str]], ResourceKey]] = partial(
    tuple.__new__, ResourceKey
)
"""Makes a `ResourceKey` of a lockspace and a resource, in half the time."""


class OutsideHolder(
    NamedTuple(
        "OutsideHolder",
        [
            ("mode", "Mode"),
            ("pid", int | None),
            ("command", str | None),
            ("key", ResourceKey | None),
            ("by", "LockedBy | None"),
            ("start", int | None),
            ("length", int | None),
        ],
    )
):
    """The process that locks an anchor which a request wants, as far as it is known.

    Attributes:
        pid, command: a process outside lockd, as the kernel names it; or the holder of
            `key`.
        key: the resource that lockd has anchored in the same file.
        by: how it is locked, if that is known.
        start, length: the locked bytes; a length of None reaches to the end. A start of
            None is no lock on bytes.
    """

    __slots__ = ()

    #: msgspec takes these for missing fields, as `__new__` does.
    _field_defaults: dict[str, Any] = dict.fromkeys(
        ("pid", "command", "key", "by", "start", "length")
    )

    def __new__(
        cls,
        mode: "Mode",
        pid: int | None = None,
        command: str | None = None,
        key: ResourceKey | None = None,
        by: "LockedBy | None" = None,
        start: int | None = None,
        length: int | None = None,
    ) -> Self:
        """Returns a holder. What is left out is not known."""
        return super().__new__(cls, mode, pid, command, key, by, start, length)


def __getattr__(name: str) -> Any:
    if not name[:1].isupper():
        raise AttributeError(f"module 'lockd.terms' has no attribute {name!r}")
    # A type, on its first use: who only needs the rest starts faster.
    from lockd import term_types

    # All at once: msgspec looks here for those that `OutsideHolder` names.
    globals().update({x: y for x, y in vars(term_types).items() if x[0].isupper()})
    return getattr(term_types, name)
