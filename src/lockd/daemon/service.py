"""The daemon as a service: its signals, configuration, and service manager."""

import logging
import select
import signal
import time
from functools import partial
from typing import Final

import trio
from msgspec import Struct
from msgspec.structs import replace

from lockd import __version__
from lockd.daemon.assembly import Parts
from lockd.daemon.clients.access import rights_of
from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import (
    Config,
    LockspaceConfig,
    effective,
    is_another,
    pending,
    read_config,
)
from lockd.daemon.metrics.families import Metrics
from lockd.daemon.metrics.publishing import Publisher
from lockd.daemon.metrics.scrape import serve as serve_metrics
from lockd.daemon.survival import handover
from lockd.daemon.survival.handover import Leaving
from lockd.daemon.system import systemd
from lockd.daemon.system.defects import attempt, defect
from lockd.daemon.system.jobs import undisturbed
from lockd.daemon.system.listener import METRICS, Listener, Role
from lockd.daemon.system.logs import wait_written
from lockd.daemon.system.trimming import Trimming, at_start
from lockd.errors import ConfigError
from lockd.lockspaces.base import Lockspace
from lockd.names import plain
from lockd.notify import notify
from lockd.text import counted

logger = logging.getLogger("lockd")

CONFIGURATION: Final = "configuration"
UPGRADE: Final = "upgrade"
STATE: Final = "state"
PENDING: Final = "pending "
"""Subjects of problems (`Health`)."""

HOUSEKEEPING: Final = 1.0
"""Seconds between two rounds of housekeeping."""

CLEARING: Final = 0.005
"""Seconds between two steps of clearing away. A step takes a tenth of that
(`survival.keeping.TIDYING`, `lockspaces.spares.AT_ONCE`)."""


class Options(Struct, frozen=True):
    """The options of the command line.

    Attributes:
        config: the configuration file; None for the user's own.
        timeout: seconds without clients or locks after which the daemon exits; None for
            never.
    """

    config: str | None = None
    timeout: float | None = None


