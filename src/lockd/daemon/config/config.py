"""The configuration: its schema, its defaults, and which changes a reload applies.

It comes from TOML files. All of it is checked before any of it is used.
"""

import grp
import os
import pwd
import stat
import tomllib
from collections.abc import Callable, Container
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field, to_builtins
from msgspec.structs import replace

from lockd.daemon.config import problems
from lockd.errors import ConfigError, InvalidRequestError
from lockd.lockspaces.base import Lockspace
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.memory import MemoryLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.places import make_directory
from lockd.names import (
    MAX_NAME_BYTES,
    check_lockspace_name,
    check_text,
    plain,
    quoted,
)
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    DIRECT_LOCKSPACE,
    MOST_SLOTS,
    Kind,
    OnDisconnect,
    OnOverdue,
    Outside,
)

EVERYBODY: Final = "*"

LogLevel = Literal["debug", "info", "warning", "error"]

Count = Annotated[int, Meta(ge=1, le=2**31)]
Bytes = Annotated[int, Meta(ge=1024, le=2**30)]
ManyBytes = Annotated[int, Meta(ge=2**24, le=2**34)]
SlotCount = Annotated[int, Meta(ge=1, le=MOST_SLOTS)]
Duration = Annotated[float, Meta(gt=0, le=86_400)]
"""Seconds."""

AbsolutePath = Annotated[str, Meta(pattern="^/")]
SocketPath = Annotated[str, Meta(pattern="^/", max_length=107)]
"""The longest path that unix(7) allows."""

Threshold = Annotated[float, Meta(ge=0, le=31_536_000)]
"""Seconds; 0 means never."""

_OCTET: Final = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_PORT: Final = r"([1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"

LoopbackAddress = Annotated[
    str,
    Meta(
        pattern=rf"^((127(\.{_OCTET}){{3}}|\[::1\]):{_PORT})?\Z",
        description='an address of this host for itself, as "127.0.0.1:9090", or ""',
    ),
]
"""A loopback address with a port; empty for none."""

OptionalPath = Annotated[
    str, Meta(pattern=r"^(/|\Z)", description='an absolute path, or ""')
]

Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]
"""The id of a user or group. The greatest number is nobody's (setreuid(2) takes it as
-1)."""

Who = list[str | Id]


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The `[limits]` table: how much one client, one user or all may use."""

    sessions: Count = 4_096
    sessions_per_user: Count = 1_024
    admin_sessions: Count = 32
    locks_per_session: Count = 16_384
    locks_per_user: Count = 65_536
    waiters_per_session: Count = 1_024
    requests_per_user: Count = 16_384
    queue_length: Count = 4_096
    text_bytes_per_user: Bytes = 16_777_216
    message_bytes: Bytes = 65_536
    unread_bytes: Bytes = 2_097_152
    unread_bytes_per_user: Bytes = 8_388_608
    record_bytes: ManyBytes = 536_870_912
    message_timeout: Duration = 10.0


class MetricsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The `[metrics]` table: where to publish metrics, besides the admin socket."""

    listen: LoopbackAddress = ""
    textfile: OptionalPath = ""
    textfile_interval: Duration = 15.0


