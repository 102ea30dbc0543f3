import os
from pathlib import Path

import pytest

from lockd.daemon.config import (
    Config,
    LockspaceConfig,
    check_place,
    make_lockspace,
    places,
    read_config,
)
from lockd.errors import ConfigError
from lockd.lockspaces.files import OpenFiles


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "lockd.toml"
    path.write_text(text)
    return str(path)


def test_everything_that_may_be_set_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        socket = "/run/x.sock"
        state_dir = "/var/x"
        [lockspaces.disks]
        kind = "directory"
        path = "/srv/locks"
        on_disconnect = "kill"
        [lockspaces.jobs]
        kind = "memory"
        """,
    )
    assert read_config(path) == Config(
        "/run/x.sock",
        "/var/x",
        {
            "disks": LockspaceConfig("directory", "/srv/locks", "kill"),
            "jobs": LockspaceConfig("memory"),
        },
    )


def test_empty_file_leaves_everything_as_it_is(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("socket = ", "Invalid value"),
        ("socket = 5", "$.socket"),
        ("colour = 'red'", "`colour`"),
        ("socket = 'a\\u0000b'".replace("'", '"'), "`socket` has a NUL"),
        ("state_dir = 'a\\u0000b'".replace("'", '"'), "`state_dir` has a NUL"),
        ("lockspaces = 5", "lockspaces"),
        ("[lockspaces]\nx = 5", "[lockspaces.x]"),
        ("[lockspaces.x]", "`kind`"),
        (
            "[lockspaces.a]\nkind='memory'\n[lockspaces.x]\nkind='etcd'",
            "[lockspaces.x]",
        ),
        ("[lockspaces.x]\nkind='etcd'", "$.kind"),
        ("[lockspaces.x]\nkind='memory'\ncolour=1", "`colour`"),
        ("[lockspaces.x]\nkind='memory'\non_disconnect='ignore'", "$.on_disconnect"),
        ("[lockspaces.x]\nkind='memory'\npath='/x'", "'x': kind memory has no `path`"),
        ("[lockspaces.x]\nkind='directory'", "'x': `path` must be an absolute path"),
        ("[lockspaces.x]\nkind='directory'\npath='y'", "absolute path"),
        ('[lockspaces.x]\nkind="directory"\npath="/a\\u0000b"', "NUL"),
        ("[lockspaces.default]\nkind='memory'", "[lockspaces.default]"),
        ("[lockspaces.direct]\nkind='direct'", "built in"),
        ("[lockspaces.'a:b']\nkind='memory'", "colon"),
        ("[lockspaces.'']\nkind='memory'", "empty"),
    ],
)
def test_wrong_configuration_names_file_and_key(
    text: str, why: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lockd.toml").write_bytes(b"socket = '\xff'")
    with pytest.raises(ConfigError, match=r"lockd\.toml"):
        read_config(str(tmp_path / "lockd.toml"))


def test_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: no such file"):
        read_config(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Is a directory"):
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
    assert places().socket == "/run/lockd/lockd.sock"
    assert places().state_dir == "/var/lib/lockd"
    assert places().config == "/etc/lockd/lockd.toml"


def test_places_of_a_user_follow_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("CONFIG_HOME", "RUNTIME_DIR", "STATE_HOME"):
        monkeypatch.setenv(f"XDG_{name}", f"/{name}")
    assert places().config == "/CONFIG_HOME/lockd/lockd.toml"
    assert places().socket == "/RUNTIME_DIR/lockd/lockd.sock"
    assert places().state_dir == "/STATE_HOME/lockd"
    for name in ("CONFIG_HOME", "RUNTIME_DIR", "STATE_HOME"):
        monkeypatch.delenv(f"XDG_{name}")
    monkeypatch.setenv("HOME", "/home/x")
    assert places().config == "/home/x/.config/lockd/lockd.toml"
    assert places().socket == "/run/user/1000/lockd/lockd.sock"
    assert places().state_dir == "/home/x/.local/state/lockd"


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
    check_place("d", "directory", "/x")
    check_place("m", "memory", None)
    with pytest.raises(ConfigError):
        check_place("d", "directory", None)
    with pytest.raises(ConfigError):
        check_place("f", "direct", "/x")
