"""What `--json` prints has the types in `ctl.schema`, and its page names them."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import click
import msgspec
import pytest

from ctl import schema
from ctl.processes import Lockctl, Locker, end_input, line_of
from lockd import Client
from lockd.ctl.commands import lockctl as lockctl_command
from lockd.ctl.render import VERSION
from support.asking import ask_until
from support.places import DOCS

PAGE = (DOCS / "reference/json.md").read_text()


def understood(command: str, text: str) -> Any:
    found = msgspec.json.decode(text, type=schema.COMMANDS[command])
    # Nothing is lost on the way: every field that is printed has its type.
    printed = json.loads(text)
    assert printed["version"] == VERSION
    return found


def test_every_command_that_prints_json_has_a_type() -> None:
    context = click.Context(lockctl_command)
    options = {
        name: {option for x in command.params for option in x.opts}
        for name in lockctl_command.list_commands(context)
        if (command := lockctl_command.get_command(context, name))
    }
    typed = {name for name, of in options.items() if {"--json", "--status-fd"} & of}
    assert typed == schema.COMMANDS.keys()
    # What has none is named, too.
    for name in options.keys() - typed:
        assert f"`{name}`" in PAGE.partition("\n- ")[0]


@pytest.mark.parametrize("name", ["free", "taken"])
def test_how_a_run_ended_has_its_type(
    lockctl: Lockctl, client: Client, name: str
) -> None:
    client.acquire("taken")
    reader, writer = os.pipe()
    words = ("-n", "--status-fd", writer, name, "--", "true")
    done = lockctl("run", *words, pass_fds=[writer])
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        found = understood("run", file.read())
    assert found.exit_status == done.returncode
    assert found.outcome == ("exited" if name == "free" else "busy")


def test_what_is_printed_has_its_type(
    lockctl: Lockctl,
    client: Client,
    disk: Path,
    process: subprocess.Popen[bytes],
    locker: Locker,
) -> None:
    client.release(client.acquire("job"))
    grant = client.acquire("job", reason="nightly", label="/a")
    client.acquire(str(disk))
    locker(disk, "FLOCK")
    other = disk.with_name("other.img")
    other.touch()
    locker(other, "POSIX")
    waiting = lockctl.start("run", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    assert lockctl("run", "-n", "job", "--", "true").returncode == 75
    token = str(grant.fencing_token)
    sessions = {x["name"]: x["session"] for x in client.list_sessions()}
    commands: tuple[list[Any], ...] = (
        ["list"],
        ["list", "--waiting"],
        ["show", "job"],
        ["show", "nobody's"],
        ["who", "job"],
        ["who", disk],
        ["show", other],
        ["test", "job"],
        ["test", other],
        ["waiters"],
        ["graph"],
        ["sessions"],
        ["spaces"],
        ["status"],
        ["acquire", "theirs", "--owner-pid", process.pid],
        ["release", "theirs"],
        ["break", token, "--reason", "test", "--yes"],
        ["disconnect", sessions["cat"], "--reason", "test", "--yes"],
        ["list"],
        ["graph"],
    )
    for command, *arguments in commands:
        done = lockctl(command, "--json", *arguments)
        assert done.stdout, done.stderr
        understood(command, done.stdout)
    waiting.wait()


def test_lines_of_watch_have_their_type(lockctl: Lockctl, client: Client) -> None:
    watcher = lockctl.start("watch", "--json")
    first = understood("watch", line_of(watcher))
    assert (first.event, first.epoch, first.missed) == ("watching", 1, False)
    client.release(client.acquire("job"))
    granted, released = (understood("watch", line_of(watcher)) for _ in range(2))
    assert (granted.event, granted.resource, granted.pid) == (
        "granted",
        "job",
        os.getpid(),
    )
    assert (released.event, released.cause) == ("released", "released")


def test_list_as_json_is_written_as_it_comes(lockctl: Lockctl, client: Client) -> None:
    """A reader that has seen enough ends a list of any length."""
    names = [f"{number:0200}" for number in range(900)]
    for start in range(0, 900, 60):
        client.acquire_all(names[start : start + 60])
    process = lockctl.start("list", "--json")
    assert process.stdout is not None
    assert process.stdout.read(12) == '{"version": '
    process.stdout.close()
    process.stdout = None
    assert process.wait(30) == -13
    assert process.stdin is not None
    end_input(process)


def types_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Goes through a type and all that it is made of."""
    yield kind
    for hint in get_type_hints(kind).values():
        for inner in re.findall(r"ctl\.schema\.(\w+)", repr(hint)):
            yield from types_in(getattr(schema, inner))


def test_page_names_every_command_and_every_field() -> None:
    for command, kind in schema.COMMANDS.items():
        assert f"`{command}`" in PAGE
        for struct in types_in(kind):
            for found in msgspec.structs.fields(struct):
                assert f"`{found.encode_name}`" in PAGE, (command, found.encode_name)
    assert f"version {VERSION}" in PAGE
