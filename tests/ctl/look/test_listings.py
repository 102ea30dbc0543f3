"""The commands that only ask: tables on a terminal, tabs when piped, JSON."""

import hashlib
import json
import os
import re
from pathlib import Path
from threading import Thread

import pytest

from ctl.processes import LOCKCTL, Lockctl, Terminal, ask_until, end_input
from daemon_process import DaemonProcess
from lockd import Client, connect


def test_list_has_one_line_for_each_resource_when_piped(
    lockctl: Lockctl, client: Client, own_command: str
) -> None:
    client.acquire("a", reason="nightly")
    client.acquire("b", mode="shared")
    lines = [line.split("\t") for line in lockctl("list").stdout.splitlines()]
    assert [line[:5] for line in lines] == [
        ["default", "a", "exclusive", "1", "the test"],
        ["default", "b", "shared", "1", "the test"],
    ]
    assert lines[0][5] == str(os.getpid())
    assert lines[0][8:11] == ["nightly", "0", "-"]
    assert lines[0][11] == own_command


GUEST = "8b1a9953-c461-1296-a827-abf8c47804d7"


def test_list_has_the_uuid_of_a_guest(lockctl: Lockctl, sock: str) -> None:
    with connect(sock) as client:
        client.register("web1", uuid=GUEST)
        client.acquire("a")
        (line,) = lockctl("list").stdout.splitlines()
        terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
        assert terminal.wait() == 0
    assert line.split("\t")[10] == GUEST
    assert "UUID" in terminal.shown


