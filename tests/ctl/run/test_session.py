"""`lockctl run` in a container: its pids mean nothing to the daemon outside."""

import os
import subprocess

import pytest

from ctl.processes import LIMIT, LOCKCTL, Lockctl, end_input, line_of
from lockd import Client
from support.asking import ask_until

_OWN_USERS = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
_OWN_PIDS = ("unshare", "--pid", "--fork", "--mount-proc")
WAYS = [_OWN_USERS, _OWN_PIDS, ("unshare", "--user", "--map-root-user")]


@pytest.fixture(params=WAYS, ids=["users and pids", "pids", "users"])
def container(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words: tuple[str, ...] = request.param
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("takes unshare(1)")
    if done.returncode:
        pytest.skip(f"takes the right to `{' '.join(words)}`")
    return words


def start(
    lockctl: Lockctl, container: tuple[str, ...], *words: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*container, *LOCKCTL, "run", *words],
        env=lockctl.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("option", [[], ["-F"], ["-o"]])
def test_command_runs_under_the_lock(
    lockctl: Lockctl, client: Client, container: tuple[str, ...], option: list[str]
) -> None:
    words = [*option, "-c", "echo ready; cat; exit 3", "job"]
    with start(lockctl, container, *words) as process:
        assert line_of(process) == "ready"
        assert client.try_acquire("job") is None
        end_input(process)
        assert process.wait(LIMIT) == 3
    ask_until(client, "job", lambda state: not state["holders"])


def test_lock_outlives_a_killed_lockctl_as_long_as_the_command(
    lockctl: Lockctl, client: Client, container: tuple[str, ...]
) -> None:
    if "--pid" not in container:
        container = (*container, "sh", "-c", '"$@"; wait; cat', "sh")
    else:
        # Whatever is the first process there takes all others with it when it ends.
        container = (*container, "sh", "-c", '"$@"; cat', "sh")
    script = "kill -9 $PPID; echo $LOCKD_NAME; cat"
    with start(lockctl, container, "-c", script, "job") as process:
        assert line_of(process) == "job"
        assert client.try_acquire("job") is None
        end_input(process)
        process.wait(LIMIT)
    ask_until(client, "job", lambda state: not state["holders"])
    assert os.path.exists(lockctl.env["LOCKD_SOCKET"])
