"""How a service begins: empty, with what is handed over, or with what was kept."""

import gc
import logging
import socket
import time

import trio

from lockd import __version__
from lockd.daemon.config.config import Config
from lockd.daemon.metrics.families import process_age
from lockd.daemon.service import Options, Service
from lockd.daemon.start import takeover
from lockd.daemon.start.clock import MonotonicClock
from lockd.daemon.stores.stores import Stores
from lockd.daemon.survival import handover, revival
from lockd.daemon.system.epoch import Epoch
from lockd.daemon.system.listener import Listener, Role
from lockd.engine import snapshot
from lockd.engine.lock_engine import LockEngine
from lockd.errors import ConfigError
from lockd.text import counted

logger = logging.getLogger("lockd")


def start(
    options: Options,
    config: Config,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    stores: Stores | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        stores: where everything is kept that is to outlive this process.
    """

    async def serve() -> None:
        engine = LockEngine(epoch.last_token)
        service = Service(options, config, epoch, listeners, engine)
        keeping = None if stores is None else service.keep(stores)
        service.configure(config)
        if keeping is not None:
            keeping.recorder.record_anew()
        _collect_from_now_on()
        await service.run()

    trio.run(serve, clock=MonotonicClock())


def resume(
    options: Options,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    stores: Stores,
    revived: revival.Revived,
    *,
    left_at: float | None = None,
) -> None:
    """Serves in the place of a daemon that is gone, with what was kept of it.

    Args:
        left_at: when it went by itself, so that no client noticed; None if it crashed.
    """
    state = revived.state
    is_upgrade = left_at is not None

    def take_its_place() -> Service:
        try:
            loaded = snapshot.load(state.engine, epoch.last_token)
        except ValueError as error:
            raise ConfigError(f"what was kept: {error}") from None
        damaged = bool(loaded.problems or revived.problems)
        if damaged:
            for session in revival.missing_claims(loaded.engine, state.peers):
                loaded.problems.append(f"session {session} lost what it has: ended")
                loaded.damaged.append(session)
        before = handover.config_of(state) or Config()
        service = Service(options, before, epoch, listeners, loaded.engine)
        slots = [peer["slot"] for peer in state.peers]
        keeping = service.keep(stores, slots, revived.owners, revived.apart)
        takeover.take_over(service, state, loaded)
        if damaged:
            for key in keeping.unlocked():
                takeover.lose(service, key, "its file is not locked any more")
        for problem in revived.problems:
            service.health.report(f"lost {problem}", f"not taken over: {problem}")
        service.read_configuration()
        for stranger in revived.strangers:
            service.server.take_in(socket.socket(fileno=stranger.fd), stranger.role)
        # Their connections are kept anew, and nobody else's may be forgotten.
        service.server.let_all_in()
        service.dispatcher.upgrades += is_upgrade
        try:
            # All that is seen now of what was damaged ends with what is recorded anew.
            if damaged:
                keeping.hold_stuck(revived.unclaimed)
            left = keeping.forget_the_rest(revived.unclaimed, at_once=damaged)
        except OSError as error:
            raise ConfigError(
                f"what was kept cannot be put in order: {error}"
            ) from None
        service.answers.counts.revivals = state.revivals + (not is_upgrade)
        if is_upgrade:
            service.went_on_since = left_at or None
        else:
            service.went_on_since = time.monotonic() - process_age()
        if damaged or is_upgrade or not revived.is_as_written:
            keeping.recorder.record_anew()
        else:
            keeping.recorder.adopt_records(revived.recorded)
        for what in left:
            problem = f"{what} stays locked, and nobody holds it"
            service.health.report(f"stuck {what}", problem)
        if damaged:
            keeping.write_anew()
        for peer in service.answers.peers.values():
            if not is_upgrade:
                peer.tell_resumed(epoch.number)
            service.answers.behind.add(peer)
        logger.info(
            "lockd %s goes on with %d held, %d waiting, %s",
            __version__,
            loaded.engine.held,
            loaded.engine.waiting,
            counted(len(loaded.engine.sessions), "session"),
        )
        return service

    async def serve() -> None:
        # All that was left is done with here: it is as much again as what goes on.
        service = take_its_place()
        _collect_from_now_on()
        await service.run()

    trio.run(serve, clock=MonotonicClock())


def go_on(
    options: Options,
    epoch: Epoch,
    listeners: dict[Role, Listener],
    state: handover.Handover,
) -> None:
    """Serves in the place of the daemon before, with what it had.

    A configuration that went bad since the trial must not cost the locks.
    """

    async def serve() -> None:
        loaded = snapshot.load(state.engine)
        before = handover.config_of(state) or Config()
        service = Service(options, before, epoch, listeners, loaded.engine)
        takeover.close_on_exec(state)
        takeover.take_over(service, state, loaded)
        service.answers.counts.revivals = state.revivals
        service.went_on_since = state.left_at or None
        service.read_configuration()
        _collect_from_now_on()
        await service.run()

    trio.run(serve, clock=MonotonicClock())


def _collect_from_now_on() -> None:
    """Has garbage be collected, of what is made from now on: nothing of it is yet."""
    gc.freeze()
    gc.enable()
