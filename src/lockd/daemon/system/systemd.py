"""What systemd passes to a service: descriptors and a watchdog (sd_listen_fds(3)).

After use, the module removes the variables that name descriptors: another program that
replaces this one in the same process must not use them again. The watchdog's variables
stay, because its time continues.
"""

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, NamedTuple

from lockd.daemon.system.fdstore import PREFIX
from lockd.daemon.system.listener import CLIENTS, METRICS, ROLES, Role
from lockd.errors import ConfigError
from lockd.names import quoted

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""


def watchdog_interval() -> float | None:
    """Returns after how many seconds `WATCHDOG=1` is due; None without a watchdog.

    It is half of the watchdog's time, as sd_watchdog_enabled(3) advises.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if pid is not None and pid != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000


class Passed(NamedTuple):
    """The passed descriptors.

    Attributes:
        listeners: the listening sockets by role.
        kept: the stored descriptors of a predecessor (`fdstore`) with their names.
            Descriptors with the same name are in no particular order.
    """

    listeners: dict[Role, socket.socket]
    kept: list[tuple[str, int]]


def take_passed() -> Passed:
    """Returns the passed descriptors.

    A single socket without a name is the one for clients.

    Raises:
        ConfigError: a descriptor is no listening socket, or has an unknown name.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    said = os.environ.pop("LISTEN_FDNAMES", None)
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return Passed({}, [])
    if not count.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {quoted(count)}, which is not a number")
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd in fds:
        with suppress(OSError):
            os.set_inheritable(fd, False)
    names = [""] * len(fds) if said is None else said.split(":") if said else []
    if len(names) != len(fds):
        raise ConfigError(
            f"{len(fds)} descriptors were passed with the names {quoted(said or '')}"
        )
    passed = list(zip(names, fds, strict=True))
    kept = [x for x in passed if x[0].startswith(PREFIX)]
    others = [x for x in passed if x not in kept]
    roles = _roles([name for name, _ in others])
    listeners = {
        role: _listener(fd, role) for role, (_, fd) in zip(roles, others, strict=True)
    }
    return Passed(listeners, kept)


def _roles(names: list[str]) -> list[Role]:
    # systemd's default name for a descriptor is the name of its unit.
    if len(names) == 1 and (not names[0] or names[0].endswith(".socket")):
        return [CLIENTS]
    found = [role for name in names for role in ROLES if role == name]
    if not len(names) == len(set(found)) == len(found):
        raise ConfigError(
            f"{len(names)} sockets were passed with the names "
            f"{quoted(':'.join(names))}: "
            f"each must be called {', '.join(ROLES[:-1])} or {ROLES[-1]} "
            "(FileDescriptorName= of its unit), and no two may have one name"
        )
    return found


def _listener(fd: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"the {name} socket (descriptor {fd}): {reason}") from None
    fits = sock.family == socket.AF_UNIX or (name == METRICS and _is_loopback(sock))
    if not (fits and sock.type == socket.SOCK_STREAM and listens):
        where = " or at a loopback address" if name == METRICS else ""
        raise ConfigError(
            f"the {name} socket (descriptor {fd}) is not a listening UNIX stream "
            f"socket{where}"
        )
    sock.setblocking(False)
    return sock


def _is_loopback(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return ip_address(sock.getsockname()[0]).is_loopback
