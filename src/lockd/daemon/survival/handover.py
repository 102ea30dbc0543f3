"""A live upgrade: gives the state to the new program in the same process.

The state is written into a sealed memfd (memfd_create(2)), which the new program reads
after execve(2). Sockets, pidfds and lock files stay open with the same numbers. No lock
is released meanwhile, so nobody else can get it.

Everything that can fail is tried first. The new program runs as a child with a copy of
the state, and reports whether it can continue from there. Then execve(2) either fails,
and nothing has changed, or succeeds. If the new program dies later, it is a crash like
any other: the kernel frees the locks, and the clients see EOF.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio
from msgspec import Struct

from lockd import __version__
from lockd.daemon.assembly import Parts
from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import Config
from lockd.daemon.survival.keeping import StoredKeeping
from lockd.daemon.system.listener import Listener, Role
from lockd.engine import snapshot
from lockd.errors import ConfigError
from lockd.lockspaces.base import Lockspace
from lockd.lockspaces.files import FileLockspace
from lockd.names import plain
from lockd.terms import Kind, Mode, OnDisconnect

VERSION: Final = 2
READABLE_FROM: Final = 2
OLDEST: Final = 1
"""The versions of the state, as in `snapshot`."""

HANDOVER: Final = "LOCKD_HANDOVER"
KEPT: Final = "LOCKD_KEPT"
TRIAL: Final = "LOCKD_HANDOVER_TRIAL"
"""Environment variables with the descriptor of a state: to take over, or to try."""

PATIENCE: Final = 30.0
"""Seconds in which the new program must have read the state."""

GOOD: Final = "lockd can go on from here"
"""The last line of a new program that has read the state. An exit status of 0 is not
enough: a program that ignores the state may return it too."""

MAX_SAID: Final = 1_000
"""How many bytes of its output to keep, the last ones."""

ROOM: Final = 32
"""Descriptors that must be free. A new program that cannot open its own files would
end, and all locks with it."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Blocked from before execve(2) until the new program has its handlers. Without a
handler they would end it."""

_SEALS: Final = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
)
Plain = dict[str, Any]


class LockspaceRecord(Struct, frozen=True):
    """A lockspace and its open anchors: resource, descriptor, made by us, mode."""

    name: str
    kind: Kind
    path: str | None
    on_disconnect: OnDisconnect
    files: list[tuple[str, int, bool, Mode | None]]


class _Head(Struct, frozen=True):
    version: int
    readable_from: int


class Handover(Struct, frozen=True):
    """The state of a daemon. Descriptors are numbers that stay valid."""

    version: int
    readable_from: int
    program: str
    config: Plain
    engine: Plain
    epoch: list[int]
    state_dir: str
    listeners: dict[Role, Plain]
    lockspaces: list[LockspaceRecord]
    processes: list[Plain]
    peers: list[Plain]
    last_number: int
    started: float
    upgrades: int
    revivals: int = 0
    #: When the daemon stopped serving (CLOCK_MONOTONIC, seconds).
    left_at: float = 0.0


class Kept(Struct, frozen=True):
    """The state of a daemon that keeps it outside the process: its stores."""

    version: int
    readable_from: int
    epoch: list[int]
    state_dir: str
    listeners: dict[Role, Plain]
    stores: dict[str, int]
    left_at: float = 0.0


class Leaving(NamedTuple):
    """The daemon that another program replaces."""

    parts: Parts
    config: Config
    listeners: dict[Role, Listener]


# Giving.


async def try_successor(leaving: Leaving) -> None:
    """Runs the new program as a child on a copy of the state.

    Raises:
        ConfigError: it cannot continue from there; the error says why.
        OSError: there is no room for a copy.
    """
    memfd = _write(_dump(leaving, lambda fd: fd))
    try:
        with trio.fail_after(PATIENCE):
            status, said = await _run_trial(memfd)
    except (OSError, trio.TooSlowError) as error:
        why = str(error) or f"the trial did not end within {PATIENCE:g} s"
        raise ConfigError(why) from None
    finally:
        os.close(memfd)
    lines = said.decode("utf-8", "replace").strip()
    last = plain(lines.rpartition("\n")[2])
    if status != 0:
        raise ConfigError(last or f"the trial ended with status {status}")
    if last != GOOD:
        raise ConfigError("the trial ended without reading the state")


async def _run_trial(memfd: int) -> tuple[int, bytes]:
    """Runs the new program. Returns its status, and the end of its output."""
    environment = _environment(TRIAL, memfd)
    environment.pop("NOTIFY_SOCKET", None)
    # trio starts it in a thread, which must not take signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process = await trio.lowlevel.open_process(
            _command(),
            pass_fds=(memfd,),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert process.stdout is not None
    said = b""
    try:
        async with process.stdout:
            async for data in process.stdout:
                said = (said + data)[-MAX_SAID:]
        return await process.wait(), said
    finally:
        # It took too long, or the daemon ends.
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


def give_way(leaving: Leaving) -> None:
    """Replaces this program by the new one. Returns only by raising.

    Raises:
        ConfigError: the system refused. Nothing has changed.
        Exception: anything else failed. Nothing has changed either.
    """
    leaving.parts.server.finish_turn()
    keeping = leaving.parts.keeping
    if keeping.is_stuck:
        raise ConfigError("there is no memory to record what happened last")
    if leaving.parts.runtime.changes:
        # A peer would never get an answer.
        raise ConfigError("a file is being made or removed on a slow file system")
    if isinstance(keeping, StoredKeeping):
        become(KEPT, lambda keep: _dump_kept(leaving, keeping, keep))
    else:
        become(HANDOVER, lambda keep: _dump(leaving, keep))


def become(variable: str, dump: Callable[[Callable[[int], int]], Struct]) -> None:
    """Executes the new program, with the state in a memfd.

    Args:
        variable: the environment variable for the memfd.
        dump: returns the state; calls its argument with each descriptor to keep open.

    Raises:
        ConfigError: the system refused. Nothing has changed.
    """
    kept: list[int] = []

    def keep(fd: int) -> int:
        kept.append(fd)
        return fd

    with ExitStack() as unless_done:
        try:
            memfd = _write(dump(keep))
            unless_done.callback(os.close, memfd)
            _check_room(memfd)
            for fd in (*kept, memfd):
                os.set_inheritable(fd, True)
                unless_done.callback(os.set_inheritable, fd, False)
            command = _command()
            os.execve(command[0], command, _environment(variable, memfd))
        except OSError as error:
            raise ConfigError(str(error)) from None


def _check_room(fd: int) -> None:
    """Raises `ConfigError` unless some descriptors are free."""
    taken: list[int] = []
    try:
        taken.extend(os.dup(fd) for _ in range(ROOM))
    except OSError as error:
        raise ConfigError(f"{os.strerror(error.errno or 0)}: no room") from None
    finally:
        for duplicate in taken:
            os.close(duplicate)


def _dump_kept(
    leaving: Leaving, keeping: StoredKeeping, keep: Callable[[int], int]
) -> Kept:
    stores = {name: keep(fd) for name, fd in keeping.descriptors().items()}
    return Kept(
        VERSION,
        READABLE_FROM,
        leaving.parts.epoch.dump(keep),
        leaving.parts.epoch.directory,
        {role: x.dump(keep) for role, x in leaving.listeners.items()},
        stores,
        time.monotonic(),
    )


def _dump(leaving: Leaving, keep: Callable[[int], int]) -> Handover:
    life = leaving.parts.life
    return Handover(
        VERSION,
        READABLE_FROM,
        __version__,
        msgspec.to_builtins(leaving.config),
        snapshot.dump(leaving.parts.engine),
        leaving.parts.epoch.dump(keep),
        leaving.parts.epoch.directory,
        {role: x.dump(keep) for role, x in leaving.listeners.items()},
        [_dump_lockspace(x, keep) for x in leaving.parts.runtime.lockspaces.values()],
        leaving.parts.runtime.processes.dump(keep),
        [_dump_peer(peer, keep) for peer in leaving.parts.answers.peers.values()],
        life.last_number,
        life.started,
        life.upgrades,
        life.revivals,
        time.monotonic(),
    )


def _dump_lockspace(space: Lockspace, keep: Callable[[int], int]) -> LockspaceRecord:
    files = []
    if isinstance(space, FileLockspace):
        for resource in space.open_resources():
            fd, made, mode = space.dump_file(resource)
            files.append((resource, keep(fd), made, mode))
    return LockspaceRecord(
        space.name, space.kind, space.path, space.on_disconnect, files
    )


def _dump_peer(peer: Peer, keep: Callable[[int], int]) -> Plain:
    state = list(msgspec.structs.astuple(peer.dump_state()))
    return peer.dump() | {"state": state, "fd": keep(peer.fileno())}


def _write(state: Struct) -> int:
    fd = os.memfd_create("lockd-handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(state))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _command() -> list[str]:
    """Returns the command line of this program, which may be a new version by now."""
    interpreter, *arguments = sys.orig_argv
    return [interpreter if "/" in interpreter else sys.executable, *arguments]


def _environment(variable: str, fd: int) -> dict[str, str]:
    return dict(os.environ) | {variable: str(fd)}


# Taking.


State = TypeVar("State", Handover, Kept)


def receive(variable: str, kind: type[State]) -> State | None:
    """Returns the state from the previous program in this process; None without one.

    Raises:
        ConfigError: it cannot be read.
    """
    found = os.environ.pop(variable, None)
    if found is None:
        return None
    try:
        fd = int(found)
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != _SEALS:
            raise ConfigError(f"descriptor {fd} is not sealed")
        with open(fd, "rb") as file:
            file.seek(0)
            raw = file.read()
        _check_version(msgspec.msgpack.decode(raw, type=_Head))
        return msgspec.msgpack.decode(raw, type=kind)
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"the state of the previous daemon: {error}") from None


def _check_version(head: _Head) -> None:
    if head.version < OLDEST or head.readable_from > VERSION:
        raise ValueError(
            f"version {head.version} cannot be read, only {OLDEST} to {VERSION}"
        )


def config_of(state: Handover) -> Config | None:
    """Returns the predecessor's configuration; None if it is not valid here."""
    try:
        return msgspec.convert(state.config, Config)
    except msgspec.ValidationError:
        return None
