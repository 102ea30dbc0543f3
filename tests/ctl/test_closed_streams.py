"""Standard streams that are closed: nothing of lockd takes their places."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.processes import LIMIT, LOCKCTL, SRC, Lockctl

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
