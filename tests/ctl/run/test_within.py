"""`lockctl run` within `lockctl run`: no tree of processes hangs."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from ctl.processes import LOCKCTL, Lockctl, end_input
from lockd import Client, connect
from support.asking import ask_until


def run(name: str, *command: str) -> list[str]:
    return [*LOCKCTL, "run", name, "--", *command]


def test_command_two_levels_below_just_runs(lockctl: Lockctl) -> None:
    done = lockctl("run", "a", "--", *run("b", *run("a", "echo", "hi")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


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
    """It wants what the test has, and the test waits for the lock around it."""
    script = (
        "import lockd\n"
        "with lockd.connect() as client:\n"
        "    input()\n"
        "    try: client.acquire('b')\n"
        "    except lockd.DeadlockError as error: print('refused:', error)\n"
    )
    process = lockctl.start("run", "a", "--", sys.executable, "-c", script)
    ask_until(client, "a", lambda state: state["holder_count"] == 1)
    # One thread holds the one and waits for the other.
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        connect(lockctl.env["LOCKD_SOCKET"]) as asking,
    ):
        pool.submit(client.acquire, "b").result()
        waiting = pool.submit(client.acquire, "a")
        ask_until(asking, "a", lambda state: state["waiter_count"] == 1)
        out, _ = process.communicate("\n")
        waiting.result()
    assert out.startswith("refused: ")
    assert "which waits for the end of" in out


def test_python_within_a_run_gets_the_lock(lockctl: Lockctl, client: Client) -> None:
    script = (
        "import lockd\n"
        "with lockd.connect() as client:\n"
        "    grant = client.acquire('a')\n"
        "    outer, = grant.inside\n"
        "    assert outer < grant.fencing_token\n"
        "    assert client.check('a', outer)\n"
        "    with lockd.connect() as other: assert other.acquire('b').inside == ()\n"
        "    print('ran')\n"
    )
    done = lockctl("run", "a", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_shared_within_shared_runs(lockctl: Lockctl) -> None:
    inner = [*LOCKCTL, "run", "-s", "a", "--", "echo", "ran"]
    done = lockctl("run", "-s", "a", "--", *inner)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_exclusive_within_shared_is_73_with_words(lockctl: Lockctl) -> None:
    done = lockctl("run", "-s", "a", "--", *run("a", "true"))
    assert done.returncode == 73
    assert "'a' is held shared by the command that this is part of" in done.stderr
    assert "take it exclusively there" in done.stderr


def test_names_inside_and_outside_are_asked_for_apart(
    lockctl: Lockctl, client: Client
) -> None:
    """And told of in the order in which they were named."""
    inner = [*LOCKCTL, "run", "a", "c", "b", "--", "sh", "-c", 'echo "$LOCKD_TOKEN"']
    done = lockctl("run", "a", "b", "--", *inner)
    assert (done.returncode, done.stderr) == (0, "")
    a, c, b = map(int, done.stdout.split())
    # Those of the outer command, and a new one.
    assert (b - a, c - b) == (1, 1)


def test_acquire_asks_for_names_inside_and_outside_apart(
    lockctl: Lockctl, client: Client
) -> None:
    pid = str(os.getpid())
    inner = [*LOCKCTL, "acquire", "--json", "--owner-pid", pid, "a", "b"]
    done = lockctl("run", "a", "--", *inner)
    first, second = json.loads(done.stdout)["grants"]
    assert (first["resource"], len(first["inside"])) == ("a", 1)
    assert (second["resource"], second["inside"]) == ("b", [])


def test_acquire_that_is_refused_inside_keeps_nothing(
    lockctl: Lockctl, client: Client
) -> None:
    inner = [*LOCKCTL, "acquire", "--owner-pid", str(os.getpid()), "out", "in"]
    done = lockctl("run", "-s", "in", "--", *inner)
    assert done.returncode == 73
    assert client.query("out")["holders"] == []


def test_program_is_inside_a_lock_that_many_others_share(
    lockctl: Lockctl, sock: str
) -> None:
    """A query would not name the holder around it."""
    with ExitStack() as stack:
        for _ in range(18):
            stack.enter_context(connect(sock)).acquire("a", mode="shared")
        inner = [*LOCKCTL, "run", "-s", "a", "b", "--", "echo", "ran"]
        done = lockctl("run", "-s", "a", "--", *inner)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_all_of_a_tree_have_one_token_for_what_they_guard(lockctl: Lockctl) -> None:
    tell = ["sh", "-c", 'echo "$LOCKD_TOKEN"']
    both = (
        f"{subprocess.list2cmdline(tell)}; {subprocess.list2cmdline(run('a', *tell))}"
    )
    done = lockctl("run", "a", "--", "sh", "-c", both)
    outer, inner = done.stdout.split()
    assert outer == inner


def test_lock_is_held_until_the_last_inside_has_ended(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    """The outer command ends first, and leaves the inner one behind."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    inner = subprocess.list2cmdline(run("a", "cat", str(fifo)))
    process = lockctl.start("run", "-o", "a", "--", "sh", "-c", f"{inner} & read x")
    ask_until(client, "a", lambda state: state["holder_count"] == 2)
    end_input(process)
    state = ask_until(client, "a", lambda state: state["holder_count"] == 1)
    (holder,) = state["holders"]
    (outer,) = holder["inside"]
    assert holder["name"] == "cat"
    assert client.check("a", outer)
    assert lockctl("test", "a").stdout == "held\n"
    assert lockctl("run", "-n", "a", "--", "true").returncode == 75
    os.close(keep)
    ask_until(client, "a", lambda state: state["holder_count"] == 0)
    assert not client.check("a", outer)