def test_list_on_a_terminal_has_no_column_for_uuids_that_nobody_has(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("a")
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert "WAITING" in terminal.shown
    assert "UUID" not in terminal.shown


def test_list_is_a_table_on_a_terminal(lockctl: Lockctl, client: Client) -> None:
    client.acquire("a")
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert "LOCKSPACE" in terminal.shown
    assert "the test" in terminal.shown
    assert "\t" not in terminal.shown


def test_empty_list_says_so_only_on_a_terminal(lockctl: Lockctl) -> None:
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert terminal.shown == "Nothing is locked.\r\n"
    assert lockctl("list").stdout == ""


def test_list_as_json_has_the_shape_of_the_protocol(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("a")
    (resource,) = json.loads(lockctl("list", "--json").stdout)["resources"]
    assert (resource["lockspace"], resource["resource"]) == ("default", "a")
    assert resource["holders"][0]["pid"] == os.getpid()
    assert (resource["holder_count"], resource["waiter_count"]) == (1, 0)


@pytest.mark.parametrize("text", ["a\tb", "x\x1b[31m", "line\nline"])
def test_what_a_client_calls_itself_cannot_forge_a_line(
    lockctl: Lockctl, client: Client, text: str
) -> None:
    try:
        client.acquire("a", reason=text)
    except ValueError:
        return  # refused at the door
    (line,) = lockctl("list").stdout.splitlines()
    assert text not in line
    assert len(line.split("\t")) == 13


def names_in(lockctl: Lockctl, *options: object) -> list[str]:
    done = lockctl("list", *options)
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


def test_list_picks_and_sorts(
    lockctl: Lockctl, sock: str, client: Client, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    (tmp_path / "link").symlink_to(disk)
    client.acquire("b")
    client.acquire("a", label=str(disk))
    client.acquire(str(disk))
    with connect(sock, name="other") as other:
        other.acquire("c")
        with connect(sock, name="waiter") as waiter:
            waiting = Thread(target=lambda: waiter.acquire("c", timeout=1000))
            waiting.start()
            ask_until(client, "c", lambda state: state["waiter_count"] == 1)
            assert names_in(lockctl) == ["a", "b", "c", str(disk)]
            assert names_in(lockctl, "--owner", "other") == ["c"]
            assert names_in(lockctl, "--owner", "waiter") == ["c"]
            assert names_in(lockctl, "--waiting") == ["c"]
            assert names_in(lockctl, "--pid", 1) == []
            assert len(names_in(lockctl, "--pid", os.getpid())) == 4
            assert len(names_in(lockctl, "--user", os.getuid())) == 4
            assert names_in(lockctl, "--unit", "no.service") == []
            assert names_in(lockctl, "--path", tmp_path / "link") == ["a", str(disk)]
            assert names_in(lockctl, "--path", tmp_path) == ["a", str(disk)]
            assert names_in(lockctl, "direct") == [str(disk)]
            assert names_in(lockctl, "default", "--sort", "for") == ["b", "a", "c"]
            assert names_in(lockctl, "--sort", "waiting")[0] == "c"
            assert names_in(lockctl, "--sort", "holder")[0] == "c"
            other.release("c")
            waiting.join()
    for user in ("no such user", 10**23):
        done = lockctl("list", "--user", user)
        assert done.returncode == 64
        assert f"there is no user '{user}'" in done.stderr
    done = lockctl("list", "--pid", 10**23)
    assert done.returncode == 64
    assert f"'{10**23}' is not a whole number from 1 to 2147483647" in done.stderr


def test_list_of_more_than_a_page_is_whole(lockctl: Lockctl, client: Client) -> None:
    names = [f"n{number:04}" for number in range(600)]
    for start in range(0, 600, 60):
        client.acquire_all(names[start : start + 60])
    assert names_in(lockctl) == names
    shown = json.loads(lockctl("list", "--json").stdout)["resources"]
    assert [resource["resource"] for resource in shown] == names


@pytest.mark.parametrize("width", [60, 80, 132])
def test_list_keeps_to_the_width_of_the_terminal(
    lockctl: Lockctl, client: Client, width: int
) -> None:
    client.acquire("x" * 120, reason="y" * 120)
    client.acquire("a", mode="shared", label="/a/path/" + "z" * 100 + "/disk.img")
    env = lockctl.env | {"COLUMNS": str(width)}
    terminal = Terminal((*LOCKCTL, "list"), env, width)
    assert terminal.wait() == 0
    lines = terminal.shown.split("\r\n")
    assert len(lines) == 4
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= width
    assert "NAME" in lines[0]
    assert "FOR" in lines[0]
    # What a path ends with says more than what it begins with.
    assert ("disk.img" in plain[1]) == (width > 60)


def table_at(
    lockctl: Lockctl, width: int, *words: str
) -> tuple[list[str], list[list[str]]]:
    """Returns the heading and the lines of a table, in their columns."""
    env = lockctl.env | {"COLUMNS": str(width)}
    terminal = Terminal((*LOCKCTL, *words), env, width)
    assert terminal.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown.partition("\r\n\r\n")[0])
    heading, *lines = shown.rstrip().split("\r\n")
    assert max(map(len, [heading, *lines])) <= width
    return heading.split(), [re.split("  +", line.rstrip()) for line in lines]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lock_that_is_shared_looks_shared_at_any_width(
    lockctl: Lockctl, sock: str, width: int
) -> None:
    with connect(sock, name="somebody with a name") as one, connect(sock) as other:
        one.acquire("n" * 60, mode="shared")
        other.acquire("n" * 60, mode="shared")
        heading, (line,) = table_at(lockctl, width, "list")
    assert "HOLDERS" not in heading
    (holder,) = (cell for cell in line if cell.startswith("some"))
    assert holder.endswith(" +1")


def test_narrow_table_has_its_numbers_whole(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("n" * 60, reason="why")
    heading, (line,) = table_at(lockctl, 40, "list")
    assert "FOR" not in heading
    assert str(os.getpid()) in line
    heading, (line,) = table_at(lockctl, 34, "show", "n" * 60)
    assert "MODE" not in heading
    assert line[-1] == str(grant.fencing_token)


def test_show_tells_holder_queue_and_last_holder(
    lockctl: Lockctl, client: Client
) -> None:
    client.release(client.acquire("job"))
    first = lockctl.start("run", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["holder_count"] == 1)
    second = lockctl.start("run", "-s", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    lines = [line.split("\t") for line in lockctl("show", "job").stdout.splitlines()]
    assert [line[0] for line in lines[:2]] == ["holds", "1st in queue"]
    assert lines[2][0].startswith("released ")
    assert [line[1] for line in lines] == ["cat", "cat", "the test"]
    assert [line[6] for line in lines] == ["exclusive", "shared", "exclusive"]
    end_input(first)
    end_input(second)


def test_show_as_json_is_the_answer_of_query(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("job")
    state = json.loads(lockctl("show", "--json", "job").stdout)["resource"]
    assert state["holders"][0]["fencing_token"] == grant.fencing_token
    assert state["waiters"] == []
    assert state["last_holder"] is None


@pytest.mark.parametrize(
    ("mode", "word"), [("exclusive", "held"), ("shared", "shared")]
)
def test_test_of_a_held_lock_is_1(
    lockctl: Lockctl, client: Client, mode: str, word: str
) -> None:
    client.call("acquire", resource="job", mode=mode)
    done = lockctl("test", "job")
    assert (done.returncode, done.stdout) == (1, f"{word}\n")


def test_test_of_a_free_lock_is_0_and_takes_nothing(
    lockctl: Lockctl, client: Client
) -> None:
    done = lockctl("test", "job")
    assert (done.returncode, done.stdout) == (0, "free\n")
    assert client.query("job")["last_holder"] is None


def test_wait_that_is_too_short_says_who_holds_it_and_why(
    lockctl: Lockctl, client: Client
) -> None:
    client.create_lockspace("other", "memory")
    client.acquire("a job", lockspace="other", reason="nightly")
    words = ("wait", "a job", "--lockspace", "other", "-w")
    me = f"by the test, pid {os.getpid()}, uid {os.getuid()} (nightly)"
    command = "`lockctl show 'a job' --lockspace other` says more"
    done = lockctl(*words, 0)
    assert done.returncode == 75
    assert done.stderr.startswith("lockctl: 'other:a job' is not free: held for ")
    assert done.stderr.endswith(f" {me}; {command}\n")
    done = lockctl(*words, 0.1)
    assert "'other:a job' was not free within 0.1s: held for " in done.stderr


def test_wait_says_what_to_do_when_the_daemon_ends(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    client.acquire("job")
    waiting = lockctl.start("wait", "job")
    while len(client.list_sessions()) < 2:
        pass
    lockd.stop()
    assert waiting.wait(30) == 69
    assert waiting.stderr is not None
    said = waiting.stderr.read()
    assert "connect again when `lockctl status` says that it runs" in said


def test_who_names_the_holder_of_a_name_in_any_lockspace(
    lockctl: Lockctl, client: Client
) -> None:
    client.create_lockspace("other", "memory")
    client.acquire("job", lockspace="other", reason="nightly")
    done = lockctl("who", "job")
    assert done.returncode == 0
    cells = done.stdout.rstrip("\n").split("\t")
    assert cells[:4] == ["other", "job", "the test", str(os.getpid())]
    assert (cells[7], cells[9]) == ("exclusive", "nightly")


def test_who_of_a_free_name_is_1(lockctl: Lockctl) -> None:
    done = lockctl("who", "job")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lockctl: nobody holds 'job'\n"


def test_who_finds_a_file_by_any_of_its_paths(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    disk.touch()
    link.symlink_to(disk)
    client.acquire(str(disk))
    (holder,) = json.loads(lockctl("who", "--json", link).stdout)["holders"]
    assert (holder["lockspace"], holder["resource"]) == ("direct", str(disk))
    done = lockctl("who", "./link", cwd=tmp_path)
    assert (done.returncode, done.stdout.split("\t")[0]) == (0, "direct")


def test_who_finds_a_file_by_its_hash(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    locks, disk = tmp_path / "locks", tmp_path / "disk.img"
    locks.mkdir()
    client.create_lockspace("hashed", "directory", str(locks))
    name = lockctl("lock-name", disk).stdout.strip()
    client.acquire(name, lockspace="hashed", label=str(disk))
    (holder,) = json.loads(lockctl("who", "--json", disk).stdout)["holders"]
    assert (holder["lockspace"], holder["resource"]) == ("hashed", name)
    assert holder["label"] == str(disk)


def test_run_locks_a_file_under_its_canonical_path(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    disk.touch()
    link.symlink_to(disk)
    client.acquire(str(disk))
    assert lockctl("run", "-n", link, "--", "true").returncode == 75


def test_path_relative_to_here_is_a_file_for_every_command(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    disk = tmp_path / "disk.img"
    disk.touch()
    grant = client.acquire(str(disk))
    for cwd, path in ((tmp_path, "./disk.img"), (tmp_path / "below", "../disk.img")):
        done = lockctl("run", "-n", path, "--", "true", cwd=cwd)
        assert done.returncode == 75
        assert lockctl("test", path, cwd=cwd).stdout == "held\n"
        shown = lockctl("show", path, cwd=cwd).stdout
        assert str(grant.fencing_token) in shown
        assert lockctl("who", path, cwd=cwd).returncode == 0
    # Without the dot it is a name, whatever there is.
    assert lockctl("test", "disk.img", cwd=tmp_path).stdout == "free\n"
    assert lockctl("test", "--lockspace", "default", "./disk.img").stdout == "free\n"


@pytest.mark.parametrize(
    "words",
    ["lock-name", "list --path", "show --lockspace direct", "show", "test", "who"],
)
def test_empty_name_is_refused(lockctl: Lockctl, sock: str, words: str) -> None:
    done = lockctl(*words.split(), "")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr in (
        "lockctl: the path is empty\n",
        "lockctl: the name is empty\n",
    )


def test_lock_name_is_the_hash_of_the_canonical_path(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    link.symlink_to(disk)
    expected = hashlib.sha256(os.fsencode(disk.resolve())).hexdigest()
    assert lockctl("lock-name", link).stdout == f"{expected}\n"


def test_sessions_lists_the_connections(lockctl: Lockctl, client: Client) -> None:
    client.acquire("job")
    lines = [line.split("\t") for line in lockctl("sessions").stdout.splitlines()]
    own = next(line for line in lines if line[0] == str(client.session))
    assert own[1:3] == ["the test", str(os.getpid())]
    assert own[8:] == ["1", "0"]
    shown = json.loads(lockctl("sessions", "--json").stdout)["sessions"]
    assert client.session in [session["session"] for session in shown]


def test_spaces_lists_the_built_in_lockspaces(lockctl: Lockctl) -> None:
    lines = [line.split("\t") for line in lockctl("spaces").stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["default", "memory", "-"],
        ["direct", "direct", "-"],
    ]
    shown = json.loads(lockctl("spaces", "--json").stdout)["lockspaces"]
    assert [space["name"] for space in shown] == ["default", "direct"]


@pytest.mark.parametrize(
    "command",
    [
        *("run", "acquire", "list", "show", "who", "test", "wait", "waiters"),
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