class Service:
    """The daemon as a service, after everything that can fail at the start.

    Args:
        parts: the parts of the daemon.
        options: the options of the command line.
        config: the checked configuration.
        listeners: the listening sockets by role.
    """

    def __init__(
        self,
        parts: Parts,
        options: Options,
        config: Config,
        listeners: dict[Role, Listener],
    ) -> None:
        self.parts = parts
        self.config = config
        self.listeners = listeners
        self._options = options
        counts = parts.answers.counts
        self._metrics = Metrics(parts)
        parts.dispatcher.add_handler("metrics", self._tell_metrics)
        self._publisher = Publisher(self._metrics.public_text, parts.health)
        self._trimming = Trimming(at_start())
        self._upgrading = self._asked_to_upgrade = False
        #: Held by a reload or an upgrade, so that only one runs.
        self._changing = trio.Lock()
        self._status = ""
        self._idle_since = trio.current_time()
        counts.adopt(parts.engine)
        self._set_up()
        # The predecessor has reported these.
        for space in counts.spaces.values():
            space.skip_slow(trio.current_time())
        files = parts.open_files
        parts.poller.watch(
            files.mounts.fileno(), select.EPOLLPRI, lambda _: files.look_at_mounts()
        )

    def _tell_metrics(self, peer: Peer, msgid: int, params: object) -> None:
        peer.send_result(msgid, {"text": self._metrics.text()})

    # Configuration.

    def configure(self, config: Config) -> None:
        """Applies a configuration, as far as that is possible while the daemon runs.

        Raises:
            ConfigError: a new lockspace cannot be served. Nothing has changed.
        """
        self._apply(config, self._make_missing(config, self._served()))

    def _make_missing(
        self, config: Config, served: dict[str, LockspaceConfig]
    ) -> list[Lockspace]:
        running = served | self.config.lockspaces
        return [
            self.parts.make_lockspace(
                name, found.kind, found.path, on_disconnect=found.on_disconnect
            )
            for name, found in config.lockspaces.items()
            if name not in served or is_another(running[name], found)
        ]

    def _apply(self, config: Config, made: list[Lockspace]) -> None:
        running = self._running_config(config)
        unused = {x.name for x in made if self.parts.runtime.is_unused(x.name)}
        counts = effective(running, config, unused)
        # Lockspaces that are no longer in it keep their settings.
        rights = {
            name: rights_of(counts.lockspaces[name]) for name in config.lockspaces
        }
        for lockspace in made:
            # A client may have used it meanwhile.
            if lockspace.name in unused:
                self.parts.runtime.add_lockspace(lockspace)
        self.parts.health.replace_all(PENDING, pending(counts, config))
        self.parts.health.clear(CONFIGURATION)
        self.config = counts
        for name, found in rights.items():
            self.parts.access.set_rights(name, found)
        self._set_up()

    def _set_up(self) -> None:
        config, parts = self.config, self.parts
        logging.getLogger().setLevel(config.log_level.upper())
        parts.runtime.processes.configure(config.kill_grace)
        parts.limits.configure(config.limits)
        parts.keeping.note_config(config)
        self._publisher.configure(config.metrics)
        for name, found in config.lockspaces.items():
            parts.answers.counts.set_thresholds(
                name, found.slow_wait, found.slow_hold, parts.engine
            )
            if name in parts.runtime.lockspaces:
                parts.runtime.lockspaces[name].heed(found.outside)
                limits = replace(
                    parts.engine.lockspaces[name],
                    max_hold=found.max_hold or None,
                    on_overdue=found.on_overdue,
                    slots=tuple(found.slots.items()),
                )
                parts.runtime.change_lockspace(limits)

    def _running_config(self, wanted: Config) -> Config:
        """Returns the current configuration, with the lockspaces that clients created.

        Only those that are also in `wanted` are added.
        """
        made = {x: y for x, y in self._served().items() if x in wanted.lockspaces}
        return replace(self.config, lockspaces=made | self.config.lockspaces)

    def _served(self) -> dict[str, LockspaceConfig]:
        """Returns the settings of each lockspace, as a copy for a thread."""
        return {
            name: LockspaceConfig(space.kind, space.path, space.on_disconnect)
            for name, space in self.parts.runtime.lockspaces.items()
        }

    async def reload(self) -> None:
        """Reloads the configuration. An invalid one changes nothing.

        A thread reads it: directories and the user database may be on a network and not
        answer. The thread has a copy of everything that the loop may change meanwhile.
        """
        async with self._changing:
            self._tell_reloading()
            try:
                prepare = partial(self._prepare, self._served())
                with trio.fail_after(handover.PATIENCE):
                    found = await trio.to_thread.run_sync(
                        undisturbed, prepare, abandon_on_cancel=True
                    )
                self._apply(*found)
                logger.info("reloaded the configuration")
            except Exception as error:
                self._keep_configuration(error)
            self._tell_ready()

    def read_configuration(self) -> None:
        """Reads the configuration at a start with a predecessor.

        An invalid one changes nothing, because it must not cost locks.
        """
        try:
            self.configure(read_config(self._options.config))
        except Exception as error:
            self._keep_configuration(error)
        problem = self.parts.health.problem(CONFIGURATION)
        self.parts.reloads.answer(self.parts.reloads.waiting(), problem)

    def _keep_configuration(self, error: Exception) -> None:
        if self.parts.runtime.is_broken:
            raise error
        known = isinstance(error, ConfigError | trio.TooSlowError)
        why = str(error if known else defect(error))
        why = why or f"it did not end within {handover.PATIENCE:g} s"
        self.parts.health.report(
            CONFIGURATION, f"cannot reload the configuration, the old one stays: {why}"
        )

    def _prepare(
        self, served: dict[str, LockspaceConfig]
    ) -> tuple[Config, list[Lockspace]]:
        config = read_config(self._options.config)
        return config, self._make_missing(config, served)

    # Running.

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, or until it has been idle for too long."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._take_signals, nursery)
            nursery.start_soon(self.parts.server.run)
            nursery.start_soon(self._keep_house, nursery)
            nursery.start_soon(self._clear_away)
            nursery.start_soon(self._publisher.run)
            for role, listener in self.listeners.items():
                if role == METRICS:
                    text = self._metrics.public_text
                    nursery.start_soon(serve_metrics, listener.socket, text)
                else:
                    self.parts.server.listen(listener.socket, role)
                logger.info("lockd %s serves at %s", __version__, listener.path)
            if self.parts.keeping.by is None:
                logger.info(
                    "nobody keeps the locks (see `lockd keep`): if this process is "
                    "killed, all locks and connections are lost"
                )
            self.parts.life.serves(time.monotonic())
            self._tell_ready()
        notify("STOPPING=1")
        self.parts.open_files.spares.remove_all()
        if self.parts.keeping.descriptors():
            while self.parts.keeping.stage_late():
                self.parts.server.end_turn()
            # The next process continues. If none is started, the manager drops what is
            # stored, and the kernel frees everything else.
            return
        self.parts.close()

    async def _take_signals(
        self,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(*handover.SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.SIGNALS)
            # A caller that reads that it serves may stop it at once.
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    nursery.start_soon(self.reload)
                elif number == signal.SIGUSR1:
                    self._asked_to_upgrade = True
                    if not self._upgrading:
                        self._upgrading = True
                        nursery.start_soon(self._upgrade)
                else:
                    logger.info("exits on %s", signal.Signals(number).name)
                    # A second signal must not interrupt the end.
                    signal.pthread_sigmask(signal.SIG_BLOCK, handover.SIGNALS)
                    self._end(nursery)

    def _end(self, nursery: trio.Nursery) -> None:
        # New clients wait for the next daemon, if the manager starts one.
        self.parts.server.stop_accepting()
        nursery.cancel_scope.cancel()

    async def _upgrade(self) -> None:
        """Replaces this program by the one that is now at its path."""
        async with self._changing:
            self._tell_reloading()
            while self._asked_to_upgrade:
                self._asked_to_upgrade = False
                asked = self.parts.reloads.waiting()
                problem = await self._try_to_upgrade()
                if problem is not None:
                    self.parts.reloads.answer(asked, problem)
                    self.parts.server.end_turn()
            self._tell_ready()
        self._upgrading = False

    async def _try_to_upgrade(self) -> str | None:
        """Returns the problem; None if somebody has asked again meanwhile."""
        problem = None
        try:
            leaving = Leaving(self.parts, self.config, self.listeners)
            await handover.try_successor(leaving)
            await self._leave_signals()
            # If somebody asks again, the program at the path may have changed untried.
            if not self._asked_to_upgrade:
                logger.info("lockd %s hands over to the new program", __version__)
                await wait_written()
                handover.give_way(leaving)
        except Exception as error:
            if self.parts.runtime.is_broken:
                raise
            why = error if isinstance(error, ConfigError | OSError) else defect(error)
            problem = f"the upgrade failed, lockd {__version__} stays: {why}"
            if wrong := await self._refused_configuration(str(why)):
                problem = (
                    "the new configuration is refused, the old one stays in effect: "
                    f"{wrong}"
                )
            # It stays until a new program has no problems. Each failure is logged.
            self.parts.health.clear(UPGRADE)
            self.parts.health.report(UPGRADE, problem)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.SIGNALS)
        return problem

    async def _refused_configuration(self, why: str) -> str | None:
        """Returns all that is wrong with the configuration, if an upgrade failed so.

        Args:
            why: why the upgrade failed. The trial's last line says the last error.
        """
        try:
            with trio.fail_after(handover.PATIENCE):
                await trio.to_thread.run_sync(
                    undisturbed,
                    partial(read_config, self._options.config),
                    abandon_on_cancel=True,
                )
        except ConfigError as error:
            wrong = str(error)
            return wrong if plain(wrong.rpartition("\n")[2]) in why else None
        except Exception:
            # It did not come to the configuration, or it cannot be read now.
            return None
        return None

    async def _leave_signals(self) -> None:
        """Blocks signals for the new program, after handling those that have arrived.

        Otherwise those would be lost: delivered signals do not survive execve(2). If
        one of them ends the daemon, this is cancelled.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, handover.SIGNALS)
        heard = trio.Event()
        # trio's own handler uses the same queue, and was there first.
        token = trio.lowlevel.current_trio_token()
        token.run_sync_soon(heard.set, idempotent=True)
        await heard.wait()
        await trio.lowlevel.checkpoint()

    # Housekeeping.

    async def _keep_house(self, nursery: trio.Nursery) -> None:
        """Reports the state to systemd and the log, from the loop that serves."""
        watchdog = systemd.watchdog_interval()
        while True:
            spaces = self.parts.answers.counts.spaces.values()
            attempt(self.parts.slow_log.tell_slow, spaces, trio.current_time())
            attempt(self._look_after_epoch)
            attempt(self._tell_status)
            attempt(self._trimming.look, trio.current_time())
            self.parts.keeping.tidy_thoroughly()
            if self.parts.keeping.stage_late() or self.parts.keeping.is_stuck:
                # There may be memory again, even if no client sends anything.
                self.parts.server.end_turn()
            if watchdog is not None:
                notify("WATCHDOG=1")
            if self._is_idle_too_long():
                logger.info("exits: no client and no lock for some time")
                self._end(nursery)
            await trio.sleep(min(HOUSEKEEPING, watchdog or HOUSEKEEPING))

    async def _clear_away(self) -> None:
        """Returns the memory of records after a burst, also if no more requests come.

        Removes the spare files that nobody wants. Steps that follow each other soon
        do it within seconds, on a slow machine too, and nobody waits for longer than
        one step.
        """
        while True:
            has_more = self.parts.open_files.spares.remove_old()
            has_more |= self.parts.keeping.compact()
            await trio.sleep(CLEARING if has_more else HOUSEKEEPING)

    def _look_after_epoch(self) -> None:
        self.parts.epoch.ensure(self.parts.engine.last_token)
        try:
            self.parts.epoch.look_after()
        except (OSError, ConfigError) as error:
            self.parts.health.report(STATE, self.parts.epoch.complaint(error))
        else:
            self.parts.health.clear(STATE)
        # It may be another directory by now.
        self.parts.open_files.private.add(self.parts.epoch.inode)

    def _is_idle_too_long(self) -> bool:
        timeout = self._options.timeout
        engine = self.parts.runtime.engine
        if timeout is None:
            return False
        if engine.sessions or engine.held:
            self._idle_since = trio.current_time()
        return trio.current_time() - self._idle_since >= timeout

    def _tell_reloading(self) -> None:
        # The time is for Type=notify-reload of newer managers (sd_notify(3)).
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def _tell_ready(self) -> None:
        self._status = ""
        notify("READY=1")
        self._tell_status()

    def _tell_status(self) -> None:
        engine = self.parts.runtime.engine
        status = f"{engine.held} held, {engine.waiting} waiting, "
        status += counted(len(engine.sessions), "session")
        if problems := self.parts.health.summary():
            status += f"; {problems}"
        if status != self._status and notify(f"STATUS={status}"):
            self._status = status
