"""The commands of lockctl, and what is said of one that is not there."""

import re
import subprocess
import sys

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


# What is set for the whole process must not become that of the tests.
_MAIN = """
import atexit, gc, sys
from lockd.ctl.main import main
sys.argv = ["lockctl", "lock-name", "/a"]
atexit.register(lambda: print(gc.isenabled()))
main()
"""


def test_garbage_is_collected_once_a_command_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", _MAIN], stdout=subprocess.PIPE)
    assert done.returncode == 0
    name, enabled = done.stdout.split()
    assert len(name) == 64
    assert enabled == b"True"


def test_lockctl_alone_greets_with_three_commands(lockctl: Lockctl) -> None:
    done = lockctl()
    assert (done.returncode, done.stdout) == (64, "")
    shown = re.findall(r"^  lockctl (\w+)", done.stderr, re.MULTILINE)
    assert shown == ["run", "who", "list"]
    assert len(done.stderr.splitlines()) <= 8
    assert "`lockctl --help`" in done.stderr
