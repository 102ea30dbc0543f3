import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from daemon.config.conftest import written, written_parts
from lockd.daemon.config.config import (
    BUILT_IN,
    Allowed,
    Config,
    Limits,
    LockspaceConfig,
    MetricsConfig,
    check_place,
    config_files,
    default_paths,
    effective,
    make_lockspace,
    pending,
    read_config,
)
from lockd.errors import ConfigError
from lockd.lockspaces.open_files import OpenFiles


def test_everything_that_may_be_set_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        socket = "/run/x.sock"
        admin_socket = "/run/a.sock"
        state_dir = "/var/x"
        log_level = "debug"
        kill_grace = 1
        [limits]
        sessions = 7
        message_timeout = 0.5
        [lockspaces.disks]
        kind = "directory"
        path = "/srv/locks"
        on_disconnect = "kill"
        [lockspaces.disks.allow_users]
        acquire = ["root", 4711]
        break = ["*"]
        [lockspaces.jobs]
        kind = "memory"
        allow_groups.list = ["root"]
        [lockspaces.default]
        on_disconnect = "kill"
        """,
    )
    assert read_config(path) == Config(
        socket="/run/x.sock",
        admin_socket="/run/a.sock",
        state_dir="/var/x",
        log_level="debug",
        kill_grace=1.0,
        limits=Limits(sessions=7, message_timeout=0.5),
        lockspaces={
            "default": LockspaceConfig("memory", on_disconnect="kill"),
            "direct": LockspaceConfig("direct"),
            "disks": LockspaceConfig(
                "directory",
                "/srv/locks",
                "kill",
                allow_users=Allowed(acquire=["root", 4711], break_=["*"]),
            ),
            "jobs": LockspaceConfig("memory", allow_groups=Allowed(list_=["root"])),
        },
    )


def test_empty_file_leaves_everything_as_it_is(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "")) == Config()


# Files beside the main one.


def test_what_comes_later_counts_more(tmp_path: Path) -> None:
    path = written_parts(
        tmp_path,
        b="[limits]\nsessions = 3\n[lockspaces.x]\nkind = 'memory'\n",
        a="log_level = 'debug'\n[limits]\nsessions = 2\nqueue_length = 9\n",
    )
    (tmp_path / "conf.d" / ".hidden.toml").write_text("colour = 1")
    (tmp_path / "conf.d" / "a.toml.dpkg-old").write_text("colour = 1")
    found = read_config(path)
    assert found.log_level == "debug"
    assert found.limits == Limits(sessions=3, queue_length=9)
    assert found.lockspaces["x"] == LockspaceConfig("memory")
    assert config_files(path) == [
        path,
        f"{tmp_path}/conf.d/a.toml",
        f"{tmp_path}/conf.d/b.toml",
    ]


def test_lockspace_may_be_spread_over_files(tmp_path: Path) -> None:
    path = written_parts(
        tmp_path,
        a="[lockspaces.x]\nkind = 'memory'\nallow_users.list = ['*']\n",
        b="[lockspaces.x]\nallow_users.break = [5]\n",
    )
    allowed = Allowed(list_=["*"], break_=[5])
    assert read_config(path).lockspaces["x"] == LockspaceConfig(
        "memory", allow_users=allowed
    )


# What may change while the daemon runs.

RUNNING = Config(
    lockspaces=BUILT_IN | {"d": LockspaceConfig("directory", "/d", "kill")}
)


def test_limits_rights_and_new_lockspaces_count_at_once() -> None:
    rights = LockspaceConfig("directory", "/d", "kill", Allowed(list_=["*"]))
    spaces = RUNNING.lockspaces | {"d": rights, "m": LockspaceConfig("memory")}
    wanted = Config(
        limits=Limits(sessions=9), kill_grace=1.0, log_level="error", lockspaces=spaces
    )
    assert effective(RUNNING, wanted) == wanted
    assert pending(RUNNING, wanted) == {}


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (replace(RUNNING, socket="/x"), '"socket" changes'),
        (replace(RUNNING, admin_socket="/x"), '"admin_socket" changes'),
        (replace(RUNNING, state_dir="/x"), '"state_dir" changes'),
        (replace(RUNNING, lockspaces=BUILT_IN), "lockd serves [lockspaces.d] until"),
        (
            replace(
                RUNNING,
                lockspaces=BUILT_IN | {"d": LockspaceConfig("directory", "/e", "kill")},
            ),
            '[lockspaces.d] cannot change "path" while',
        ),
        (
            replace(
                RUNNING,
                lockspaces=BUILT_IN | {"d": LockspaceConfig("directory", "/d")},
            ),
            '[lockspaces.d] cannot change "on_disconnect" while',
        ),
    ],
)
def test_what_holders_rely_on_stays(wanted: Config, why: str) -> None:
    counts = effective(RUNNING, wanted)
    assert counts == RUNNING
    (sentence,) = pending(counts, wanted).values()
    assert sentence.startswith(why)


def test_lockspace_in_which_nothing_is_held_changes_at_once() -> None:
    for changed in (LockspaceConfig("memory"), LockspaceConfig("directory", "/e")):
        wanted = replace(RUNNING, lockspaces=BUILT_IN | {"d": changed})
        counts = effective(RUNNING, wanted, {"d"})
        assert counts == wanted
        assert pending(counts, wanted) == {}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lockd.toml").write_bytes(b"kill_grace = 1\nsocket = '\xff'")
    with pytest.raises(ConfigError, match=r"lockd\.toml: is not UTF-8 \(at line 2\)"):
        read_config(str(tmp_path / "lockd.toml"))


def test_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufefflog_level = 'error'\n")
    assert read_config(path).log_level == "error"


def test_file_that_would_make_us_wait_is_refused(tmp_path: Path) -> None:
    path = written_parts(tmp_path)
    os.mkfifo(tmp_path / "conf.d" / "a.toml")
    with pytest.raises(ConfigError, match=r"conf\.d/a\.toml: is not a regular file"):
        read_config(path)
    assert read_config(os.devnull) == Config()


@pytest.mark.parametrize("why", ["is a directory", "no such file", "permission denied"])
def test_part_that_cannot_be_read_is_named(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written_parts(tmp_path, b="")
    part = tmp_path / "conf.d" / "a.toml"
    if why == "is a directory":
        part.mkdir()
    elif why == "no such file":
        part.symlink_to("nowhere")
    else:
        part.write_text("")
        # Root may read everything.
        open_ = os.open

        def refuse(name: str, flags: int) -> int:
            if name == str(part):
                raise PermissionError(errno.EACCES, "no", name)
            return open_(name, flags)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=f"^{part}: {why}"):
        read_config(path)


def test_empty_part_changes_nothing(tmp_path: Path) -> None:
    assert read_config(written_parts(tmp_path, a="")).limits == Limits(sessions=1)


def test_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: no such file"):
        read_config(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is a directory"):
        read_config(str(tmp_path))


def test_users_own_file_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_config(None) == Config()
    (tmp_path / "lockd").mkdir()
    (tmp_path / "lockd" / "lockd.toml").write_text("colour = 1")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_config(None)


def test_places_of_root_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_paths().socket == "/run/lockd/lockd.sock"
    assert default_paths().admin_socket == "/run/lockd/admin.sock"
    assert default_paths().state_dir == "/var/lib/lockd"
    assert default_paths().config == "/etc/lockd/lockd.toml"


def test_places_of_a_user_follow_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("CONFIG_HOME", "RUNTIME_DIR", "STATE_HOME"):
        monkeypatch.setenv(f"XDG_{name}", f"/{name}")
    assert default_paths().config == "/CONFIG_HOME/lockd/lockd.toml"
    assert default_paths().socket == "/RUNTIME_DIR/lockd/lockd.sock"
    assert default_paths().state_dir == "/STATE_HOME/lockd"
    for name in ("CONFIG_HOME", "RUNTIME_DIR", "STATE_HOME"):
        monkeypatch.delenv(f"XDG_{name}")
    monkeypatch.setenv("HOME", "/home/x")
    assert default_paths().config == "/home/x/.config/lockd/lockd.toml"
    assert default_paths().socket == "/run/user/1000/lockd/lockd.sock"
    assert default_paths().state_dir == "/home/x/.local/state/lockd"


def test_lockspace_of_each_kind_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    files = OpenFiles()
    made = [
        make_lockspace("m", "memory", None, files, "kill"),
        make_lockspace("f", "direct", None, files),
        make_lockspace("d", "directory", f"{tmp_path}/../{tmp_path.name}/", files),
    ]
    files.mounts.close()
    assert [space.kind for space in made] == ["memory", "direct", "directory"]
    assert [space.on_disconnect for space in made] == ["kill", "release", "release"]
    assert made[2].path == str(tmp_path.resolve())


def test_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    files = OpenFiles()
    with pytest.raises(ConfigError, match="lockspace 'd': others may write"):
        make_lockspace("d", "directory", str(tmp_path), files)
    files.mounts.close()


def test_place_is_needed_exactly_by_a_directory() -> None:
    check_place("directory", "/x")
    check_place("memory", None)
    with pytest.raises(ConfigError):
        check_place("directory", None)
    with pytest.raises(ConfigError):
        check_place("direct", "/x")


# Metrics, and what is slow.


@pytest.mark.parametrize(
    "place",
    ["127.0.0.1:9090", "127.255.0.9:0", "[::1]:65535", ""],
)
def test_addresses_of_the_loopback_device_may_be_listened_at(
    place: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f'[metrics]\nlisten = "{place}"')
    assert read_config(path).metrics.listen == place


@pytest.mark.parametrize(
    "place",
    [
        "0.0.0.0:9090",
        "10.0.0.1:9090",
        "[::]:9090",
        "[::ffff:10.0.0.1]:9090",
        "localhost:9090",
        "127.0.0.1",
        "127.0.0.1:65536",
        "127.0.0.256:9090",
        "127.0.0.1:9090\\n",
        "x127.0.0.1:9090",
        "127.0.0.1:9090.example.org",
        ":9090",
    ],
)
def test_nothing_else_may_be_listened_at(place: str, tmp_path: Path) -> None:
    path = written(tmp_path, f'[metrics]\nlisten = "{place}"')
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    wanted = 'must be an address of this host for itself, as "127.0.0.1:9090", or ""'
    assert f"[metrics] listen: {wanted}, not " in str(caught.value)


def test_thresholds_may_be_never(tmp_path: Path) -> None:
    text = "[lockspaces.default]\nslow_wait = 0\nslow_hold = 3600"
    found = read_config(written(tmp_path, text)).lockspaces["default"]
    assert (found.slow_wait, found.slow_hold) == (0, 3600)
    assert LockspaceConfig("memory").slow_hold == 0
    text = "[lockspaces.default]\nmax_hold = 7200\non_overdue = 'break'"
    found = read_config(written(tmp_path, text)).lockspaces["default"]
    assert (found.max_hold, found.on_overdue) == (7200, "break")


@pytest.mark.parametrize("value", ["-1", "nan", "1e9", "'long'"])
def test_threshold_is_a_number_of_seconds(value: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"[lockspaces.default]\nslow_wait = {value}")
    with pytest.raises(ConfigError, match="a number of seconds from 0 to"):
        read_config(path)


def test_metrics_and_thresholds_count_at_once() -> None:
    running = Config()
    default = LockspaceConfig("memory", slow_wait=1.0, slow_hold=2.0)
    wanted = Config(
        metrics=MetricsConfig(listen="127.0.0.1:1"),
        lockspaces=BUILT_IN | {"default": default},
    )
    assert effective(running, wanted) == wanted
    assert pending(running, wanted) == {}


# Slots.


def test_patterns_of_slots_keep_the_order_of_the_files(tmp_path: Path) -> None:
    path = written_parts(
        tmp_path,
        a="[lockspaces.default.slots]\n'gpu-*' = 4\n'*' = 1\n",
        b="[lockspaces.default.slots]\ncpu = 9\n'gpu-*' = 3\n",
    )
    slots = read_config(path).lockspaces["default"].slots
    assert list(slots.items()) == [("gpu-*", 3), ("*", 1), ("cpu", 9)]


@pytest.mark.parametrize("value", ["0", "1025", "1.5", "true", "'4'", "[]"])
def test_number_of_slots_is_checked(value: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"[lockspaces.default.slots]\ngpu = {value}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    where = "[lockspaces.default.slots] gpu: must be a whole number from 1 to 1024, not"
    assert where in str(caught.value)


def test_slots_are_a_table(tmp_path: Path) -> None:
    path = written(tmp_path, "[lockspaces.default]\nslots = 4\n")
    with pytest.raises(ConfigError, match=r"slots\]: must be a table, not 4"):
        read_config(path)


@pytest.mark.parametrize("pattern", ["''", "'a\u200b'", f"'{256 * 'a'}'"])
def test_pattern_of_slots_can_match_a_name(pattern: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"[lockspaces.default.slots]\n{pattern} = 4\n")
    with pytest.raises(ConfigError, match="pattern of slots"):
        read_config(path)


@pytest.mark.parametrize(
    "space", ["direct]\nx", "files]\nkind = 'directory'\npath = '/srv'"]
)
def test_files_have_no_slots(space: str, tmp_path: Path) -> None:
    text = f"[lockspaces.{space}\nslots.a = 4\n".replace("]\nx", "]")
    with pytest.raises(ConfigError, match='has no "slots": only "memory" has them'):
        read_config(written(tmp_path, text))


def test_slots_count_at_once() -> None:
    running = Config(lockspaces={"x": LockspaceConfig("memory", slots={"a": 4})})
    wanted = Config(lockspaces={"x": LockspaceConfig("memory", slots={"a": 2})})
    counts = effective(running, wanted)
    assert counts.lockspaces["x"].slots == {"a": 2}
    assert pending(counts, wanted) == {}
