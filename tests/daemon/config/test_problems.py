"""What is wrong with a configuration, and what would be right."""

from pathlib import Path

import pytest

from daemon.config.conftest import written, written_parts
from lockd.daemon.config.config import read_config
from lockd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("socket = ", ": Invalid value (at end of document)"),
        ("socket = 5", "socket: must be an absolute path of at most 107 bytes, not 5"),
        ("socket = ''", 'at most 107 bytes, not ""'),
        ("socket = 'lockd.sock'", 'at most 107 bytes, not "lockd.sock"'),
        (f"admin_socket = '/{'x' * 107}'", "admin_socket: must be an absolute path of"),
        ("state_dir = ''", 'state_dir: must be an absolute path, not ""'),
        ("colour = 'red'", 'lockd.toml: there is no key "colour"'),
        ("sokket = 'x'", 'there is no key "sokket"; did you mean "socket"?'),
        ('socket = "/a\\u0000b"', "socket: has a NUL"),
        ('state_dir = "/a\\u0000b"', "state_dir: has a NUL"),
        (f"x = {'[' * 9999}", ": is nested too deeply"),
        (f"x = {'9' * 9999}", ": has a number with too many digits"),
        (
            "[lockspaces.x]\n[limits]\n[lockspaces.x]\n",
            ": Cannot declare [lockspaces.x] twice (at line 3,",
        ),
        ("['a.b'.\"c'd\"]\n['a.b'.\"c'd\"]\n", "Cannot declare [a.b.c'd] twice"),
        ("[limits]\nsessions = 1\nsessions = 2\n", "at line 3"),
        ("[limits]\n[limits]\n", "Cannot declare [limits] twice"),
        (
            "log_level = 'loud'",
            'must be "debug", "error", "info" or "warning", not "loud"',
        ),
        ("kill_grace = 0", "kill_grace: must be a number of seconds above 0, at most"),
        ("kill_grace = nan", "kill_grace: must be a number of seconds above 0"),
        ("limits = 5", "[limits]: must be a table, not 5"),
        (
            "[limits]\nsessions = 'many'",
            "[limits] sessions: must be a whole number from 1 to 2147483648, "
            'not "many"',
        ),
        ("[limits]\nsessions = true", "2147483648, not true"),
        ("[limits]\nsessions = 0", "from 1 to"),
        ("[limits]\nsesions = 3", '[limits]: there is no key "sesions"; did you mean'),
        ("lockspaces = 5", "[lockspaces]: must be a table, not 5"),
        ("[lockspaces]\nx = 5", "[lockspaces.x]: must be a table, not 5"),
        ("[lockspaces.x]", '[lockspaces.x]: "kind" is missing: "memory", "directory"'),
        (
            "[lockspaces.a]\nkind='memory'\n[lockspaces.x]\nkind='etcd'",
            '[lockspaces.x] kind: must be "direct", "directory" or "memory", '
            'not "etcd"',
        ),
        ("[lockspaces.x]\nkind='memory'\ncolour=1", 'no key "colour"'),
        (
            "[lockspaces.x]\nkind='memory'\non_disconnect='ignore'",
            '[lockspaces.x] on_disconnect: must be "kill" or "release", not "ignore"',
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users.acquire = 'bob'",
            "[lockspaces.x.allow_users] acquire: must be a list of names",
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users.steal = ['bob']",
            '[lockspaces.x.allow_users]: there is no key "steal"',
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users.take = ['bob']",
            'no key "take"; the keys are acquire, share, list, details, break',
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users = ['root']",
            "must be a table, not ['root']; write allow_users.acquire = ['root'], for",
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users.list = ['no such user']",
            "allow_users.list: there is no user 'no such user' here",
        ),
        (
            "[lockspaces.x]\nkind='memory'\nallow_users.list = ['1000']",
            "no user '1000' here; write a number without quotes",
        ),
        ("[lockspaces.x]\nkind='memory'\nallow_users.list = [-1]", "not [-1]"),
        ("[lockspaces.x]\nkind='memory'\nallow_groups.list = [4294967295]", "a list"),
        (
            "[lockspaces.x]\nkind='memory'\nallow_groups.break = ['no such group']",
            "allow_groups.break: there is no group 'no such group' here",
        ),
        ("[lockspaces.x]\nkind='memory'\npath='/x'", 'kind "memory" has no "path"'),
        ("[lockspaces.x]\nkind='directory'", '"path" must be an absolute path'),
        ("[lockspaces.x]\nkind='directory'\npath='y'", "absolute path"),
        ('[lockspaces.x]\nkind="directory"\npath="/a\\u0000b"', "NUL"),
        ("[lockspaces.default]\nkind='direct'", 'its kind is "memory"'),
        ("[lockspaces.direct]\npath='/x'", 'kind "direct" has no "path"'),
        ("[lockspaces.default]\noutside='file'", 'kind "memory" has no "outside"'),
        (
            "[lockspaces.x]\nkind='directory'\npath='/x'\noutside='byte'",
            'kind "directory" has no "outside": only "direct" has it',
        ),
        ("[lockspaces.direct]\noutside='all'", 'must be "byte" or "file"'),
        (
            "[lockspaces.default]\nmax_hold=-1",
            "max_hold: must be a number of seconds from 0",
        ),
        (
            "[lockspaces.default]\nmax_hold=nan",
            "max_hold: must be a number of seconds from 0",
        ),
        (
            "[lockspaces.default]\nmax_hold=true",
            "max_hold: must be a number of seconds from 0",
        ),
        ("[lockspaces.default]\non_overdue='kill'", 'must be "break" or "notice"'),
        ("[lockspaces.'a:b']\nkind='memory'", "colon"),
        ("[lockspaces.'']\nkind='memory'", "empty"),
    ],
)
def test_wrong_configuration_names_file_and_key_and_what_is_right(
    text: str, why: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)
    assert "`" not in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "colour = 1\nsocket = 2\n[limits]\nsessions = 0\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    lines = str(caught.value).splitlines()
    assert [line.startswith(f"{path}: ") for line in lines] == [True] * 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("colour = 1", "there is no key"),
        ("[lockspaces.x]\npath = '/x'", 'kind "memory" has no "path"'),
        ("socket = ", "Invalid value"),
    ],
)
def test_error_names_the_file_in_which_it_stands(
    wrong: str, why: str, tmp_path: Path
) -> None:
    a = "[lockspaces.x]\nkind = 'memory'\n"
    path = written_parts(tmp_path, a=a, b=wrong)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{tmp_path}/conf.d/b.toml: ")
    assert why in str(caught.value)
