"""What lockctl does where its answer cannot be written, or not as it stands."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.processes import LIMIT, LOCKCTL, Lockctl
from lockd import Client
from lockd.ctl.render import show_json
from support.places import SRC

NO_SPACE = (
    "lockctl: cannot write the answer to standard output: No space left on device"
)


def without_room(lockctl: Lockctl, *words: str) -> tuple[int, list[str]]:
    """Runs lockctl with standard output on a full device."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*LOCKCTL, *words],
            env=lockctl.env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    return done.returncode, done.stderr.splitlines()


def without(lockctl: Lockctl, descriptor: int, *words: str) -> Any:
    """Runs lockctl with one of its streams closed."""
    shell = f'exec "$@" {descriptor}>&-'
    return subprocess.run(
        ["sh", "-c", shell, "sh", *LOCKCTL, *words],
        env=lockctl.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        "list", "list --json", "show job", "who job", "test job", "test free",
        "waiters --json", "sessions", "spaces", "status --json", "lock-name /a",
        "watch", "hold other", "completion bash",
    ],
)  # fmt: skip
def test_answer_that_cannot_be_written_is_74(
    lockctl: Lockctl, client: Client, words: str
) -> None:
    client.acquire("job")
    assert without_room(lockctl, *words.split()) == (74, [NO_SPACE])


def test_lock_that_was_taken_is_told_although_its_token_cannot_be(
    lockctl: Lockctl, client: Client
) -> None:
    pid = os.getpid()
    said_of_lock = f"lockctl: process {pid} holds 'job' until it ends"
    words = ("acquire", "--owner-pid", str(pid), "job")
    status, said = without_room(lockctl, *words)
    assert (status, said) == (74, [said_of_lock, NO_SPACE])
    assert client.query("job")["holders"][0]["pid"] == pid


def test_refusal_has_its_own_status_whatever_can_be_written(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("job")
    status, said = without_room(lockctl, "list", "nowhere")
    assert (status, len(said)) == (64, 1)
    for words in (("run", "-n", "job", "--", "true"), ("show", "--nothing")):
        unheard = without(lockctl, 2, *words)
        assert unheard.returncode == (75 if words[0] == "run" else 64)
        assert unheard.stdout == ""


@pytest.mark.parametrize("words", ["list", "status", "test free", "graph", "who x"])
def test_closed_standard_output_is_74_if_there_is_something_to_tell(
    lockctl: Lockctl, client: Client, words: str
) -> None:
    client.acquire("job")
    done = without(lockctl, 1, *words.split())
    if words in ("graph", "who x"):
        assert done.returncode == (0 if words == "graph" else 1)
    else:
        assert done.returncode == 74
        assert done.stderr.startswith("lockctl: cannot write the answer to ")
        assert len(done.stderr.splitlines()) == 1


def test_command_runs_without_standard_output(lockctl: Lockctl, sock: str) -> None:
    done = without(lockctl, 1, "run", "job", "--", "sh", "-c", "test ! -e /dev/fd/1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_an_encoding_lacks_is_escaped(
    lockctl: Lockctl, client: Client, encoding: str
) -> None:
    name = "b\xe4r-熊-🐻"
    client.acquire(name)
    lockctl.env["PYTHONIOENCODING"] = encoding
    listed = lockctl("list", encoding=encoding)
    assert listed.returncode == 0
    assert "r-\\u718a-\\U0001f43b" in listed.stdout
    # JSON knows no such escapes, but others.
    told = json.loads(lockctl("list", "--json", encoding=encoding).stdout)
    assert told["resources"][0]["resource"] == name


@pytest.mark.parametrize("command", ["list", "waiters"])
def test_refusal_prints_no_json(lockctl: Lockctl, sock: str, command: str) -> None:
    done = lockctl(command, "nowhere", "--json")
    assert (done.returncode, done.stdout) == (64, "")


def test_listing_that_breaks_off_prints_no_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pages() -> Iterator[int]:
        yield 1
        raise ConnectionError

    with pytest.raises(ConnectionError):
        show_json(resources=pages())
    assert capsys.readouterr().out == ""
    show_json(resources=iter([1, 2]), name="a")
    assert capsys.readouterr().out == (
        '{"version": 1, "resources": [1, 2], "name": "a"}\n'
    )


CLOSED = [
    subset for count in (1, 2, 3) for subset in itertools.combinations(range(3), count)
]


# Looked at before anything is opened; told in a file, as there may be no stream.
LOOK = """
import os, sys
def there(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
found = [fd for fd in range(3) if there(fd)]
with open(sys.argv[1], "w") as file:
    print(*found, file=file)
"""


CONNECT = """
import os, socket, sys
import anyio
import lockd
async def main():
    async with lockd.aio.connect() as client:
        await client.acquire("b")
        return look()
def look():
    return [fd for fd in range(3) if leads_to_lockd(fd)]
def leads_to_lockd(fd):
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.getpeername() == os.environ["LOCKD_SOCKET"]
    except OSError:
        return False
for fd in map(int, sys.argv[2:]):
    os.close(fd)
with lockd.connect() as client:
    client.acquire("a")
    found = look()
found += anyio.run(main)
with open(sys.argv[1], "w") as file:
    print(*found, file=file)
"""


def closing(closed: tuple[int, ...]) -> list[str]:
    """Returns the words that run a command with some of its streams closed."""
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    return ["sh", "-c", f'exec "$@" {redirections}', "sh"]


@pytest.mark.parametrize("option", [[], ["-F"], ["-o"]])
@pytest.mark.parametrize("closed", CLOSED)
def test_streams_that_are_closed_are_closed_for_the_command(
    lockctl: Lockctl, tmp_path: Path, closed: tuple[int, ...], option: list[str]
) -> None:
    told = tmp_path / "told"
    words = ["run", *option, "job", "--", sys.executable, "-c", LOOK, str(told)]
    done = subprocess.run(
        [*closing(closed), *LOCKCTL, *words],
        env=lockctl.env,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0
    open_ones = [str(fd) for fd in range(3) if fd not in closed]
    assert told.read_text().split() == open_ones


@pytest.mark.parametrize("closed", CLOSED)
def test_connection_of_a_program_takes_no_place_of_a_stream(
    lockctl: Lockctl, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    told = tmp_path / "told"
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, told, *map(str, closed)],
        env=lockctl.env | {"PYTHONPATH": SRC},
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0
    assert told.read_text() == "\n"
