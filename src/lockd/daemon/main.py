"""The command `lockd`: reads its configuration, and serves until a signal stops it."""

import fcntl
import gc
import logging
import os
import resource
import socket as socket_module
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from syslog import LOG_ERR
from typing import Final, NoReturn

import click

from lockd import __version__, utf8
from lockd.daemon.clients.limits import shadowed
from lockd.daemon.config.config import (
    Config,
    config_files,
    default_paths,
    file_of_lockspace,
    read_config,
)
from lockd.daemon.service import Options
from lockd.daemon.start import takeover
from lockd.daemon.start.serve import Predecessor, begin
from lockd.daemon.stores.stores import Stores
from lockd.daemon.survival import handover
from lockd.daemon.survival.handover import Handover, Kept
from lockd.daemon.survival.revival import Revived, open_stores, revive
from lockd.daemon.system import systemd
from lockd.daemon.system.epoch import (
    Epoch,
    load_epoch,
    numbers_of,
    open_epoch,
    resume_epoch,
)
from lockd.daemon.system.listener import (
    ADMINS,
    CLIENTS,
    METRICS,
    OWNER_UMASK,
    UMASK,
    VIRTLOCKD,
    Listener,
    Role,
    bind_listener,
    load_listener,
    passed_listener,
    turn_away_all,
)
from lockd.daemon.system.logs import STDERR, set_up_logging, to_journal
from lockd.daemon.system.trimming import at_start
from lockd.errors import ConfigError, UnavailableError
from lockd.lockspaces.places import missing_directories
from lockd.names import MAX_PATH_BYTES, quoted
from lockd.notify import is_listening
from lockd.protocol.connection import Connection

EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h. systemd does not restart the service."""

EXIT_AGAIN: Final = 75
"""EX_TEMPFAIL. systemd restarts the service, and keeps the stored descriptors."""

EXIT_DEFECT: Final = 70
"""EX_SOFTWARE of sysexits.h."""

SHORTEST_LIFE: Final = 1.0
"""The shortest duration in seconds of a failed start that systemd repeats."""

TABLE: Final = 32_768
"""Descriptors for which the kernel's table has room from the start; each takes eight
bytes."""

logger = logging.getLogger("lockd")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="Read this configuration (TOML).")
@click.option("--socket", metavar="PATH", help="Listen for clients at PATH.")
@click.option("--admin-socket", metavar="PATH", help="Listen for admins at PATH.")
@click.option("--virtlockd-socket", metavar="PATH", help="Listen for libvirt at PATH.")
@click.option("--state-dir", metavar="DIR", help="Keep the epoch in DIR.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Exit after SECONDS without clients or locks.",
)
@click.option("--check-config", is_flag=True, help="Check the configuration and exit.")
@click.version_option(__version__, message="lockd %(version)s")
def main(
    config: str | None,
    socket: str | None,
    admin_socket: str | None,
    virtlockd_socket: str | None,
    state_dir: str | None,
    timeout: float | None,
    check_config: bool,
) -> None:
    """The lock daemon. It owns all lockspaces and runs in the foreground.

    The default paths are /run/lockd and /var/lib/lockd for root, and those below
    $XDG_RUNTIME_DIR and $XDG_STATE_HOME for other users. lockd prefers the sockets that
    systemd passes.

    SIGTERM and SIGINT stop it: all connections end, and all locks are released. SIGHUP
    reloads the configuration. SIGUSR1 upgrades to the program that is now on disk;
    clients only see a pause.
    """
    utf8.insist()
    _open_standard_streams()
    options = Options(config, timeout)
    passed: dict[Role, socket_module.socket] = {}
    kept: list[tuple[str, int]] = []
    try:
        if (state := handover.receive(handover.HANDOVER, Handover)) is not None:
            _run(partial(_go_on, options, state))
            return
        if (left := handover.receive(handover.KEPT, Kept)) is not None:
            _run(partial(_go_on_with_kept, options, left))
            return
        if not check_config:
            passed, kept = systemd.take_passed()
        try:
            settings = read_config(config)
        except ConfigError:
            if not kept:
                raise
            # An invalid file must not cost the kept locks: the old configuration
            # counts.
            settings = None
        if settings is None:
            _run(partial(_start_with_kept, options, state_dir, passed, kept))
        elif check_config:
            for line in _check_lockspaces(settings, config):
                click.echo(line)
            for line in shadowed(settings.limits):
                click.echo(line)
            files = config_files(config)
            click.echo(f"the configuration is valid: {', '.join(files) or 'no file'}")
        elif (copy := handover.receive(handover.TRIAL, Handover)) is not None:
            _check_lockspaces(settings, config)
            takeover.check(copy)
            click.echo(handover.GOOD)
        else:
            sockets = _socket_paths(
                socket or settings.socket,
                admin_socket or settings.admin_socket,
                virtlockd_socket,
            )
            found_dir = state_dir or settings.state_dir or default_paths().state_dir
            _run(partial(_start, options, settings, sockets, found_dir, passed, kept))
    except ConfigError as error:
        if not kept:  # otherwise the next start serves the waiting clients
            for role, sock in passed.items():
                turn_away_all(sock, _farewell(role))
        # sd-daemon(3), as in the log.
        priority = f"<{LOG_ERR}>" if to_journal() else ""
        for line in str(error).splitlines():
            click.echo(f"{priority}lockd: {line}", err=True)
        if kept:
            _end_to_start_again(EXIT_AGAIN, time.monotonic())
        sys.exit(EXIT_CONFIG)


def _farewell(role: Role) -> bytes:
    """Returns the error for clients that would wait for a daemon that cannot start."""
    if role in (VIRTLOCKD, METRICS):
        return b""  # libvirt and HTTP clients expect nothing before their call
    connection = Connection()
    sentence = "lockd cannot start: see its log for the reason"
    connection.send_error(None, UnavailableError(sentence))
    return connection.data_to_send()


def _run(serve: Callable[[], None]) -> None:
    """Serves. Logs a defect with its traceback."""
    # Until it serves: everybody waits, and there is no garbage yet.
    gc.disable()
    _make_room_for_descriptors()
    log = set_up_logging()
    began = time.monotonic()
    at_start()  # memory in use later may be a client's
    try:
        serve()
    except ConfigError:
        raise
    except Exception:
        logger.critical("this is a defect of lockd", exc_info=True)
        log.flush()
        _end_to_start_again(EXIT_DEFECT, began)
    finally:
        log.flush()


def _end_to_start_again(status: int, began: float) -> NoReturn:
    """Exits, but delays the end of a short run, because systemd restarts it at once.

    Repeated starts would take a whole processor.
    """
    if is_listening():
        time.sleep(max(0, began + SHORTEST_LIFE - time.monotonic()))
    sys.exit(status)


def _start(
    options: Options,
    config: Config,
    sockets: dict[Role, str | None],
    state_dir: str,
    passed: dict[Role, socket_module.socket],
    kept: list[tuple[str, int]],
) -> None:
    """Serves, after trying everything that can fail."""
    with ExitStack() as stack:
        stores = open_stores(kept)
        revived = None if stores is None else revive(stores)
        epoch = (
            open_epoch(state_dir)
            if revived is None
            else _epoch_after(revived, state_dir)
        )
        stack.callback(epoch.close)
        listeners = {name: passed_listener(sock) for name, sock in passed.items()}
        for name, path in sockets.items():
            if path is not None and name not in passed:
                umask = UMASK if name == CLIENTS else OWNER_UMASK
                option = "--socket" if name == CLIENTS else f"--{name}-socket"
                listeners[name] = bind_listener(path, umask, option)
                stack.callback(listeners[name].remove)
        before = None
        if revived is not None:
            before = Predecessor(revived.state, None, revived)
        begin(options, config, epoch, listeners, stores, before)


def _socket_paths(
    clients: str | None, admins: str | None, virtlockd: str | None
) -> dict[Role, str | None]:
    """Returns the paths of the sockets.

    A user who moves the clients' socket does not want the default admin socket.
    """
    usual = default_paths()
    if clients is None:
        clients, admins = usual.socket, admins or usual.admin_socket
    return {CLIENTS: clients, ADMINS: admins, VIRTLOCKD: virtlockd}


@contextmanager
def _handed_over(left: Handover | Kept) -> Iterator[tuple[Epoch, dict[Role, Listener]]]:
    """Loads the epoch and the sockets of the previous program in this process."""
    epoch = load_epoch(left.state_dir, left.epoch)
    listeners = {name: load_listener(x) for name, x in left.listeners.items()}
    with ExitStack() as stack:
        stack.callback(epoch.close)
        for listener in listeners.values():
            stack.callback(listener.remove)
        yield epoch, listeners


def _go_on(options: Options, state: Handover) -> None:
    """Continues the previous program in this process, from a handed over state."""
    with _handed_over(state) as (epoch, listeners):
        before = Predecessor(state, state.left_at, None)
        begin(options, Config(), epoch, listeners, None, before)


def _start_with_kept(
    options: Options,
    state_dir: str | None,
    passed: dict[Role, socket_module.socket],
    kept: list[tuple[str, int]],
) -> None:
    """Serves the kept state although the configuration is invalid.

    Raises:
        ConfigError: no state was kept, or the state directory is unknown, so the
            configuration is needed.
    """
    with ExitStack() as stack:
        stores = open_stores(kept)
        revived = None if stores is None else revive(stores)
        found_dir = state_dir or (revived.state.state_dir if revived else "")
        if stores is None or revived is None or not found_dir:
            read_config(options.config)
            raise ConfigError("the configuration is valid now: start again")
        epoch = _epoch_after(revived, found_dir)
        stack.callback(epoch.close)
        listeners = {name: passed_listener(sock) for name, sock in passed.items()}
        before = Predecessor(revived.state, None, revived)
        begin(options, Config(), epoch, listeners, stores, before)


def _epoch_after(revived: Revived, state_dir: str) -> Epoch:
    """Returns the epoch after a crash.

    Args:
        revived: the data of the predecessor.
        state_dir: the state directory, if the data does not have it.
    """
    before = numbers_of(*revived.state.epoch)
    if revived.problems:
        # The last tokens may be among the unreadable records.
        return open_epoch(revived.state.state_dir or state_dir, before)
    return resume_epoch(revived.state.state_dir, before)


def _go_on_with_kept(options: Options, left: Kept) -> None:
    """Continues the previous program in this process, from its stores."""
    with _handed_over(left) as (epoch, listeners):
        stores = Stores(left.stores)
        revived = revive(stores)
        if revived is None:
            raise ConfigError("the kept state of the previous daemon is gone")
        before = Predecessor(revived.state, left.left_at, revived)
        begin(options, Config(), epoch, listeners, stores, before)


def _check_lockspaces(config: Config, path: str | None) -> list[str]:
    """Returns the directories that will be created for lockspaces, a sentence each.

    Raises:
        ConfigError: one cannot be used.
    """
    found = []
    for name, lockspace in config.lockspaces.items():
        try:
            missing = missing_directories(lockspace.path) if lockspace.path else []
        except ConfigError as error:
            where = f"{file_of_lockspace(path, name)}: lockspace {quoted(name)}"
            raise ConfigError(f"{where}: {error}") from None
        found += [
            f"lockspace {quoted(name)}: a start makes {quoted(x, MAX_PATH_BYTES)}"
            for x in missing
        ]
    return found


def _open_standard_streams() -> None:
    """Opens the standard streams that the caller has closed (`lockd 2>&-`).

    Otherwise a socket or a lock file could get the number of standard error, and the
    log would be written to it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)  # for the next program in this process
    os.close(fd)


def _make_room_for_descriptors() -> None:
    """Raises the limit of descriptors: each session and each lock file needs one.

    It enlarges the kernel's table here, before there are threads. Later each growth
    would wait for all processors, which takes about 10 ms.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(OSError):  # then it grows later
        os.close(fcntl.fcntl(STDERR, fcntl.F_DUPFD_CLOEXEC, min(TABLE, hard) - 1))


if __name__ == "__main__":
    main()