class Allowed(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may do what in a lockspace. None means the default of its kind.

    Users or groups have names or numbers; `"*"` means everybody.
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
    slow_wait: Threshold = 30.0
    slow_hold: Threshold = 0.0
    max_hold: Threshold = 0.0
    on_overdue: OnOverdue = "notice"
    outside: Outside = "file"
    slots: dict[str, SlotCount] = {}


BUILT_IN: Final = {
    DEFAULT_LOCKSPACE: LockspaceConfig("memory"),
    DIRECT_LOCKSPACE: LockspaceConfig("direct"),
}
"""The lockspaces that always exist. Their kind is fixed."""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration. None means the user's own path (`DefaultPaths`)."""

    socket: SocketPath | None = None
    admin_socket: SocketPath | None = None
    state_dir: AbsolutePath | None = None
    log_level: LogLevel = "info"
    kill_grace: Duration = 5.0
    limits: Limits = Limits()
    metrics: MetricsConfig = MetricsConfig()
    lockspaces: dict[str, LockspaceConfig] = field(default_factory=BUILT_IN.copy)


class DefaultPaths(Struct, frozen=True):
    """The default paths of a user.

    Root's daemon serves the host, any other its user.
    """

    config: str
    socket: str
    admin_socket: str
    state_dir: str


def default_paths() -> DefaultPaths:
    """Returns the default paths of the user who runs this process."""
    if os.geteuid() == 0:
        config, runtime, state = "/etc", "/run", "/var/lib"
    else:
        home = os.path.expanduser("~")
        config = os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
        runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        state = os.environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return DefaultPaths(
        f"{config}/lockd/lockd.toml",
        f"{runtime}/lockd/lockd.sock",
        f"{runtime}/lockd/admin.sock",
        f"{state}/lockd",
    )


def config_files(path: str | None) -> list[str]:
    """Returns the configuration files, in the order in which later ones override.

    They are the main file, then `conf.d/*.toml` beside it, sorted by name.

    Args:
        path: of the main file; None for the user's own, which may be missing.

    Raises:
        ConfigError: the directory `conf.d` cannot be read.
    """
    main = path or default_paths().config
    directory = os.path.join(os.path.dirname(main), "conf.d")
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    parts = [x for x in names if x.endswith(".toml") and not x.startswith(".")]
    found = [main] if path is not None or os.path.exists(main) else []
    return found + [os.path.join(directory, name) for name in parts]


def read_config(path: str | None) -> Config:
    """Reads the configuration from the files of `config_files`.

    Raises:
        ConfigError: a file cannot be read or is invalid; it has a line for each
            problem.
    """
    merged: dict[str, Any] = {}
    wrong: list[str] = []
    #: The last file that mentions a lockspace.
    mentioned: dict[str, str] = {}
    for file in config_files(path):
        table = _read_file(file)
        found = [f"{file}: {x}" for x in problems.find(table, Config)]
        wrong += found
        if not found:
            _merge(merged, table)
            mentioned |= dict.fromkeys(table.get("lockspaces", ()), file)
    lockspaces = merged.get("lockspaces", {})
    for name, lockspace in lockspaces.items():
        found = _problems_of_lockspace(name, lockspace)
        wrong += [
            f"{mentioned[name]}: [lockspaces.{plain(name)}]: {found}" for found in found
        ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    merged["lockspaces"] = {n: to_builtins(x) for n, x in BUILT_IN.items()} | lockspaces
    return msgspec.convert(merged, Config)


def file_of_lockspace(path: str | None, name: str) -> str:
    """Returns the last file that mentions a lockspace."""
    files = config_files(path)
    return [x for x in files if name in _read_file(x).get("lockspaces", {})][-1]


def _read_file(path: str) -> dict[str, Any]:
    raw = _read_bytes(path)
    try:
        # Ignore an editor's byte order mark.
        return tomllib.loads(raw.decode("utf-8-sig"))
    # Deep nesting and long numbers raise Python's own errors.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {problems.of_syntax(error)}") from None


def _read_bytes(path: str) -> bytes:
    """Reads a file and never blocks, because a reload must not delay clients."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) or path == os.devnull:
                return file.read()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigError(f"{path}: {reason}") from None
    raise ConfigError(f"{path}: is not a regular file")


def _merge(into: dict[str, Any], table: dict[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _problems_of_lockspace(name: str, table: dict[str, Any]) -> list[str]:
    """Returns the problems of a lockspace after all files are merged."""
    wrong = []
    try:
        check_lockspace_name(name)
        if name in BUILT_IN:
            if table.setdefault("kind", BUILT_IN[name].kind) != BUILT_IN[name].kind:
                raise ConfigError(
                    f'this lockspace is built in, its kind is "{BUILT_IN[name].kind}"'
                )
        elif "kind" not in table:
            raise ConfigError('"kind" is missing: "memory", "directory" or "direct"')
        check_place(table["kind"], table.get("path"))
        if "outside" in table and table["kind"] != "direct":
            raise ConfigError(
                f'kind "{table["kind"]}" has no "outside": only "direct" has it'
            )
        if table.get("slots") and table["kind"] != "memory":
            raise ConfigError(
                f'kind "{table["kind"]}" has no "slots": only "memory" has them'
            )
        for pattern in table.get("slots", ()):
            check_text(pattern, "pattern of slots", MAX_NAME_BYTES)
    except (InvalidRequestError, ConfigError) as error:
        wrong.append(str(error))
    for key, find in (("allow_users", user_ids), ("allow_groups", group_ids)):
        for operation, who in table.get(key, {}).items():
            try:
                find(who)
            except ConfigError as error:
                wrong.append(f"{key}.{operation}: {error}")
    return wrong


def user_ids(who: Who) -> frozenset[int]:
    """Returns the uids of a list of names and uids, without `"*"`.

    Raises:
        ConfigError: a user does not exist.
    """
    return _ids(who, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_ids(who: Who) -> frozenset[int]:
    """Returns the gids of a list of names and gids, without `"*"`.

    Raises:
        ConfigError: a group does not exist.
    """
    return _ids(who, "group", lambda name: grp.getgrnam(name).gr_gid)


def _ids(who: Who, what: str, look_up: Callable[[str], int]) -> frozenset[int]:
    found = set()
    for name in who:
        if name == EVERYBODY:
            continue
        try:
            found.add(look_up(name) if isinstance(name, str) else name)
        except (KeyError, ValueError):
            hint = "; write a number without quotes" if str(name).isdecimal() else ""
            sentence = f"there is no {what} {quoted(str(name))} here{hint}"
            raise ConfigError(sentence) from None
    return frozenset(found)


_FIXED: Final = ("socket", "admin_socket", "state_dir")
_FIXED_IN_LOCKSPACE: Final = ("kind", "path", "on_disconnect")


def is_another(running: LockspaceConfig, wanted: LockspaceConfig) -> bool:
    """Returns whether a lockspace changes in a way that its holders would notice."""
    return any(
        getattr(running, key) != getattr(wanted, key) for key in _FIXED_IN_LOCKSPACE
    )


def effective(
    running: Config, wanted: Config, unused: Container[str] = frozenset()
) -> Config:
    """Returns the part of a configuration that takes effect while the daemon runs.

    Holders rely on where their lock files are, and on whether their process will be
    killed.

    Args:
        running: the current configuration.
        wanted: the new configuration.
        unused: the lockspaces without holders and waiters.
    """
    lockspaces = dict(running.lockspaces)
    for name, space in wanted.lockspaces.items():
        before = running.lockspaces.get(name, space)
        if name in unused:
            before = space
        fixed = {key: getattr(before, key) for key in _FIXED_IN_LOCKSPACE}
        lockspaces[name] = replace(space, **fixed)
    fixed = {key: getattr(running, key) for key in _FIXED}
    return replace(wanted, lockspaces=lockspaces, **fixed)


def pending(counts: Config, wanted: Config) -> dict[str, str]:
    """Returns a sentence for each part of a configuration that is not yet in effect.

    Args:
        counts: the part in effect (`effective`).
        wanted: the whole configuration.
    """
    found = {
        key: f'"{key}" changes when you stop and start lockd, not at a restart'
        for key in _FIXED
        if getattr(counts, key) != getattr(wanted, key)
    }
    for name, space in counts.lockspaces.items():
        new = wanted.lockspaces.get(name)
        if new is None:
            found[name] = f"lockd serves [lockspaces.{name}] until you stop it"
        elif is_another(space, new):
            keys = [
                f'"{key}"'
                for key in _FIXED_IN_LOCKSPACE
                if getattr(space, key) != getattr(new, key)
            ]
            found[name] = (
                f"[lockspaces.{name}] cannot change {' and '.join(keys)} while "
                "somebody holds or waits for a lock there: reload again later"
            )
    return found


def check_place(kind: Kind, path: str | None) -> None:
    """Raises `ConfigError` if a lockspace lacks a path or has a needless one."""
    if kind == "directory" and not (path and path.startswith("/")):
        raise ConfigError('"path" must be an absolute path')
    if kind != "directory" and path is not None:
        raise ConfigError(f'kind "{kind}" has no "path"')
    if path is not None and "\0" in path:
        raise ConfigError('"path" has a NUL')


def make_lockspace(
    name: str,
    kind: Kind,
    path: str | None,
    open_files: OpenFiles,
    on_disconnect: OnDisconnect = "release",
    *,
    settle: Callable[[str], str] = make_directory,
) -> Lockspace:
    """Creates a lockspace of any kind.

    Args:
        name, kind, path, on_disconnect: its settings.
        open_files: the state that file lockspaces share.
        settle: prepares its directory, and returns the path without symbolic links.

    Raises:
        ConfigError: the path is missing, needless, or cannot be used.
    """
    try:
        check_place(kind, path)
        if kind == "memory":
            return MemoryLockspace(name, on_disconnect=on_disconnect)
        if kind == "direct":
            return DirectLockspace(name, open_files, on_disconnect=on_disconnect)
        place = settle(path or "")
        if open_files.mounts.is_our_own(f"{place}/"):
            raise ConfigError(
                f"only lockd would see the directory {quoted(place)}, because its unit "
                "gives it a private /tmp (PrivateTmp=): choose another directory"
            )
    except ConfigError as error:
        raise ConfigError(f"lockspace {quoted(name)}: {error}") from None
    return DirectoryLockspace(name, place, open_files, on_disconnect=on_disconnect)
