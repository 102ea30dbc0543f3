"""The command `lockd`: reads what it is to do, and runs until it is told to stop."""

import logging
import os
import resource
import select
import signal
import sys
from functools import partial
from typing import Final

import click
import trio

from lockd import __version__
from lockd.daemon.answers import Answers
from lockd.daemon.config import (
    Config,
    LockspaceConfig,
    make_lockspace,
    places,
    read_config,
)
from lockd.daemon.dispatch import Dispatcher
from lockd.daemon.epoch import Epoch, open_epoch
from lockd.daemon.listener import Listener, bind_listener
from lockd.daemon.poller import Poller
from lockd.daemon.runtime import Runtime
from lockd.daemon.server import Server
from lockd.engine.lock_engine import LockEngine
from lockd.errors import ConfigError
from lockd.lockspaces.files import OpenFiles
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE

logger = logging.getLogger("lockd")

EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h: systemd does not take it for a crash."""

CHECK_INVARIANTS: Final = "LOCKD_CHECK_INVARIANTS"
"""Set to 1, every law of the lock table is checked after every command. Slow."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="Configuration (TOML).")
@click.option("--socket", metavar="PATH", help="Where clients connect.")
@click.option("--state-dir", metavar="DIR", help="Where the epoch is kept.")
@click.option("--check-config", is_flag=True, help="Check the configuration, and end.")
@click.version_option(__version__, message="lockd %(version)s")
def main(
    config: str | None, socket: str | None, state_dir: str | None, check_config: bool
) -> None:
    """The lock daemon: owns all lockspaces, and runs in the foreground.

    Without options it uses the places that fit the user: under /run/lockd and
    /var/lib/lockd for root, under $XDG_RUNTIME_DIR and $XDG_STATE_HOME for others.
    SIGTERM and SIGINT end it; every client then sees the end of its connection, and
    what was held is released.
    """
    _set_up_logging()
    try:
        settings = read_config(config)
        if check_config:
            _check_lockspaces(settings, config or places().config)
            click.echo("the configuration is good")
            return
        run(
            settings,
            socket or settings.socket or places().socket,
            state_dir or settings.state_dir or places().state_dir,
        )
    except ConfigError as error:
        click.echo(f"lockd: {error}", err=True)
        sys.exit(EXIT_CONFIG)


def run(config: Config, socket_path: str, state_dir: str) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ConfigError: the configuration, the socket or the state directory cannot be
            used; nothing was changed.
    """
    lockspaces = _built_in() | config.lockspaces
    epoch = open_epoch(state_dir)
    try:
        listener = bind_listener(socket_path)
        try:
            _raise_descriptor_limit()
            trio.run(_serve, lockspaces, listener, epoch)
        finally:
            listener.remove()
    finally:
        epoch.close()


async def _serve(
    lockspaces: dict[str, LockspaceConfig], listener: Listener, epoch: Epoch
) -> None:
    engine = LockEngine(epoch.last_token)
    poller, answers, open_files = Poller(), Answers(), OpenFiles()
    runtime = Runtime(
        engine,
        answers,
        poller,
        after_turn=lambda: epoch.ensure(engine.last_token),
        checks=os.environ.get(CHECK_INVARIANTS) == "1",
    )
    for name, config in lockspaces.items():
        runtime.add_lockspace(
            make_lockspace(
                name, config.kind, config.path, open_files, config.on_disconnect
            )
        )
    poller.watch(
        open_files.mounts.fileno(),
        select.EPOLLPRI,
        lambda events: open_files.mounts.refresh(),
    )
    make = partial(make_lockspace, open_files=open_files)
    dispatcher = Dispatcher(runtime, answers, epoch.number, make)
    server = Server(poller, runtime, answers, dispatcher)
    server.listen(listener.socket)
    # Whoever reads that it serves may end it at once.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        logger.info("lockd %s serves at %s", __version__, listener.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            logger.info("= ends on %s", signal.Signals(await anext(signals)).name)
            nursery.cancel_scope.cancel()
    server.close()
    runtime.close()
    open_files.mounts.close()
    poller.close()


def _built_in() -> dict[str, LockspaceConfig]:
    return {
        DEFAULT_LOCKSPACE: LockspaceConfig("memory"),
        DIRECT_LOCKSPACE: LockspaceConfig("direct"),
    }


def _check_lockspaces(config: Config, path: str) -> None:
    open_files = OpenFiles()
    try:
        for name, lockspace in config.lockspaces.items():
            make_lockspace(name, lockspace.kind, lockspace.path, open_files)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    finally:
        open_files.mounts.close()


def _raise_descriptor_limit() -> None:
    """Takes all descriptors that we may: each session and each lock file needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up_logging() -> None:
    handler = logging.StreamHandler()
    # sd-daemon(3): what goes to the journal may say its priority.
    to_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(_PriorityFormatter() if to_journal else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _PriorityFormatter(logging.Formatter):
    """Puts the priority of syslog(3) before each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line as journald understands it."""
        priority = {10: 7, 20: 6, 30: 4, 40: 3}.get(record.levelno, 2)
        text = super().format(record).replace("\n", f"\n<{priority}>")
        return f"<{priority}>{text}"


if __name__ == "__main__":
    main()
