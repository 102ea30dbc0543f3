"""The commands of lockctl, and what is said of one that is not there."""

import gc
import sys

import pytest

from ctl.processes import Lockctl
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


def test_garbage_is_collected_once_a_command_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lockctl", "lock-name", "/a"])
    was_enabled = gc.isenabled()
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert gc.isenabled()
    finally:
        if was_enabled:
            gc.enable()
    assert len(capsys.readouterr().out.strip()) == 64
