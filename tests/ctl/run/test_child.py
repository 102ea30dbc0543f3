"""How a command starts, or does not."""

import os
import subprocess
from pathlib import Path

import pytest

from ctl.processes import Lockctl


def test_missing_command_is_127_and_named(lockctl: Lockctl) -> None:
    done = lockctl("run", "job", "--", "no-such-command")
    assert done.returncode == 127
    assert (
        done.stderr
        == "lockctl: cannot run 'no-such-command': No such file or directory\n"
    )


def test_command_that_is_not_executable_is_126(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    done = lockctl("run", "job", "--", plain)
    assert done.returncode == 126
    assert "Permission denied" in done.stderr


def test_command_is_searched_in_path_as_a_shell_does(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    for place in ("first", "second", "third"):
        (tmp_path / place).mkdir()
    (tmp_path / "first" / "tool").touch()
    for place in ("second", "third"):
        tool = tmp_path / place / "tool"
        tool.write_text(f"#!/bin/sh\necho {place}\n")
        tool.chmod(0o755)
    places = [tmp_path / x for x in ("none", "first", "second", "third")]

    def found(*places: Path, cwd: Path = tmp_path) -> tuple[int, str]:
        env = {**lockctl.env, "PATH": os.pathsep.join(map(str, places))}
        done = lockctl("run", "job", "--", "tool", env=env, cwd=cwd)
        return done.returncode, done.stdout

    # What cannot be executed is passed over, and named if there is nothing else.
    assert found(*places) == (0, "second\n")
    assert found(*places[:2]) == (126, "")
    assert found(*places[:1]) == (127, "")
    assert found(Path(places[1] / "tool"), places[3]) == (0, "third\n")


def test_no_fork_of_a_missing_command_is_127(lockctl: Lockctl) -> None:
    assert lockctl("run", "-F", "job", "--", "no-such-command").returncode == 127


@pytest.mark.parametrize(
    "command",
    [
        # No shell between: it would put its own signals in order.
        ["grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"],
        ["ls", "/proc/self/fd"],
        ["cat"],
    ],
)
def test_command_starts_as_if_lockctl_were_not_there(
    lockctl: Lockctl, command: list[str]
) -> None:
    direct = subprocess.run(
        command, input="in", capture_output=True, text=True, check=True
    )
    under_lock = lockctl.start("run", "job", "--", *command)
    assert under_lock.communicate("in") == (direct.stdout, "")
