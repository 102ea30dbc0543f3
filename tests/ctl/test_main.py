"""The door of lockctl: commands, and what is wrong with them."""

import sys

import click
import pytest

from ctl.processes import Lockctl
from lockd import Client
from lockd.ctl.main import main


@pytest.mark.parametrize(
    "command",
    [
        *(
            "run",
            "acquire",
            "release",
            "list",
            "show",
            "who",
            "test",
            "wait",
            "waiters",
        ),
        *("graph", "watch", "sessions", "spaces", "break", "disconnect"),
        *("lock-name", "status", "stop", "top", "completion"),
    ],
)
def test_every_command_explains_itself(lockctl: Lockctl, command: str) -> None:
    done = lockctl(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: lockctl {command} ")
    assert f"  {command} " in lockctl("--help").stdout


def test_unknown_command_is_64(lockctl: Lockctl) -> None:
    done = lockctl("lock")
    assert done.returncode == 64
    assert done.stderr.startswith("lockctl: there is no command 'lock': `run`, ")


def test_reader_that_goes_away_is_no_error(lockctl: Lockctl, client: Client) -> None:
    for number in range(300):
        client.acquire(f"{number:0250}")
    process = lockctl.start("list")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.wait(30) == -13
    assert process.stderr.read() == ""
    process.stdout = None


@pytest.mark.parametrize("error", [RecursionError(), FileNotFoundError(2, "", "a")])
def test_defect_is_told_with_its_place_and_70(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """Not 1: that would be "held" for test, and "free" for who."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(click.Group, "invoke", lambda *_: fail())
    monkeypatch.setattr(sys, "argv", ["lockctl", "spaces"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70
    assert "in fail" in capsys.readouterr().err
