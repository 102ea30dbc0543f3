"""What systemd gives to a service: sockets and a watchdog (sd_listen_fds(3)).

Variables that name descriptors are removed once they are used: a program that is put
in this one's place in the same process must not use them again. Those of the watchdog
stay, for it goes on to be watched.
"""

import os
import socket
from contextlib import suppress
from typing import Final

from lockd.daemon.listener import CLIENTS, ROLES, Role
from lockd.errors import ConfigError
from lockd.names import quoted

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""


def watchdog_interval() -> float | None:
    """Returns after how many seconds `WATCHDOG=1` is due; None if nobody waits for it.

    Half of the time after which we would be killed, as sd_watchdog_enabled(3) advises.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if pid is not None and pid != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000


def take_listeners() -> dict[Role, socket.socket]:
    """Returns the listening sockets that were passed to us, by what they are for.

    A single one without a name is the clients'.

    Raises:
        ConfigError: something was passed that is none, or with another name.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", None)
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return {}
    if not count.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {quoted(count)}, which is no number")
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd in fds:
        with suppress(OSError):
            os.set_inheritable(fd, False)
    return {
        name: _listener(fd, name)
        for fd, name in zip(fds, _roles(names, len(fds)), strict=True)
    }


def _roles(names: str | None, count: int) -> list[Role]:
    # What systemd calls a descriptor whose unit gives it no name.
    if names is None or (count == 1 and names.endswith(".socket")):
        said = [CLIENTS] * count
    else:
        said = names.split(":") if names else []
    found = [role for name in said for role in ROLES if role == name]
    if not len(said) == len(set(found)) == count:
        raise ConfigError(
            f"{count} sockets were passed with the names {quoted(names or '')}: "
            f"each must be called {', '.join(ROLES[:-1])} or {ROLES[-1]} "
            "(FileDescriptorName= of its unit), "
            "and no two alike"
        )
    return found


def _listener(fd: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"the {name} socket (descriptor {fd}): {reason}") from None
    if not (
        sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM and listens
    ):
        raise ConfigError(
            f"the {name} socket (descriptor {fd}) is no listening UNIX stream socket"
        )
    sock.setblocking(False)
    return sock
