"""What shells are offered: by the real shells, against a real daemon."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from ctl.processes import Lockctl, Terminal
from lockd import Client, connect
from lockd.ctl.commands import lockctl as group
from lockd.ctl.line.completion import FILES, PATIENCE, SOURCES, UNKNOWABLE
from support.daemon_process import DaemonProcess
from support.places import SRC

BREAKS = " \t\n\"'@><=;|&(:"


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(shell), reason=f"there is no {shell}")


def offered(env: dict[str, str], line: str) -> list[str]:
    """Returns what bash would be offered for a line."""
    done = subprocess.run(
        [sys.executable, "-m", "lockd.ctl.main"],
        env={
            **env,
            "COMP_LINE": line,
            "COMP_WORDBREAKS": BREAKS,
            "_LOCKCTL_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_locks_of_the_lockspace_that_is_meant_are_offered(
    lockctl: Lockctl, client: Client
) -> None:
    client.create_lockspace("other", "memory")
    for name in ("backup", "backup-2", "site"):
        client.acquire(name)
    client.acquire("bad-apple", lockspace="other")
    found = offered(lockctl.env, "lockctl show backup")
    assert found == ["plain,backup", "plain,backup-2"]
    found = offered(lockctl.env, "lockctl show --lockspace other ba")
    assert found == ["plain,bad-apple"]
    assert offered(lockctl.env, "lockctl run site ") == [
        f"plain,{name}" for name in ("backup", "backup-2", "site")
    ]


def test_of_many_locks_those_that_begin_so_are_found(
    lockctl: Lockctl, client: Client
) -> None:
    for number in range(400):
        client.acquire(f"a-{number:03}")
    client.acquire("z-1")
    assert offered(lockctl.env, "lockctl show z") == ["plain,z-1"]
    assert len(offered(lockctl.env, "lockctl show a")) == 256


def test_what_is_waited_for_is_offered(lockctl: Lockctl, client: Client) -> None:
    client.acquire("job")
    assert offered(lockctl.env, "lockctl test jo") == ["plain,job"]


def test_lockspaces_signals_and_choices_are_offered(
    lockctl: Lockctl, sock: str
) -> None:
    assert offered(lockctl.env, "lockctl show --lockspace d") == [
        "plain,default",
        "plain,direct",
    ]
    assert offered(lockctl.env, "lockctl run --signal US") == [
        "plain,USR1",
        "plain,USR2",
    ]
    assert offered(lockctl.env, "lockctl completion z") == ["plain,zsh"]


def test_commands_and_options_are_offered_without_a_daemon(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": SRC, "LOCKD_SOCKET": str(tmp_path / "none")}
    assert offered(env, "lockctl sess") == ["plain,sessions"]
    assert "plain,--lockspace" in offered(env, "lockctl run --lock")
    assert offered(env, "lockctl show ") == []


def test_daemon_that_does_not_answer_does_not_hang_the_shell(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    client.acquire("backup")
    os.kill(lockd.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert offered(lockctl.env, "lockctl show ba") == []
        # Twenty times as long as allowed is still no hang, on a busy machine.
        assert time.monotonic() - began < 20 * PATIENCE
    finally:
        os.kill(lockd.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "name", ["-rf", "--yes", "a b", "x;rm", "$(id)", "`id`", "a'b", "ü", "*", "a\\b"]
)
def test_name_that_a_shell_would_act_upon_is_not_offered(
    lockctl: Lockctl, client: Client, name: str
) -> None:
    client.acquire(name)
    client.acquire("good")
    assert offered(lockctl.env, "lockctl show ") == ["plain,good"]


def test_after_a_colon_bash_is_offered_the_rest(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("db:migrate")
    assert offered(lockctl.env, "lockctl show db:m") == ["plain,migrate"]


def test_paths_are_left_to_the_shell_where_they_need_not_be_locked(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    client.acquire(str(disk))
    assert offered(lockctl.env, f"lockctl run {tmp_path}/") == [f"file,{tmp_path}/"]
    assert offered(lockctl.env, f"lockctl show {tmp_path}/") == [f"plain,{disk}"]
    # No listing has a path that is not canonical.
    assert offered(lockctl.env, "lockctl show ./d") == ["file,./d"]


@pytest.mark.parametrize("words", ["lock-name", "list --path", "--socket"])
def test_files_are_left_to_the_shell(words: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": SRC, "LOCKD_SOCKET": str(tmp_path / "none")}
    assert offered(env, f"lockctl {words} /e") == ["file,/e"]


def test_after_two_dashes_a_command_and_files_are_offered(lockctl: Lockctl) -> None:
    assert offered(lockctl.env, "lockctl run job -- rs") == ["command,rs"]
    assert offered(lockctl.env, "lockctl run job -- cat /e") == ["file,/e"]


def test_every_parameter_is_offered_or_known_not_to_be() -> None:
    """Whoever adds one says in `ctl.completion` what is offered for it."""
    names = group.list_commands(click.Context(group))
    for name in names:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option) and param.is_flag:
                continue
            if not isinstance(param.type, click.Choice):
                known = SOURCES.keys() | FILES | UNKNOWABLE
                assert param.name in known, (name, param.name)


# The shells themselves.


@pytest.fixture
def home(tmp_path: Path, lockctl: Lockctl) -> dict[str, str]:
    """An environment in which `lockctl` is a command."""
    program = tmp_path / "bin" / "lockctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lockd.ctl.main "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**lockctl.env, "PATH": path, "HOME": str(tmp_path), "PS1": "> "}


def completed(terminal: Terminal, typed: str, expected: str) -> None:
    """Types the beginning of a line and a tab; waits for the whole line."""
    terminal.type(f"{typed}\t")
    terminal.wait_for(expected)
    terminal.type("\x15exit\n")
    terminal.wait()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lockctl show bac", "lockctl show backup "),
        ("lockctl show db:m", "lockctl show db:migrate "),
        ("lockctl sess", "lockctl sessions "),
        ("lockctl run backup -- compge", "-- compgen "),
    ],
)
def test_bash_completes(
    client: Client, home: dict[str, str], typed: str, expected: str
) -> None:
    client.acquire("backup")
    client.acquire("db:migrate")
    bash = shutil.which("bash")
    assert bash
    terminal = Terminal((bash, "--norc", "--noprofile", "-i"), home)
    terminal.type("source <(lockctl completion bash) && echo rea''dy\n")
    terminal.wait_for("ready")
    completed(terminal, typed, expected)


@needs("zsh")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lockctl show bac", "kup"),
        ("lockctl show db:m", "igrate"),
        ("lockctl sess", "ions"),
    ],
)
def test_zsh_completes(
    client: Client, home: dict[str, str], tmp_path: Path, typed: str, expected: str
) -> None:
    client.acquire("backup")
    client.acquire("db:migrate")
    functions = tmp_path / "functions"
    functions.mkdir()
    with (functions / "_lockctl").open("w") as script:
        command = ["lockctl", "completion", "zsh"]
        subprocess.run(command, stdout=script, env=home, check=True)
    zsh = shutil.which("zsh")
    assert zsh
    terminal = Terminal((zsh, "-f", "-i"), home)
    terminal.type(f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -D\n")
    terminal.type("echo rea''dy\n")
    terminal.wait_for("ready\r\n")
    terminal.shown = ""
    completed(terminal, typed, expected)


@needs("fish")
def test_fish_completes(client: Client, home: dict[str, str]) -> None:
    client.acquire("backup", reason="nightly")
    script = (
        "lockctl completion fish | source; "
        'complete -C "lockctl show bac"; complete -C "lockctl sess"'
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [x.split("\t")[0] for x in done.stdout.splitlines()] == [
        "backup",
        "sessions",
    ], done.stderr


def test_sessions_and_tokens_say_whose_they_are(sock: str) -> None:
    with connect(sock, name="nightly; job") as client:
        grant = client.acquire("backup")
        context = click.Context(group)
        (token,) = SOURCES["victim"](client, context, str(grant.fencing_token)[:1])
        assert token.value == str(grant.fencing_token)
        assert token.help == "nightly_ job holds backup"
        sessions = {x.value: x.help for x in SOURCES["session"](client, context, "")}
        assert sessions[str(client.session)] == f"nightly_ job, pid {os.getpid()}"
