"""The programs of the page about other languages, as whoever copies them has them.

They run where their interpreter is; .ci/run installs all.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from lockd import Client, connect
from support.asking import ask_until
from support.daemon_process import DaemonProcess
from support.places import DOCS

PAGE = (DOCS / "how-to/other-languages.md").read_text()
PROGRAMS = {
    match[2]: match[1]
    for match in re.finditer(
        r"^```\w+\n((?:#![^\n]*\n)?(?:#|//) (lock\.\w+)\n.*?)^```$",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
}
NAME = "the nightly dump, naïve ☃"
OF_GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
"""Debian's packages, and nothing from elsewhere."""


class Language(NamedTuple):
    """How to run a program.

    Attributes:
        run: the words before its arguments; the first is the interpreter.
        check: words that succeed if all that it needs is installed.
        needs: what that is.
    """

    run: tuple[str, ...]
    check: tuple[str, ...]
    needs: str


LANGUAGES = {
    "lock.js": Language(
        ("node", "lock.js"),
        ("node", "-e", "require('@msgpack/msgpack')"),
        "npm install --global @msgpack/msgpack",
    ),
    "lock.rb": Language(
        ("ruby", "lock.rb"), ("ruby", "-rmsgpack", "-e", ""), "ruby-msgpack"
    ),
    "lock.pl": Language(
        ("perl", "lock.pl"),
        ("perl", "-MData::MessagePack::Stream", "-MData::MessagePack", "-e", ""),
        "libdata-messagepack-perl libdata-messagepack-stream-perl",
    ),
    "lock.go": Language(
        ("./lock",),
        ("go", "list", "github.com/vmihailenco/msgpack/v5"),
        "golang-go golang-github-vmihailenco-msgpack.v5-dev",
    ),
    "lock.sh": Language(("bash", "lock.sh"), ("socat", "-V"), "socat"),
    "lock.py": Language((sys.executable, "lock.py"), ("true",), ""),
}


def environment() -> dict[str, str]:
    env = {**os.environ, **OF_GO}
    if npm := shutil.which("npm"):
        found = subprocess.run(
            [npm, "root", "--global"], stdout=subprocess.PIPE, text=True, check=False
        )
        env["NODE_PATH"] = found.stdout.strip()
    return env


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module", params=LANGUAGES)
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Starts the program of a language; skips if something that it takes is missing."""
    language, place = LANGUAGES[request.param], tmp_path_factory.mktemp("program")
    env = environment() | {"GOCACHE": f"{place}/cache"}
    there = (
        shutil.which(language.check[0])
        and not subprocess.run(
            language.check, env=env, capture_output=True, check=False
        ).returncode
    )
    if not there:
        pytest.skip(f"takes {language.needs}")
    (place / request.param).write_text(PROGRAMS[request.param])
    if request.param == "lock.go":
        build = ["go", "build", "-o", "lock", "lock.go"]
        subprocess.run(build, env=env, cwd=place, check=True)

    def start(socket: Path, timeout: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*language.run, NAME, str(timeout)],
            env=env | {"LOCKD_SOCKET": str(socket)},
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose tokens need all bits of the integers of JavaScript."""
    daemon = DaemonProcess(tmp_path)
    daemon.state_dir.mkdir(mode=0o700)
    (daemon.state_dir / "epoch").write_text(f"3 {2**52}\n")
    daemon.start()
    with closing(daemon):
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with connect(str(daemon.socket), name="the test") as client:
        yield client


def wait_until_held(process: "subprocess.Popen[str]", client: Client) -> None:
    """Waits until a program has the lock, and checks what it prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    (holder,) = client.query(NAME)["holders"]
    token = holder["fencing_token"]
    assert token > 2**52
    shown = f"got {NAME}, fencing token {token}\n"
    if "lock.sh" in str(process.args):  # it does not look for the token
        shown = f"got {NAME}\n"
    assert line == shown


def test_each_program_of_the_page_is_run() -> None:
    assert PROGRAMS.keys() == LANGUAGES.keys()


def test_program_holds_the_lock_until_it_releases_it(
    program: Start, daemon: DaemonProcess, client: Client
) -> None:
    with program(daemon.socket, 10) as process:
        wait_until_held(process, client)
        out, err = process.communicate("\n")
    assert (process.returncode, out, err) == (0, "", "")
    # The shell only closes its connection.
    assert not ask_until(client, NAME, lambda x: not x["holders"])["waiters"]


def test_program_waits_in_line(
    program: Start, daemon: DaemonProcess, client: Client
) -> None:
    grant = client.acquire(NAME)
    with program(daemon.socket, 600) as process:
        ask_until(client, NAME, lambda x: x["waiter_count"])
        grant.release()
        wait_until_held(process, client)
        process.communicate("\n")
    assert process.returncode == 0


def test_program_prints_why_it_is_refused(
    program: Start, daemon: DaemonProcess, client: Client
) -> None:
    with (
        client.acquire(NAME, reason="nightly " * 60),
        program(daemon.socket, 0) as process,
    ):
        out, err = process.communicate("\n")
    assert (process.returncode, out) == (75, "")
    assert f"busy: '{NAME}' is held exclusively by the test (pid " in err
    assert err.endswith("ask with a timeout to wait in line\n")


def test_lock_of_a_killed_program_is_free(
    program: Start, daemon: DaemonProcess, client: Client
) -> None:
    with program(daemon.socket, 10) as process:
        wait_until_held(process, client)
        process.kill()
        client.acquire(NAME, timeout=30)


def test_program_says_that_no_daemon_is_there(program: Start, tmp_path: Path) -> None:
    with program(tmp_path / "nobody", 0) as process:
        out, err = process.communicate("\n")
    assert (process.returncode, out) == (75, "")
    assert err
