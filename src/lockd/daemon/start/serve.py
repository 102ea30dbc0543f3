"""Starts a daemon: empty, after an upgrade, or after a crash."""

import gc
import logging
import os
import socket
import time
from functools import partial
from typing import NamedTuple

import trio

from lockd import __version__
from lockd.daemon.activity.life import Life
from lockd.daemon.assembly import assemble
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.config.config import Config
from lockd.daemon.metrics.families import process_age
from lockd.daemon.replies.answers import Answers
from lockd.daemon.service import Options, Service
from lockd.daemon.start import takeover
from lockd.daemon.start.clock import MonotonicClock
from lockd.daemon.stores.stores import Stores
from lockd.daemon.survival import revival
from lockd.daemon.survival.keeping import StoredKeeping
from lockd.daemon.survival.revival import Revived
from lockd.daemon.system.epoch import Epoch
from lockd.daemon.system.listener import Listener, Role
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.errors import ConfigError
from lockd.text import counted

logger = logging.getLogger("lockd")


class Predecessor(NamedTuple):
    """The daemon that this one replaces.

    Attributes:
        revived: its data.
        left_at: when it stopped serving; None if it crashed.
    """

    revived: Revived
    left_at: float | None

    @property
    def life(self) -> Life:
        """The life that continues."""
        is_crash, daemon = self.left_at is None, self.revived.daemon
        return Life(
            daemon["started"],
            daemon["last_number"],
            daemon["upgrades"] + (not is_crash),
            daemon.get("revivals", 0) + is_crash,
            # After a crash, clients have waited since the start of this process.
            time.monotonic() - process_age() if is_crash else self.left_at,
        )


def begin(
    options: Options,
    config: Config,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    stores: Stores | None,
    predecessor: Predecessor | None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        options: the options of the command line.
        config: the configuration for an empty start.
        epoch, listeners: those of this start.
        stores: outlive this process; None without a service manager.
        predecessor: the daemon to continue; None for an empty start. Its own
            configuration then counts first, because an invalid file must not cost its
            locks.

    Raises:
        ConfigError: the state of the predecessor cannot be read.
    """

    async def serve() -> None:
        # The data of the predecessor is freed after this; it is as large as the state.
        if predecessor is None:
            service = begin_empty(options, config, epoch, listeners, stores)
        else:
            service = _carry_on(options, epoch, listeners, stores, predecessor)
        _collect_from_now_on()
        await service.run()

    trio.run(serve, clock=MonotonicClock())


def begin_empty(
    options: Options,
    config: Config,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    stores: Stores | None,
) -> Service:
    """Returns a daemon without a predecessor that is ready to serve."""
    engine, life = LockEngine(epoch.last_token), Life(trio.current_time())
    keep = None if stores is None else partial(StoredKeeping, stores)
    parts = assemble(engine, life, epoch, config.limits, keep)
    service = Service(parts, options, config, listeners)
    service.configure(config)
    if isinstance(parts.keeping, StoredKeeping):
        parts.keeping.record_anew()
    return service


def _carry_on(
    options: Options,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    stores: Stores | None,
    predecessor: Predecessor,
) -> Service:
    revived = predecessor.revived
    try:
        loaded = snapshot.load(revived.engine, epoch.last_token)
    except ValueError as error:
        raise ConfigError(f"the kept state: {error}") from None
    damaged = bool(loaded.problems or revived.problems)
    if damaged:
        for session in revival.missing_claims(loaded.engine, revived.peers):
            loaded.problems.append(f"session {session} is ended: its locks are lost")
            loaded.damaged.append(session)
    config = revival.config_of(revived) or Config()

    def keep(engine: LockEngine, answers: Answers, life: Life, epoch: Epoch) -> Keeping:
        if stores is None:
            return Keeping()
        slots = [peer["slot"] for peer in revived.peers]
        owners, apart = revived.owners, revived.apart
        return StoredKeeping(stores, engine, answers, life, epoch, slots, owners, apart)

    parts = assemble(loaded.engine, predecessor.life, epoch, config.limits, keep)
    service = Service(parts, options, config, listeners)
    takeover.take_over(parts, config, revived, loaded)
    is_crash = predecessor.left_at is None
    if isinstance(parts.keeping, StoredKeeping):
        _put_in_order(service, revived, damaged=damaged, is_crash=is_crash)
    else:
        service.read_configuration()
        for fd in revived.unclaimed.values():
            os.close(fd)
    if is_crash:
        for peer in parts.answers.peers.values():
            peer.tell_resumed(epoch.number)
    parts.answers.behind.update(parts.answers.peers.values())
    logger.info(
        "lockd %s continues with %d held, %d waiting, %s",
        __version__,
        parts.engine.held,
        parts.engine.waiting,
        counted(len(parts.engine.sessions), "session"),
    )
    return service


def _put_in_order(
    service: Service, revived: Revived, *, damaged: bool, is_crash: bool
) -> None:
    """Makes the kept data equal to the restored state.

    Args:
        service: the daemon.
        revived: the data of the predecessor.
        damaged: whether a part could not be read. Recording everything again then
            removes all traces of it.
        is_crash: whether the predecessor has not given way on purpose.

    Raises:
        ConfigError: there is no room for that.
    """
    parts = service.parts
    keeping = parts.keeping
    assert isinstance(keeping, StoredKeeping)
    if damaged:
        for key in keeping.unlocked():
            takeover.lose(parts, key, "its file is no longer locked")
    service.read_configuration()
    for stranger in revived.strangers:
        parts.server.take_in(socket.socket(fileno=stranger.fd), stranger.role)
    # Their connections are kept again here, so nobody else's are forgotten below.
    parts.server.let_all_in()
    owners = set(parts.runtime.processes.owners())
    try:
        if damaged:
            keeping.hold_stuck(revived.unclaimed)
        left = keeping.forget_the_rest(revived.unclaimed, owners, at_once=damaged)
    except OSError as error:
        raise ConfigError(f"the kept state cannot be repaired: {error}") from None
    if is_crash and revived.is_as_written and not damaged:
        keeping.adopt_records(revived.recorded, owners)
    else:
        keeping.record_anew()
    for what in left:
        problem = f"{what} stays locked, and nobody holds it"
        parts.health.report(f"stuck {what}", problem)
    if damaged:
        keeping.write_anew()


def _collect_from_now_on() -> None:
    """Starts garbage collection for new objects. There is no garbage so far."""
    gc.freeze()
    gc.enable()
