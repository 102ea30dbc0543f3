"""`lockctl flock` among the commands of lockctl."""

from ctl.processes import Lockctl


def test_command_is_in_the_list_of_lockctl(lockctl: Lockctl) -> None:
    assert "flock" in lockctl("--help").stdout
    assert lockctl("flock", "--help").stdout.startswith("Usage: lockctl flock")
    assert lockctl("flock", "--version").stdout.startswith("lockctl flock, of lockd")
