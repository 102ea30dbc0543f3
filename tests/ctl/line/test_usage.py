"""Whatever is typed, lockctl answers in one sentence, of what was typed.

All commands and options are found by walking lockctl's own, so new ones are tried, too.
"""

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from ctl.processes import Lockctl, open_to_all
from lockd import Client
from lockd.ctl.commands import lockctl as root
from lockd.ctl.exits import EXITS
from lockd.ctl.line.usage import INSTEAD
from support.daemon_process import DaemonProcess
from support.rights import needs_root

#: They go on until they are ended: their first words end the case.
ENDLESS = ("watch", "hold")

BYTE = os.fsdecode(b"a\x80b")
"""What no text is in UTF-8."""

VALUES = ["", "-1", "nan", "1e300", "9" * 5_000, "a\nb\x9b31m", BYTE]
NAMES = [
    *(*VALUES, " ", "-", "a" * 300, "²", "/", "//", "/nowhere/at/all", "/dev/null"),
    *("/" + "a" * 300, "/a" * 2_100, "./a\nb", "../" * 50, "./" + BYTE),
]

GOOD = {
    "run": ["job", "--", "true"],
    "hold": ["job"],
    "acquire": ["job", "--owner-pid", str(os.getpid())],
    "release": ["job"],
    "break": ["1", "--reason", "why", "--yes"],
    "disconnect": ["1000", "--reason", "why", "--yes"],
    "wait": ["job"],
    "completion": ["bash"],
    "lock-name": ["/a"],
    **{name: ["job"] for name in ("show", "who", "test")},
}
"""What a command wants to hear at least."""

STATUSES = {0, 1, *(exit_.status for exit_ in EXITS)} - {70}

#: What the inside of a program says of itself, and nobody has typed.
INSIDE = re.compile(
    r"Traceback|Error\b|Usage:|Expected |\$\.|object has no|attribute|codec|embedded"
    r"|surrogate|MessagePack|\bNone\b|range|_\w+_|click|string|lockspace 'direct'"
    r"|1<=|integer|\\\\"
)


@pytest.fixture(scope="module")
def commands() -> dict[str, click.Command]:
    ctx = click.Context(root)
    return {name: command_of(ctx, name) for name in root.list_commands(ctx)}


def command_of(ctx: click.Context, name: str) -> click.Command:
    command = root.get_command(ctx, name)
    assert command is not None
    return command


class Done(NamedTuple):
    """What came of a case; a status below 0 is a signal, as Popen has it."""

    status: int
    out: str
    err: str


Driver = Callable[..., Done]


@pytest.fixture
def driver(lockctl: Lockctl, client: Client) -> Driver:
    """Runs lockctl to its end, while somebody holds a lock."""
    client.acquire("held")

    def run(*argv: str) -> Done:
        process = lockctl.start(*argv, stdin=subprocess.DEVNULL, text=False)
        assert isinstance(process.stdout, io.BufferedReader)
        with process:
            said = process.stdout.read1() if argv[0] in ENDLESS else b""
            if said:
                process.terminate()
            out, err = process.communicate()
        words = [x.decode("utf-8", "backslashreplace") for x in (said + out, err)]
        return Done(process.returncode, *words)

    return run


def faults_of(done: Done, typed: list[str]) -> list[str]:
    """Returns which rules of an answer are broken."""
    faults = []
    if done.status not in STATUSES and done.status != -15:
        faults.append(f"status {done.status}")
    lines = done.err.splitlines()
    if done.status > 1 and len(lines) != 1:
        faults.append(f"{len(lines)} lines")
    for line in lines:
        if not line.startswith("lockctl: "):
            faults.append("no beginning")
        if line.endswith("."):
            faults.append("a full stop")
        if not line.isprintable():
            faults.append("not printable")
        if len(line) > 600:
            faults.append(f"{len(line)} characters")
        said = line
        words = [x.rpartition("=")[2] for x in typed] + [
            x for x in typed if "=" not in x
        ]
        for word in sorted(filter(None, words), key=len, reverse=True):
            said = said.replace(repr(word)[1:-1], "").replace(word[:39], "")
        faults += [f"says {found}" for found in INSIDE.findall(said)]
    return faults


def cases_of(name: str, command: click.Command) -> Iterator[list[str]]:
    """Yields command lines: one thing in each is odd."""
    good = GOOD.get(name, [])
    for param in command.params:
        if isinstance(param, click.Option):
            flag = max(param.opts, key=len)
            if param.is_flag:
                yield [name, f"{flag}=x", *good]
                continue
            yield [name, *(["job"] if name == "run" else good), flag]
            for word in VALUES:
                yield [name, f"{flag}={word}", *good]
        else:
            for word in NAMES:
                yield [name, *_with_argument(name, good, word)]
    yield [name, "--no-such-option", *good]
    yield [name]
    yield [name, *good, *["one"] * 70]


def _with_argument(name: str, good: list[str], word: str) -> list[str]:
    end = ["-w", "0"] if name in ("hold", "acquire", "run", "wait") else []
    return [*end, "--" if name != "run" and word.startswith("-") else word, *good[1:]]


COMMANDS = root.list_commands(click.Context(root))

NOT_TRIED = ("top", "stop", "flock")
"""Commands that take a terminal, the daemon, or any file (`test_as_flock`)."""


