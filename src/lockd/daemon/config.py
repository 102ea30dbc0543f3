"""What the operator may set, and what holds when nothing is set.

Read from one TOML file; checked whole before anything of it is used.
"""

import os
import tomllib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from lockd.errors import ConfigError, InvalidRequestError
from lockd.lockspaces.base import Lockspace
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.files import OpenFiles
from lockd.lockspaces.memory import MemoryLockspace
from lockd.names import check_lockspace_name, plain, quoted
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    DIRECT_LOCKSPACE,
    Kind,
    OnDisconnect,
)

BUILT_IN: Final = (DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE)


LogLevel = Literal["debug", "info", "warning", "error"]

Count = Annotated[int, Meta(ge=1, le=2**31)]
Bytes = Annotated[int, Meta(ge=1024, le=2**30)]
Duration = Annotated[float, Meta(gt=0, le=86_400)]
"""In seconds."""


Who = list[str | int]


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The `[limits]` table: how much of the daemon one client, or all, may use."""

    sessions: Count = 4_096
    sessions_per_user: Count = 1_024
    admin_sessions: Count = 32
    locks_per_session: Count = 16_384
    locks_per_user: Count = 65_536
    waiters_per_session: Count = 1_024
    requests_per_user: Count = 16_384
    queue_length: Count = 4_096
    message_bytes: Bytes = 65_536
    unread_bytes: Bytes = 2_097_152
    message_timeout: Duration = 10.0


class Allowed(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may do what in a lockspace; None stands for what is usual for its kind.

    Users or groups by name or number; `"*"` is everybody.
    """

    acquire: Who | None = None
    share: Who | None = None
    list_: Who | None = field(default=None, name="list")
    details: Who | None = None
    break_: Who | None = field(default=None, name="break")


class LockspaceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[lockspaces.NAME]` table."""

    kind: Kind
    path: str | None = None
    on_disconnect: OnDisconnect = "release"
    allow_users: Allowed = Allowed()
    allow_groups: Allowed = Allowed()


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file; None stands for the place that fits the user (`Places`)."""

    socket: str | None = None
    state_dir: str | None = None
    lockspaces: dict[str, LockspaceConfig] = {}
    admin_socket: str | None = None
    log_level: LogLevel = "info"
    kill_grace: Duration = 5.0
    limits: Limits = Limits()


class Places(Struct, frozen=True):
    """Where things are for a user: root's daemon serves the host, others their own."""

    config: str
    socket: str
    state_dir: str


def places() -> Places:
    """Returns where things are for the user who runs this process."""
    if os.geteuid() == 0:
        return Places(
            "/etc/lockd/lockd.toml", "/run/lockd/lockd.sock", "/var/lib/lockd"
        )
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    state = os.environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return Places(
        f"{config}/lockd/lockd.toml", f"{runtime}/lockd/lockd.sock", f"{state}/lockd"
    )


def read_config(path: str | None) -> Config:
    """Reads a configuration file; the user's own one, which may be missing, if None.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    try:
        with open(path or places().config, "rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path or places().config}: {error}") from None
    try:
        _check_tables(found.get("lockspaces"))
        config = msgspec.convert(found, Config)
        _check_lockspaces(config)
        _check_paths(config)
    except (msgspec.ValidationError, InvalidRequestError, ConfigError) as error:
        raise ConfigError(f"{path or places().config}: {error}") from None
    return config


def _check_tables(tables: object) -> None:
    """Says which lockspace is wrong: msgspec does not name the table of many."""
    for name, table in tables.items() if isinstance(tables, dict) else ():
        try:
            msgspec.convert(table, LockspaceConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"[lockspaces.{plain(name)}]: {error}") from None


def _check_paths(config: Config) -> None:
    for key in ("socket", "state_dir"):
        if "\0" in (getattr(config, key) or ""):
            raise ConfigError(f"`{key}` has a NUL")


def _check_lockspaces(config: Config) -> None:
    for name, lockspace in config.lockspaces.items():
        check_lockspace_name(name)
        if name in BUILT_IN:
            raise ConfigError(f"[lockspaces.{name}]: this lockspace is built in")
        check_place(name, lockspace.kind, lockspace.path)


def check_place(name: str, kind: Kind, path: str | None) -> None:
    """Raises `ConfigError` unless a lockspace has a path exactly if it needs one."""
    if kind == "directory" and not (path and path.startswith("/")):
        raise ConfigError(f"lockspace {quoted(name)}: `path` must be an absolute path")
    if kind != "directory" and path is not None:
        raise ConfigError(f"lockspace {quoted(name)}: kind {kind} has no `path`")
    if path is not None and "\0" in path:
        raise ConfigError(f"lockspace {quoted(name)}: `path` has a NUL")


def make_lockspace(
    name: str,
    kind: Kind,
    path: str | None,
    open_files: OpenFiles,
    on_disconnect: OnDisconnect = "release",
) -> Lockspace:
    """Makes a lockspace of any kind.

    Raises:
        ConfigError: the path is missing, superfluous, or cannot be used.
    """
    check_place(name, kind, path)
    if kind == "memory":
        return MemoryLockspace(name, on_disconnect=on_disconnect)
    if kind == "direct":
        return DirectLockspace(name, open_files, on_disconnect=on_disconnect)
    place = os.path.realpath(path or "")
    try:
        return DirectoryLockspace(name, place, open_files, on_disconnect=on_disconnect)
    except ConfigError as error:
        raise ConfigError(f"lockspace {quoted(name)}: {error}") from None
