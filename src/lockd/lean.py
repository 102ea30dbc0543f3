"""Parts of the standard library for modules that must load fast.

`signal`, `socket`, `threading` and `weakref` are modules in C, and Python around them:
members of enumerations for numbers, for example. To load all of that takes half of the
time that Python takes to start. Here are the parts in C, which have what lockd needs.

A type checker sees the whole modules. So beware: a lean socket is no context manager,
and a lean signal is a number.
"""

from lockd.hints import TYPE_CHECKING

__all__ = [
    "TIMEOUT_MAX",
    "Lock",
    "RLock",
    "WeakSet",
    "local",
    "ref",
    "signal",
    "socket",
]

if TYPE_CHECKING:
    import signal
    import socket
    from threading import TIMEOUT_MAX, Lock, RLock, local
    from weakref import WeakSet, ref
else:
    import _signal as signal
    import _socket as socket
    from _thread import TIMEOUT_MAX, RLock
    from _thread import _local as local
    from _thread import allocate_lock as Lock  # noqa: N812 (as threading calls it)
    from _weakref import ref
    from _weakrefset import WeakSet
