"""The command `lockd`: reads its configuration, and serves until a signal stops it."""

import fcntl
import gc
import logging
import os
import resource
import socket as socket_module
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from syslog import LOG_ERR
from typing import Final, NamedTuple, NoReturn

import click

from lockd import __version__, compilation, utf8
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
from lockd.daemon.survival.handover import Handover
from lockd.daemon.survival.revival import (
    Revived,
    open_stores,
    revive,
    revive_handed_over,
)
from lockd.daemon.system import fdstore, systemd
from lockd.daemon.system.epoch import (
    Epoch,
    check_epoch,
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
    Role,
    bind_listener,
    check_listener,
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

MANNER: Final = "compiled" if compilation.is_compiled() else "interpreted"
"""How the modules run that have been loaded above."""

logger = logging.getLogger("lockd")


class Setup(NamedTuple):
    """What the command line and the configuration ask for.

    Attributes:
        sockets: the paths of the sockets that are not passed.
        problem: why the configuration is invalid.
    """

    config: Config = Config()
    sockets: dict[Role, str | None] = {}  # noqa: RUF012 - never changed
    state_dir: str = ""
    problem: ConfigError | None = None


class _Place(click.ParamType[str]):
    """A path. An empty one is that of a variable that is not set."""

    name = "path"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Returns the path as it is."""
        if not value:
            self.fail("the path is empty: is a variable not set?", param, ctx)
        return value


class _Seconds(click.ParamType[float]):
    """A number of seconds, which must be finite."""

    name = "seconds"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0
        if not 0 < seconds < inf:
            self.fail(f"{quoted(value)} is not a number of seconds over 0", param, ctx)
        return seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", type=_Place(), metavar="FILE", help="Read this configuration (TOML)."
)
@click.option(
    "--socket", type=_Place(), metavar="PATH", help="Listen for clients at PATH."
)
@click.option(
    "--admin-socket", type=_Place(), metavar="PATH", help="Listen for admins at PATH."
)
@click.option(
    "--virtlockd-socket",
    type=_Place(),
    metavar="PATH",
    help="Listen for libvirt at PATH.",
)
@click.option(
    "--state-dir", type=_Place(), metavar="DIR", help="Keep the epoch in DIR."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=_Seconds(),
    help="Exit after SECONDS without clients or locks.",
)
@click.option("--check-config", is_flag=True, help="Check the configuration and exit.")
@click.version_option(__version__, message=f"lockd %(version)s ({MANNER})")
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
        left = handover.receive(handover.HANDOVER)
        if left is None and not check_config:
            passed, kept = systemd.take_passed()
        if left is not None:
            wanted = Setup(state_dir=left.state_dir)
        else:
            wanted = _wanted(
                config, state_dir, socket, admin_socket, virtlockd_socket, bool(kept)
            )
        if check_config:
            found = wanted.config
            named = {
                "--socket": socket or found.socket,
                "--admin-socket": admin_socket or found.admin_socket,
                "--virtlockd-socket": virtlockd_socket,
            }
            _check_places(state_dir or found.state_dir, named)
            for line in _check_lockspaces(wanted.config, config):
                click.echo(line)
            for line in shadowed(wanted.config.limits):
                click.echo(line)
            files = config_files(config)
            click.echo(f"the configuration is valid: {', '.join(files) or 'no file'}")
        elif (copy := handover.receive(handover.TRIAL)) is not None:
            _check_lockspaces(wanted.config, config)
            takeover.check(copy)
            click.echo(handover.GOOD)
        else:
            _run(partial(_start, options, wanted, passed, kept, left))
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
    # Until it serves (`begin`): everybody waits, and there is no garbage yet.
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
    wanted: Setup,
    passed: dict[Role, socket_module.socket],
    kept: list[tuple[str, int]],
    left: Handover | None,
) -> None:
    """Serves, after trying everything that can fail."""
    with ExitStack() as stack:
        stores, before = _find_predecessor(kept, left)
        place = before and (wanted.state_dir or before.revived.daemon["state_dir"])
        if wanted.problem is not None and not place:
            raise wanted.problem
        if left is not None and before is not None:
            instance = before.revived.daemon.get("instance", "")
            epoch = load_epoch(left.state_dir, left.epoch, instance)
        elif before is not None:
            epoch = _epoch_after(before.revived, wanted.state_dir)
        else:
            epoch = open_epoch(wanted.state_dir)
        stack.callback(epoch.close)
        listeners = {name: passed_listener(sock) for name, sock in passed.items()}
        if left is not None:
            listeners = {name: load_listener(x) for name, x in left.listeners.items()}
        for listener in listeners.values():
            stack.callback(listener.remove)
        for name, path in wanted.sockets.items():
            if path is not None and name not in passed:
                umask = UMASK if name == CLIENTS else OWNER_UMASK
                option = "--socket" if name == CLIENTS else f"--{name}-socket"
                listeners[name] = bind_listener(path, umask, option)
                if stores is not None and fdstore.is_keeper():
                    fdstore.store_patiently(name, listeners[name].socket.fileno())
                    listeners[name] = passed_listener(listeners[name].socket)
                stack.callback(listeners[name].remove)
        begin(options, wanted.config, epoch, listeners, stores, before)


def _find_predecessor(
    kept: list[tuple[str, int]], left: Handover | None
) -> tuple[Stores | None, Predecessor | None]:
    """Returns the stores, if there are any, and the predecessor, if there is one.

    Args:
        kept: what the service manager kept of a predecessor.
        left: what the previous program in this process handed over.

    Raises:
        ConfigError: the data of the predecessor is gone, or unreadable.
    """
    if left is None:
        stores = open_stores(kept)
        revived = None if stores is None else revive(stores)
    elif left.stores.keys() >= Stores.NAMES:
        stores = Stores(left.stores)
        revived = revive(stores)
    else:
        stores, revived = None, revive_handed_over(left)
    if revived is not None:
        return stores, Predecessor(revived, None if left is None else left.left_at)
    if left is not None:
        raise ConfigError("the kept state of the previous daemon is gone")
    return stores, None


def _wanted(
    config: str | None,
    state_dir: str | None,
    clients: str | None,
    admins: str | None,
    virtlockd: str | None,
    is_kept: bool,
) -> Setup:
    """Returns what the command line and the configuration ask for.

    A user who moves the clients' socket does not want the default admin socket.

    Args:
        is_kept: whether there may be a predecessor. An invalid file must not cost the
            kept locks: the old configuration counts.

    Raises:
        ConfigError: the configuration is invalid.
    """
    try:
        settings = read_config(config)
    except ConfigError as error:
        if not is_kept:
            raise
        return Setup(state_dir=state_dir or "", problem=error)
    usual = default_paths()
    clients, admins = clients or settings.socket, admins or settings.admin_socket
    if clients is None:
        clients, admins = usual.socket, admins or usual.admin_socket
    return Setup(
        settings,
        {CLIENTS: clients, ADMINS: admins, VIRTLOCKD: virtlockd},
        state_dir or settings.state_dir or usual.state_dir,
    )


def _epoch_after(revived: Revived, state_dir: str) -> Epoch:
    """Returns the epoch after a crash.

    Args:
        revived: the data of the predecessor.
        state_dir: the state directory, if the data does not have it.
    """
    daemon = revived.daemon
    before = numbers_of(daemon["epoch"], daemon["reserved"])
    instance = daemon.get("instance", "")  # an older one did not record it
    if revived.problems:
        # The last tokens may be among the unreadable records.
        return open_epoch(daemon["state_dir"] or state_dir, before, instance)
    return resume_epoch(daemon["state_dir"], before, instance)


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


def _check_places(state_dir: str | None, sockets: dict[str, str | None]) -> None:
    """Checks the state directory and the sockets that somebody has named.

    The service manager may pass sockets, so the default ones may not be used.

    Args:
        state_dir: the directory.
        sockets: the path of each socket, by the option for it.

    Raises:
        ConfigError: a start could not use one, in its own words.
    """
    if state_dir is not None:
        check_epoch(state_dir)
    for option, path in sockets.items():
        if path is not None:
            check_listener(path, option)


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
