"""A live upgrade: gives the place to the new program in the same process.

The state is in stores (`keeping`) and stays there. A daemon that nobody keeps records
its state just before it leaves. Its sockets, pidfds and lock files stay open with the
same numbers. The new program continues after execve(2) as after a crash (`revival`). No
lock is released meanwhile, so nobody else can get it. A sealed memfd (memfd_create(2))
says where the records and the descriptors are.

Everything that can fail is tried first. The new program runs as a child with a copy of
the records, and reports whether it can continue from there. Then execve(2) either
fails, and nothing has changed, or succeeds. If the new program dies later, it is a
crash like any other: unless the state is kept, the kernel frees the locks, and the
clients see EOF.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, Final, NamedTuple

import msgspec
import trio
from msgspec import Struct

from lockd.daemon.assembly import Parts
from lockd.daemon.config.config import Config
from lockd.daemon.requests.reloads import ROOM, command, hindrance
from lockd.daemon.stores.labels import CONNECTION, PIDFD, label_of
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.stores import names_of
from lockd.daemon.survival.keeping import files_of
from lockd.daemon.survival.recording import Recorder
from lockd.daemon.system.listener import Listener, Role
from lockd.errors import ConfigError
from lockd.names import plain

VERSION: Final = 3
READABLE_FROM: Final = 3
OLDEST: Final = 3
"""The versions of `Handover`, as in `snapshot`."""

HANDOVER: Final = "LOCKD_HANDOVER"
TRIAL: Final = "LOCKD_HANDOVER_TRIAL"
"""Environment variables with the descriptor of a handover: to continue, or to try."""

PATIENCE: Final = 30.0
"""Seconds in which the new program must have read the state."""

GOOD: Final = "lockd can go on from here"
"""The last line of a new program that has read the state. An exit status of 0 is not
enough: a program that ignores the state may return it too."""

MAX_SAID: Final = 1_000
"""How many bytes of its output to keep, the last ones."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Blocked from before execve(2) until the new program has its handlers. Without a
handler they would end it."""

_SEALS: Final = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
)
Plain = dict[str, Any]


class _Head(Struct, frozen=True):
    version: int
    readable_from: int


class Handover(Struct, frozen=True):
    """Where the state of a daemon is. Descriptors are numbers that stay valid.

    Attributes:
        stores: descriptors by name: of all stores if the state is kept, otherwise of
            the ledger alone.
        opened: open descriptors by label, unless they are kept in the stores.
        left_at: when the daemon stopped serving (CLOCK_MONOTONIC, seconds).
    """

    version: int
    readable_from: int
    epoch: list[int]
    state_dir: str
    listeners: dict[Role, Plain]
    stores: dict[str, int]
    opened: dict[bytes, int]
    left_at: float


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
    with ExitStack() as stack:
        ledger = _record(leaving)
        stack.callback(ledger.close)
        stores = names_of(ledger)
        memfd = _write(_hand_over(leaving, stores, {}, lambda fd: fd))
        stack.callback(os.close, memfd)
        try:
            with trio.fail_after(PATIENCE):
                status, said = await _run_trial(memfd, stores)
        except (OSError, trio.TooSlowError) as error:
            why = str(error) or f"the trial did not end within {PATIENCE:g} s"
            raise ConfigError(why) from None
    lines = said.decode("utf-8", "replace").strip()
    last = plain(lines.rpartition("\n")[2])
    if status != 0:
        raise ConfigError(last or f"the trial ended with status {status}")
    if last != GOOD:
        raise ConfigError("the trial ended without reading the state")


async def _run_trial(memfd: int, stores: dict[str, int]) -> tuple[int, bytes]:
    """Runs the new program. Returns its status, and the end of its output."""
    environment = _environment(TRIAL, memfd)
    environment.pop("NOTIFY_SOCKET", None)
    # trio starts it in a thread, which must not take signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process = await trio.lowlevel.open_process(
            command(),
            pass_fds=(memfd, *stores.values()),
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
    parts = leaving.parts
    parts.server.finish_turn()
    while parts.keeping.stage_late():
        parts.server.end_turn()
    # The new program would not know them.
    parts.open_files.spares.remove_all()
    if why := hindrance(parts.runtime.changes, is_stuck=parts.keeping.is_stuck):
        raise ConfigError(why)
    with ExitStack() as unless_done:
        try:
            stores, opened = parts.keeping.descriptors(), {}
            if not stores:
                ledger = _record(leaving)
                unless_done.callback(ledger.close)
                stores, opened = names_of(ledger), _open_descriptors(parts)
            kept = [*stores.values(), *opened.values()]

            def keep(fd: int) -> int:
                kept.append(fd)
                return fd

            memfd = _write(_hand_over(leaving, stores, opened, keep))
            unless_done.callback(os.close, memfd)
            _check_room(memfd)
            kept.append(memfd)
            unless_done.callback(_close_on_exec, kept)
            for fd in kept:
                os.set_inheritable(fd, True)
            new = command()
            os.execve(new[0], new, _environment(HANDOVER, memfd))
        except OSError as error:
            raise ConfigError(str(error)) from None


def _check_room(fd: int) -> None:
    """Raises `ConfigError` unless some descriptors are free.

    An old kernel does not say how many are (`open_descriptors`).
    """
    taken: list[int] = []
    try:
        taken.extend(os.dup(fd) for _ in range(ROOM))
    except OSError as error:
        raise ConfigError(f"{os.strerror(error.errno or 0)}: no room") from None
    finally:
        for duplicate in taken:
            os.close(duplicate)


def _record(leaving: Leaving) -> Ledger:
    """Returns a new ledger with the whole state.

    Raises:
        OSError: there is no memory or descriptor for it.
    """
    parts = leaving.parts
    processes = parts.runtime.processes
    with ExitStack() as unless_good:
        ledger = Ledger()
        unless_good.callback(ledger.close)
        recorder = Recorder(
            ledger, parts.engine, parts.answers, parts.life, parts.epoch, {}
        )
        recorder.note_config(leaving.config)
        for space in parts.runtime.lockspaces.values():
            recorder.note_lockspace(space)
        for owner_id in processes.owners():
            recorder.note_process(owner_id, processes.dump_one)
        recorder.stage_all()
        ledger.commit()
        unless_good.pop_all()
    return ledger


def _open_descriptors(parts: Parts) -> dict[bytes, int]:
    """Returns the descriptors that a successor needs, by the labels of `keeping`."""
    found = {label: fd for _, fd, label in files_of(parts.runtime.lockspaces.values())}
    for peer in parts.answers.peers.values():
        found[label_of(CONNECTION, peer.session, peer.role)] = peer.fileno()
    for owner_id, pidfd in parts.runtime.processes.pidfds():
        found[label_of(PIDFD, owner_id)] = pidfd
    return found


def _hand_over(
    leaving: Leaving,
    stores: dict[str, int],
    opened: dict[bytes, int],
    keep: Callable[[int], int],
) -> Handover:
    """Returns the handover; calls `keep` with each further descriptor to keep open."""
    epoch = leaving.parts.epoch
    return Handover(
        VERSION,
        READABLE_FROM,
        epoch.dump(keep),
        epoch.directory,
        {role: x.dump(keep) for role, x in leaving.listeners.items()},
        stores,
        opened,
        time.monotonic(),
    )


def _write(state: Handover) -> int:
    fd = os.memfd_create("lockd-handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(state))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _environment(variable: str, fd: int) -> dict[str, str]:
    return dict(os.environ) | {variable: str(fd)}


# Taking.


def receive(variable: str) -> Handover | None:
    """Returns the handover of the previous program in this process; None without one.

    Its descriptors are closed at the next execve(2).

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
        left = msgspec.msgpack.decode(raw, type=Handover)
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"the state of the previous daemon: {error}") from None
    _close_on_exec([*left.stores.values(), *left.opened.values()])
    return left


def _close_on_exec(fds: Iterable[int]) -> None:
    """Has descriptors closed at the next execve(2)."""
    for fd in fds:
        with suppress(OSError):  # a closed descriptor is reported when it is adopted
            os.set_inheritable(fd, False)


def _check_version(head: _Head) -> None:
    if head.version < OLDEST or head.readable_from > VERSION:
        raise ValueError(
            f"version {head.version} cannot be read, only {OLDEST} to {VERSION}"
        )
