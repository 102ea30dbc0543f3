"""`lockctl run` within `lockctl run`: no tree of processes hangs."""

import os
import subprocess
import sys

import pytest

from ctl.processes import LOCKCTL, Lockctl, end_input
from lockd import Client, connect
from support.asking import ask_until


def run(name: str, *command: str) -> list[str]:
    return [*LOCKCTL, "run", name, "--", *command]


def test_command_two_levels_below_is_73_at_once(lockctl: Lockctl) -> None:
    done = lockctl("run", "a", "--", *run("b", *run("a", "echo", "ran")))
    assert done.returncode == 73
    assert "already holds 'a'" in done.stderr
    assert not done.stdout


def test_of_two_trees_that_want_what_the_other_has_one_runs(
    lockctl: Lockctl, client: Client
) -> None:
    # Each reads a line before it goes on, so that both have their first lock.
    trees = [
        lockctl.start("run", mine, "--", "sh", "-c", f"read x; {words(other)}")
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    for name in ("a", "b"):
        ask_until(client, name, lambda state: state["holder_count"] == 1)
    ended = []
    for tree in trees:
        assert tree.stdin is not None
        tree.stdin.write("go\n")
        tree.stdin.flush()
    for tree in trees:
        out, error = tree.communicate()
        ended.append((tree.returncode, out, "would never end" in error))
    assert sorted(ended) == [(0, "ran\n", False), (73, "", True)]


def words(name: str) -> str:
    return subprocess.list2cmdline(run(name, "echo", "ran"))


def test_python_within_a_run_is_told_of_the_deadlock(
    lockctl: Lockctl, client: Client
) -> None:
    script = (
        "import lockd\n"
        "with lockd.connect() as client:\n"
        "    try: client.acquire('a')\n"
        "    except lockd.DeadlockError as error: print('refused:', error)\n"
    )
    done = lockctl("run", "a", "--", sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")
    assert "which waits for the end of" in done.stdout


def test_shared_within_shared_runs(lockctl: Lockctl) -> None:
    inner = [*LOCKCTL, "run", "-s", "a", "--", "echo", "ran"]
    done = lockctl("run", "-s", "a", "--", *inner)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_wait_for_the_lock_around_is_73(lockctl: Lockctl) -> None:
    done = lockctl("run", "a", "--", *LOCKCTL, "wait", "a")
    assert done.returncode == 73
    assert "which waits for the end of this command" in done.stderr


def test_wait_within_for_another_lock_waits(lockctl: Lockctl, client: Client) -> None:
    done = lockctl("run", "a", "--", *LOCKCTL, "wait", "b")
    assert (done.returncode, done.stderr) == (0, "")


def test_locks_of_all_levels_are_told(lockctl: Lockctl, client: Client) -> None:
    inner = 'echo "$LOCKD_WITHIN"'
    done = lockctl("run", "a", "--", *run("b", "sh", "-c", inner))
    told = [word.split(":") for word in done.stdout.split()]
    assert [daemon for daemon, _ in told] == [client.instance] * 2
    first, second = (int(token) for _, token in told)
    assert first < second


def test_command_that_outlived_the_lock_waits_like_anybody(
    lockctl: Lockctl, client: Client
) -> None:
    told = lockctl("run", "a", "--", "sh", "-c", 'echo "$LOCKD_WITHIN"').stdout
    lockctl.env["LOCKD_WITHIN"] = told.strip()
    assert lockctl("run", "a", "--", "echo", "ran").stdout == "ran\n"


def test_lock_of_another_daemon_is_none(lockctl: Lockctl, client: Client) -> None:
    token = client.acquire("a").fencing_token
    lockctl.env["LOCKD_WITHIN"] = f"{'0' * 32}:{token}"
    done = lockctl("run", "-n", "a", "--", "true")
    assert done.returncode == 75


@pytest.mark.parametrize("told", ["", " ", "nonsense", "a:b", "ü:1", "x" * 5000])
def test_odd_words_in_the_environment_harm_nobody(told: str, lockctl: Lockctl) -> None:
    lockctl.env["LOCKD_WITHIN"] = told
    assert lockctl("run", "a", "--", "echo", "ran").stdout == "ran\n"


def test_without_the_variable_the_wait_is_explained(
    lockctl: Lockctl, client: Client
) -> None:
    inner = ["env", "-u", "LOCKD_WITHIN", *run("a", "true")]
    process = lockctl.start(
        "run", "a", "--", "sh", "-c", f"{subprocess.list2cmdline(inner)}; :"
    )
    assert process.stderr is not None
    assert "it runs this command, and may wait for its end" in process.stderr.readline()
    process.terminate()
    process.communicate()


def test_program_that_nobody_waits_for_says_so(
    lockctl: Lockctl, client: Client
) -> None:
    """The way out: a program in the background, whose end the holder does not await."""
    detached = f"env -u LOCKD_WITHIN {words('a')} >&2 &"
    process = lockctl.start("run", "-o", "a", "--", "sh", "-c", f"{detached} read x")
    ask_until(client, "a", lambda state: state["waiter_count"] == 1)
    end_input(process)
    with connect(os.fspath(lockctl.env["LOCKD_SOCKET"])) as other:
        ask_until(other, "a", lambda state: state["holder_count"] == 0)
