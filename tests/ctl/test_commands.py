"""The commands of lockctl, and what is said of one that is not there."""

import pytest

from ctl.processes import Lockctl


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
