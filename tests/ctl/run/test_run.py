"""`lockctl run`: exit statuses, environment, options; the contract with a script."""

import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.door import open_door
from ctl.processes import LIMIT, LOCKCTL, Lockctl, end_input, line_of
from lockd import Client, connect
from support.asking import ask_until


@contextmanager
def older_daemon(path: Path, sock: str) -> Iterator[Path]:
    """A socket that leads one client to the daemon, which misreads `outcome`."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()

        def relay() -> None:
            near, _ = door.accept()
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(sock)
                ends = {near: far, far: near}
                while True:
                    for ready in select.select(ends, [], [])[0]:
                        data = ready.recv(65_536)
                        if not data:
                            return
                        ends[ready].sendall(data.replace(b"outcome", b"verdict"))

        thread = threading.Thread(target=relay)
        thread.start()
        yield path
        thread.join(LIMIT)


PREVIOUS = ("-c", 'echo "<${LOCKD_PREVIOUS-unset}>"')
"""The options of a command that prints how the last hold ended."""


@pytest.mark.parametrize("status", [0, 1, 2, 75, 255])
def test_exit_status_is_that_of_the_command(lockctl: Lockctl, status: int) -> None:
    assert (
        lockctl("run", "job", "--", "sh", "-c", f"exit {status}").returncode == status
    )


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "TERM", "USR1", "SEGV"])
def test_lockctl_dies_of_the_signal_its_command_died_of(
    lockctl: Lockctl, tmp_path: Path, name: str
) -> None:
    script = f"ulimit -c 0; kill -{name} $$"
    done = lockctl("run", "job", "--", "sh", "-c", script, cwd=tmp_path)
    assert done.returncode == -getattr(signal, f"SIG{name}")
    assert not list(tmp_path.glob("core*"))


def test_connection_that_ends_unheard_is_opened_again(
    lockctl: Lockctl, sock: str, tmp_path: Path
) -> None:
    with open_door(tmp_path / "door", leads_to=sock, after=2) as door:
        done = lockctl("--socket", door.path, "run", "job", "--", "true")
        assert door.ended == 2
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["-E", "600", "job", "--", "true"], "'600' is not a whole number from 0"),
        (["-E", "-1", "job", "--", "true"], "'-1' is not a whole number from 0"),
        (["-w", "nan", "job", "--", "true"], "'nan' is not a number of seconds"),
        (["-w", "-1", "job", "--", "true"], "'-1' is not a number of seconds"),
        (
            ["--max-waiting", "1025", "job", "--", "true"],
            "'1025' is not a whole number from 0 to 1024",
        ),
        (["--signal", "NO", "job", "--", "true"], "'NO' is not a signal"),
        (["--status-fd", "77", "job", "--", "true"], "Bad file descriptor"),
        (["--status-fd", str(2**31), "job", "--", "true"], "Bad file descriptor"),
        (["-F", "--status-fd", "2", "job", "--", "true"], "no lockctl is left"),
        (["-F", "-o", "job", "--", "true"], "--close does not work with"),
        (["--", "-x"], "no command"),
        (["-n", "--", "--", "true"], "NAME"),
        (["-s", "-x", "job", "--", "true"], "either --shared or --exclusive"),
        (["-c", "true", "job", "--", "true"], "not both"),
        (["job", "/srv/file", "--", "true"], "in different lockspaces"),
        (["-z", "job", "rsync"], "put `--` before the command"),
        (["job"], "no command"),
        ([], "NAME"),
    ],
)
def test_wrong_usage_is_64_and_runs_nothing(
    lockctl: Lockctl, args: list[str], sentence: str
) -> None:
    done = lockctl("run", *args)
    assert done.returncode == 64
    assert sentence in done.stderr
    assert done.stderr.startswith("lockctl: ")
    assert done.stderr.count("\n") == 1


def test_absent_daemon_is_69_and_the_command_does_not_run(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    socket, mark = tmp_path / "nobody.sock", tmp_path / "ran"
    done = lockctl("--socket", socket, "run", "job", "--", "touch", mark)
    assert done.returncode == 69
    assert str(socket) in done.stderr
    assert not mark.exists()


def test_unknown_lockspace_is_64(lockctl: Lockctl) -> None:
    done = lockctl("run", "--lockspace", "nowhere", "job", "--", "true")
    assert done.returncode == 64
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("option", [["-n"], ["--nb"], ["-w", "0"], ["-w", "0.05"]])
def test_busy_lock_is_75_and_the_sentence_names_the_holder(
    lockctl: Lockctl, client: Client, option: list[str]
) -> None:
    client.acquire("job")
    done = lockctl("run", *option, "job", "--", "true")
    assert done.returncode == 75
    assert "the test" in done.stderr
    assert str(os.getpid()) in done.stderr


def test_of_three_behind_a_holder_one_waits_and_two_are_refused(
    lockctl: Lockctl, client: Client
) -> None:
    grant = client.acquire("job")
    words = ("run", "--max-waiting", "1", "job", "--", "echo", "done")
    first = lockctl.start(*words)
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    for _ in range(2):
        done = lockctl(*words)
        assert (done.returncode, done.stdout) == (75, "")
        assert "by the test (pid" in done.stderr
        assert "echo (pid" in done.stderr
        assert " waits for it" in done.stderr
    assert lockctl(*words[:2], "0", *words[3:]).returncode == 75
    client.release(grant)
    assert first.communicate() == ("done\n", "")


@pytest.mark.parametrize("command", [("hold",), ("acquire", "--owner-pid", "1")])
def test_other_commands_that_take_locks_do_not_pile_up_either(
    lockctl: Lockctl, client: Client, command: tuple[str, ...]
) -> None:
    client.acquire("job")
    lockctl.start("run", "job", "--", "true")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    assert lockctl(*command, "--max-waiting", "1", "job").returncode == 75


@pytest.mark.parametrize("option", [["-n"], ["-w", "0.05"]])
def test_conflict_exit_code_replaces_75(
    lockctl: Lockctl, client: Client, option: list[str]
) -> None:
    client.acquire("job")
    done = lockctl("run", *option, "-E", "0", "--quiet", "job", "--", "false")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "words", "status"),
    [
        (["--lockspace", "nowhere"], ["true"], 64),
        ([], ["/nowhere/program"], 127),
    ],
)
def test_quiet_hides_no_other_error(
    lockctl: Lockctl, options: list[str], words: list[str], status: int
) -> None:
    done = lockctl("run", "-n", "-E", "0", "--quiet", *options, "job", "--", *words)
    assert done.returncode == status
    assert "nowhere" in done.stderr


def test_shared_runs_beside_shared_only(lockctl: Lockctl, client: Client) -> None:
    client.acquire("job", mode="shared")
    assert lockctl("run", "-n", "-s", "job", "--", "true").returncode == 0
    assert lockctl("run", "-n", "-x", "job", "--", "true").returncode == 75


def test_lock_is_free_as_soon_as_lockctl_has_ended(
    lockctl: Lockctl, client: Client
) -> None:
    assert lockctl("run", "job", "--", "true").returncode == 0
    assert client.query("job")["holders"] == []
    assert client.try_acquire("job") is not None


@pytest.mark.parametrize(
    ("script", "told"),
    [("exit 0", "unset"), ("exit 1", "failed"), ("kill -9 $$", "died")],
)
def test_next_command_hears_how_the_last_one_ended(
    lockctl: Lockctl, client: Client, script: str, told: str
) -> None:
    lockctl("run", "job", "--", "sh", "-c", script)
    # The lock is free at once, whatever ended the command.
    assert lockctl("run", "-n", *PREVIOUS, "job").stdout == f"<{told}>\n"
    # That one ended well.
    assert lockctl("run", "-n", *PREVIOUS, "job").stdout == "<unset>\n"


def test_next_command_hears_that_the_lock_was_broken_or_its_holder_gone(
    lockctl: Lockctl, client: Client, sock: str
) -> None:
    grant = client.acquire("job")
    client.break_grant(grant.fencing_token, "it hangs")
    with connect(sock) as other:
        other.acquire("other")
    ask_until(client, "other", lambda state: state["holder_count"] == 0)
    # What a command around it heard says nothing of these locks.
    lockctl.env["LOCKD_PREVIOUS"] = "failed"
    for names, told in (
        (["other", "new"], "died\n"),
        (["new", "job"], "\nbroken"),
        (["new"], "unset"),
    ):
        assert lockctl("run", *PREVIOUS, *names).stdout == f"<{told}>\n"
    assert lockctl("run", "-F", *PREVIOUS, "fresh").stdout == "<unset>\n"


def test_run_that_ends_well_is_a_release_for_watchers_and_metrics(
    lockctl: Lockctl, client: Client
) -> None:
    watcher = lockctl.start("watch", "--json")
    assert json.loads(line_of(watcher))["event"] == "watching"
    for status in (0, 0, 0, 1):
        done = lockctl("run", "job", "--", "sh", "-c", f"exit {status}")
        assert done.returncode == status
        granted, released = (json.loads(line_of(watcher)) for _ in range(2))
        assert (granted["event"], released["cause"]) == ("granted", "released")
    counted = dict(
        line.rsplit(" ", 1)
        for line in client.metrics().splitlines()
        if line.startswith('lockd_ends_total{lockspace="default"')
    )
    causes = ("released", "owner_died", "disconnected", "broken")
    assert {
        cause: counted[f'lockd_ends_total{{lockspace="default",cause="{cause}"}}']
        for cause in causes
    } == {"released": "4", "owner_died": "0", "disconnected": "0", "broken": "0"}


def test_lock_is_released_although_the_daemon_knows_no_outcome(
    lockctl: Lockctl, client: Client, sock: str, tmp_path: Path
) -> None:
    with older_daemon(tmp_path / "old", sock) as path:
        done = lockctl("--socket", path, "run", "job", "--", "false")
    assert (done.returncode, done.stderr) == (1, "")
    last = client.query("job")["last_holder"]
    assert (last["ended"], last["outcome"]) == ("released", None)


def test_several_names_are_locked_together(lockctl: Lockctl, client: Client) -> None:
    process = lockctl.start("run", "one", "two", "--", "cat")
    ask_until(client, "two", lambda state: state["holder_count"] == 1)
    assert client.query("one")["holder_count"] == 1
    end_input(process)
    assert process.wait() == 0


def test_command_finds_its_lock_in_the_environment(
    lockctl: Lockctl, client: Client
) -> None:
    script = 'echo "$LOCKD_NAME $LOCKD_LOCKSPACE $LOCKD_SOCKET"; echo $LOCKD_TOKEN; cat'
    process = lockctl.start("run", "-c", script, "job")
    assert line_of(process) == f"job default {lockctl.env['LOCKD_SOCKET']}"
    (holder,) = client.query("job")["holders"]
    assert int(line_of(process)) == holder["fencing_token"]
    end_input(process)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--", "-x", "--"], "-x"),
        (["-n", "--", "--wait", "-n", "--"], "--wait\n-n"),
        (["-n", "job", "--"], "job"),
    ],
)
def test_name_may_begin_with_a_dash(
    lockctl: Lockctl, words: list[str], name: str
) -> None:
    script = ["sh", "-c", 'echo "$LOCKD_NAME" "$@"', "sh", "--", "-y"]
    assert lockctl("run", *words, *script).stdout == f"{name} -- -y\n"


def test_name_may_begin_with_a_dash_before_a_script(lockctl: Lockctl) -> None:
    assert lockctl("run", "-c", "echo $LOCKD_NAME", "--", "-x").stdout == "-x\n"


WITHOUT_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("name", ["ü", "\u4e2d"])
@pytest.mark.parametrize("is_file", [False, True])
def test_any_name_is_served_in_a_locale_without_utf_8(
    lockctl: Lockctl, client: Client, tmp_path: Path, name: str, is_file: bool
) -> None:
    lockctl.env |= WITHOUT_UTF_8
    if is_file:
        name = f"{tmp_path}/{name}"
        Path(name).touch()
    told = ["--owner", "Bärbel", "--reason", "für später"]
    script = 'printenv LOCKD_NAME "$@"; cat'
    process = lockctl.start("run", *told, name, "--", "sh", "-c", script)
    assert line_of(process) == name
    space = "direct" if is_file else "default"
    (holder,) = client.query(name, lockspace=space)["holders"]
    assert (holder["name"], holder["reason"]) == ("Bärbel", "für später")
    assert lockctl("test", name).returncode == 1
    end_input(process)
    assert process.wait() == 0
    assert lockctl("test", name).returncode == 0


def test_name_that_is_not_utf_8_is_refused_in_any_locale(lockctl: Lockctl) -> None:
    name = os.fsdecode(b"\xff")
    for _ in range(2):
        refused = lockctl("run", name, "--", "true")
        assert refused.returncode == 64
        assert refused.stderr == "lockctl: the name '\\udcff' is not UTF-8\n"
        lockctl.env |= WITHOUT_UTF_8


def test_terminal_of_another_encoding_gets_nothing_that_it_lacks(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("ü", reason="\u4e2d")
    lockctl.env |= WITHOUT_UTF_8
    output = lockctl("list").stdout
    assert output.isascii()
    assert r"\xfc" in output
    assert r"\u4e2d" in output


def test_owner_can_be_named(lockctl: Lockctl, client: Client) -> None:
    process = lockctl.start("run", "--owner", "the backup", "job", "--", "cat")
    state = ask_until(client, "job", lambda state: state["holder_count"] == 1)
    assert state["holders"][0]["name"] == "the backup"
    end_input(process)


def test_others_see_the_command_as_the_holder(lockctl: Lockctl, client: Client) -> None:
    process = lockctl.start("run", "--reason", "nightly", "job", "--", "cat")
    state = ask_until(client, "job", lambda state: state["holder_count"] == 1)
    (holder,) = state["holders"]
    assert (holder["name"], holder["reason"]) == ("cat", "nightly")
    assert holder["pid"] != process.pid
    parent = Path(f"/proc/{holder['pid']}/stat").read_text().split()[3]
    assert int(parent) == process.pid
    end_input(process)


@pytest.mark.parametrize("option", [[], ["-F"], ["-s"], ["-n"], ["-o"]])
def test_command_under_a_lock_that_wants_the_same_lock_runs(
    lockctl: Lockctl, option: list[str]
) -> None:
    inner = [*LOCKCTL, "run", *option, "job", "--", "echo", "ran"]
    done = lockctl("run", "job", "--", *inner)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_command_under_a_lock_may_take_another_one(lockctl: Lockctl) -> None:
    inner = [*LOCKCTL, "run", "other", "--", "echo", "ran"]
    assert lockctl("run", "job", "--", *inner).stdout == "ran\n"


def test_command_that_outlived_its_lock_may_take_it_again(
    lockctl: Lockctl, client: Client
) -> None:
    told = lockctl("run", "job", "--", "env").stdout.splitlines()
    environment = dict(line.split("=", 1) for line in told if "=" in line)
    assert environment["LOCKD_NAME"] == "job"
    lockctl.env |= environment
    done = lockctl("run", "job", "--", "echo", "ran")
    assert done.stdout == "ran\n"


def test_no_fork_becomes_the_command_and_keeps_the_lock(
    lockctl: Lockctl, client: Client
) -> None:
    process = lockctl.start("run", "-F", "-c", "echo $$; exec cat", "job")
    assert int(line_of(process)) == process.pid
    (holder,) = client.query("job")["holders"]
    assert holder["pid"] == process.pid
    end_input(process)
    assert process.wait() == 0
    ask_until(client, "job", lambda state: not state["holders"])


def test_parent_that_ignores_sigchld_gets_the_status_all_the_same(
    lockctl: Lockctl,
) -> None:
    words = " ".join((*LOCKCTL, "run", "-c", "'exit 3'", "job"))
    shell = ["sh", "-c", f"trap '' CHLD; exec {words}"]
    assert subprocess.run(shell, env=lockctl.env, check=False).returncode == 3


def _status_of(lockctl: Lockctl, *args: str) -> dict[str, object]:
    reader, writer = os.pipe()
    lockctl("run", "--status-fd", str(writer), *args, pass_fds=[writer])
    os.close(writer)
    with open(reader) as stream:
        status: dict[str, object] = json.load(stream)
    return status


def test_status_of_a_command_that_ran(lockctl: Lockctl) -> None:
    status = _status_of(lockctl, "job", "--", "sh", "-c", "exit 4")
    assert status["outcome"] == "exited"
    assert status["exit_status"] == 4
    assert status["signal"] is None
    assert status["names"] == ["job"]
    assert isinstance(status["fencing_token"], int)
    assert isinstance(status["waited"], float)
    assert isinstance(status["held"], float)


def test_status_of_a_command_that_was_killed(lockctl: Lockctl) -> None:
    status = _status_of(lockctl, "job", "--", "sh", "-c", "kill -TERM $$")
    assert (status["outcome"], status["exit_status"]) == ("killed", 143)
    assert status["signal"] == signal.SIGTERM


@pytest.mark.parametrize(
    ("args", "outcome", "exit_status"),
    [
        (["-n", "taken", "--", "true"], "busy", 75),
        (["-w", "0.05", "taken", "--", "true"], "timeout", 75),
        (["job", "--", "no-such-command"], "not_executed", 127),
        (["--lockspace", "nowhere", "job", "--", "true"], "not_found", 64),
    ],
)
def test_status_of_a_run_that_failed(
    lockctl: Lockctl, client: Client, args: list[str], outcome: str, exit_status: int
) -> None:
    client.acquire("taken")
    status = _status_of(lockctl, *args)
    assert (status["outcome"], status["exit_status"]) == (outcome, exit_status)


@pytest.mark.slow
def test_no_update_is_lost_under_the_lock(lockctl: Lockctl, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    script = f"n=$(cat {counter}); echo $((n + 1)) > {counter}"
    processes = [lockctl.start("run", "-c", script, "counter") for _ in range(12)]
    assert [process.wait() for process in processes] == [0] * 12
    assert counter.read_text() == "12\n"