@pytest.mark.parametrize("name", [x for x in COMMANDS if x not in NOT_TRIED])
def test_every_odd_word_is_answered_in_one_sentence(
    driver: Driver, commands: dict[str, click.Command], name: str
) -> None:
    found = []
    for argv in cases_of(name, commands[name]):
        done = driver(*argv)
        if faults := faults_of(done, argv):
            found.append((faults, [x[:60] for x in argv], done.status, done.err[-300:]))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    "words",
    [
        "test ./x", "show ./x", "who ./x", "wait ./x", "run -n ./x -- true",
        "hold ./x", "acquire ./x --owner-pid 1", "release ./x",
        "break ./x --reason x --yes",
        "lock-name ./x", "list --path x", "watch --name ./x",
    ],
)  # fmt: skip
def test_path_in_a_directory_that_was_removed_is_told_as_that(
    driver: Driver, words: str, tmp_path: Path
) -> None:
    (directory := tmp_path / "gone").mkdir()
    with chdir(directory):
        directory.rmdir()
        done = driver(*words.split())
    path = "x" if "--path" in words else "./x"
    assert (done.status, done.err) == (
        64,
        f"lockctl: the path '{path}' leads nowhere, because the current directory "
        "was removed: change to another one, or write a path that begins with a "
        "slash\n",
    )


@pytest.mark.parametrize("path", ["", "x" * 300, "/", "/dev/null", "a\nb", BYTE])
def test_odd_socket_is_answered_in_one_sentence(driver: Driver, path: str) -> None:
    for words in (["list"], ["run", "job", "--", "true"], ["test", "job"]):
        done = driver("--socket", path, *words)
        assert done.status in (64, 69, 77), done
        assert not faults_of(done, [path]), done


def test_other_programs_commands_lead_to_ours(driver: Driver) -> None:
    assert [typed for typed in INSTEAD if typed in COMMANDS] == []
    assert "`lockctl --version`" in INSTEAD["version"]
    for typed in INSTEAD:
        done = driver(typed)
        assert done.status == 64
        assert not faults_of(done, [typed]), done
        (told,) = re.findall(r"there is no command '.*?': (.*)", done.err)
        for command in re.findall(r"`(?:lockctl )?([a-z][a-z-]*)[^`]*`", told):
            assert command in (*COMMANDS, "systemctl", "lockctl"), done


def test_command_that_is_nearly_one_is_suggested(driver: Driver) -> None:
    for typed, meant in (("lst", "list"), ("lockname", "lock-name"), ("RUN", "run")):
        assert driver(typed).err == (
            f"lockctl: there is no command '{typed}': did you mean `{meant}`?\n"
        )
    assert driver("list", "--ownr", "x").err == (
        "lockctl: there is no option '--ownr': did you mean `--owner`?\n"
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("list --socket X", "'--socket' goes before `list`: "
         "`lockctl --socket PATH list`"),
        ("run --socket=X job -- true", "'--socket' goes before `run`: "
         "`lockctl --socket PATH run`"),
        ("list --version", "'--version' goes before `list`: "
         "`lockctl --version list`"),
        ("--json list", "'--json' goes after `list`: `lockctl list --json`"),
        ("-n run job -- true", "'-n' goes after `run`: `lockctl run -n`"),
        ("run -foo -- true", "there is no option '-foo': put `--` before a name that "
         "begins with a dash, as in `lockctl run -- NAME... -- COMMAND...`"),
        ("run -x-y -- true", "there is no option '-x-y': put `--` before a name that "
         "begins with a dash, as in `lockctl run -- NAME... -- COMMAND...`"),
        ("who -dash", "there is no option '-dash': put `--` before a name that begins "
         "with a dash, as in `lockctl who -- PATH-or-NAME`"),
        ("-q list", "there is no option '-q': see `lockctl --help`"),
        ("list -q", "there is no option '-q': see `lockctl list --help`"),
    ],
)  # fmt: skip
def test_option_in_the_wrong_place_is_led_to_the_right_one(
    driver: Driver, typed: str, said: str
) -> None:
    done = driver(*typed.split())
    assert (done.status, done.err) == (64, f"lockctl: {said}\n")


def test_help_groups_all_commands_and_fits_a_terminal(driver: Driver) -> None:
    lines = driver("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [x.split()[0] for x in lines if re.match(r"  [a-z][a-z-]*  +[A-Z]", x)]
    assert sorted(listed) == sorted(COMMANDS)
    for title in ("Take a lock:", "Intervene:", "Manage the daemon:"):
        assert title in lines


@pytest.mark.parametrize("typed", ["-w nan", "-wnan", "--wait nan", "--timeout=nan"])
def test_option_is_called_as_it_was_typed(driver: Driver, typed: str) -> None:
    name = re.split("[= ]|nan", typed)[0]
    done = driver("run", *typed.split(" "), "job", "--", "true")
    assert (done.status, done.err) == (
        64,
        f"lockctl: {name}: 'nan' is not a number of seconds from 0 to 1000000000\n",
    )


@needs_root
def test_file_that_may_not_be_locked_is_told_without_a_lockspace(
    lockctl: Lockctl, lockd: DaemonProcess, tmp_path: Path
) -> None:
    """Who names a file has not said `direct`."""
    open_to_all(lockd.socket)
    (tmp_path / "a").touch()
    for words in ("test", "show", "wait", "acquire --owner-pid 1"):
        what = "lock" if words.startswith("acquire") else "see locks on"
        done = lockctl.as_nobody(*words.split(), tmp_path / "a")
        assert done.returncode == 77
        assert f"may not {what} files by their path here" in done.stderr
        assert not faults_of(Done(done.returncode, "", done.stderr), []), done.stderr
        assert "direct" not in done.stderr.replace("[lockspaces.direct]", "")