def test_children_of_one_lock_take_turns(lockctl: Lockctl, tmp_path: Path) -> None:
    """Each says when it begins and ends: no two overlap."""
    log = tmp_path / "log"
    child = subprocess.list2cmdline(
        run("a", "sh", "-c", f"echo + >>{log}; echo - >>{log}")
    )
    done = lockctl("run", "a", "--", "sh", "-c", f"{child} & {child} & {child} & wait")
    assert done.returncode == 0, done.stderr
    assert log.read_text().split() == ["+", "-"] * 3


def test_stranger_gets_in_after_the_whole_tree(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    inner = subprocess.list2cmdline(run("a", "sh", "-c", f"echo inner >>{log}"))
    tree = lockctl.start("run", "a", "--", "sh", "-c", f"read x; {inner}; {inner}")
    ask_until(client, "a", lambda state: state["holder_count"] == 1)
    stranger = lockctl.start("run", "a", "--", "sh", "-c", f"echo stranger >>{log}")
    ask_until(client, "a", lambda state: state["waiter_count"] == 1)
    end_input(tree)
    stranger.communicate()
    assert log.read_text().split() == ["inner", "inner", "stranger"]


@pytest.mark.parametrize("name", ["disk", "./disk", "link", "hard"])
def test_file_by_another_name_is_the_same_lock(
    name: str, lockctl: Lockctl, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    (tmp_path / "link").symlink_to(disk)
    (tmp_path / "hard").hardlink_to(disk)
    where = {"cwd": tmp_path}
    inner = [*LOCKCTL, "run", "-n", str(tmp_path / name), "--", "echo", "ran"]
    done = lockctl("run", "./disk", "--", *inner, **where)
    if name == "hard":
        # lockd knows it as another lock, and the kernel as the same.
        assert done.returncode == 75
    else:
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_commands_show_who_is_inside(lockctl: Lockctl, client: Client) -> None:
    process = lockctl.start("run", "a", "--", *run("a", "cat"))
    state = ask_until(client, "a", lambda state: state["holder_count"] == 2)
    outer, inner = state["holders"]
    token = str(outer["fencing_token"])
    assert inner["inside"] == [outer["fencing_token"]]
    listed = lockctl("list").stdout.rstrip("\n").split("\t")
    assert listed[-1] == token
    shown = [x.split("\t") for x in lockctl("show", "a").stdout.splitlines()]
    assert [x[-1] for x in shown] == ["-", token]
    broken = lockctl("break", token, "--reason", "test", "--yes")
    assert "held inside it by" in broken.stdout
    assert f"token {inner['fencing_token']}" in broken.stdout
    assert lockctl("test", "a").stdout == "held\n"
    end_input(process)


def test_graph_shows_that_a_waiter_is_inside(lockctl: Lockctl, client: Client) -> None:
    # The shell takes the standard input from its jobs; the descriptor 3 is the same.
    child = f"{subprocess.list2cmdline(run('a', 'cat'))} <&3 &"
    script = f"exec 3<&0; {child} {child} wait"
    process = lockctl.start("run", "a", "--", "sh", "-c", script)
    state = ask_until(client, "a", lambda state: state["waiter_count"] == 1)
    outer = state["holders"][0]["fencing_token"]
    assert f", inside {outer}" in lockctl("graph").stdout
    (waits,) = json.loads(lockctl("graph", "--json").stdout)["waits"]
    assert (waits["inside"], len(waits["behind"])) == ([outer], 1)
    (row,) = lockctl("waiters").stdout.splitlines()
    assert row.split("\t")[-1] == str(outer)
    end_input(process)


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


# What lockctl says while it waits: for which lock, and who has that.


def begin(process: "subprocess.Popen[str]") -> None:
    """Lets the shell go on that reads a line."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def start_strangers(lockctl: Lockctl, client: Client, name: str) -> None:
    """Starts two that wait for a lock."""
    for _ in range(2):
        lockctl.start("run", name, "--", "true")
    ask_until(client, name, lambda state: state["waiter_count"] == 2)


def start_holder(
    lockctl: Lockctl, client: Client, name: str, *options: str
) -> tuple["subprocess.Popen[str]", str]:
    """Starts a holder that is nobody's ancestor. Returns how it is named, too."""
    holder = lockctl.start("run", "--owner", "other", *options, name, "--", "cat")
    state = ask_until(client, name, lambda state: state["holder_count"] == 1)
    return holder, f"by other, pid {state['holders'][0]['pid']}, uid {os.getuid()}"


def line_of_errors(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_wait_for_what_is_outside_is_explained_by_that(
    lockctl: Lockctl, client: Client
) -> None:
    """Many wait for the lock around it, for which it does not ask yet."""
    holder, name = start_holder(lockctl, client, "b")
    waits = [*LOCKCTL, "run", "-v", "a", "b", "--", "true"]
    script = f"read x; exec {subprocess.list2cmdline(waits)}"
    process = lockctl.start("run", "a", "--", "sh", "-c", script)
    ask_until(client, "a", lambda state: state["holder_count"] == 1)
    start_strangers(lockctl, client, "a")
    begin(process)
    said = line_of_errors(process)
    assert said.startswith("lockctl: waiting for 'b' (1st in queue; held for ")
    assert said.endswith(f" {name})\n")
    end_input(holder)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("form", [(), ("-F",)])
def test_wait_for_a_sibling_names_the_sibling(
    form: tuple[str, ...], lockctl: Lockctl, client: Client
) -> None:
    """It has the lock outside by then, for which many wait."""
    waits = [*LOCKCTL, "run", "-v", *form, "a", "b", "--", "true"]
    script = f'echo "$LOCKD_WITHIN"; read x; exec {subprocess.list2cmdline(waits)}'
    process = lockctl.start("run", "--owner", "outer", "a", "--", "sh", "-c", script)
    assert process.stdout is not None
    env = lockctl.env | {"LOCKD_WITHIN": process.stdout.readline().strip()}
    sibling = lockctl.start("run", "--owner", "sibling", "a", "--", "cat", env=env)
    state = ask_until(client, "a", lambda state: state["holder_count"] == 2)
    begin(process)
    ask_until(client, "a", lambda state: state["waiter_count"] == 1)
    start_strangers(lockctl, client, "b")
    said = line_of_errors(process)
    assert said.startswith("lockctl: waiting for 'a' (1st in queue; held for ")
    pid = state["holders"][1]["pid"]
    assert said.endswith(f"by sibling, pid {pid}, uid {os.getuid()})\n")
    end_input(sibling)
    process.communicate()
    assert process.returncode == 0


def test_ancestor_is_named_though_it_is_not_the_first_holder(
    lockctl: Lockctl, client: Client
) -> None:
    holder, _ = start_holder(lockctl, client, "a", "-s")
    waits = ["env", "-u", "LOCKD_WITHIN", *run("a", "true")]
    process = lockctl.start("run", "-s", "--owner", "outer", "a", "--", *waits)
    state = ask_until(client, "a", lambda state: state["holder_count"] == 2)
    said = line_of_errors(process)
    pid = state["holders"][1]["pid"]
    assert f"by outer, pid {pid}, uid {os.getuid()} and 1 more)" in said
    assert said.endswith("; it runs this command, and may wait for its end\n")
    process.terminate()
    process.communicate()
    end_input(holder)


def test_wait_for_another_program_below_a_lock_blames_no_ancestor(
    lockctl: Lockctl, client: Client
) -> None:
    holder, name = start_holder(lockctl, client, "b")
    process = lockctl.start("run", "a", "--", *LOCKCTL, "run", "-v", "b", "--", "true")
    said = line_of_errors(process)
    assert said.startswith("lockctl: waiting for 'b' (1st in queue; held for ")
    assert said.endswith(f" {name})\n")
    end_input(holder)
    process.communicate()
