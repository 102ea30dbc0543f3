"""`lockctl list`, `sessions`, `spaces`: tables on a terminal, tabs when piped, JSON."""

import json
import os
from pathlib import Path
from threading import Thread

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client, connect
from support.asking import ask_until


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


def test_list_is_a_table_on_a_terminal(lockctl: Lockctl, client: Client) -> None:
    client.acquire("a")
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert "LOCKSPACE" in terminal.shown
    assert "the test" in terminal.shown
    assert "\t" not in terminal.shown


def test_list_as_json_has_the_shape_of_the_protocol(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("a")
    (resource,) = json.loads(lockctl("list", "--json").stdout)["resources"]
    assert (resource["lockspace"], resource["resource"]) == ("default", "a")
    assert resource["holders"][0]["pid"] == os.getpid()
    assert (resource["holder_count"], resource["waiter_count"]) == (1, 0)


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
