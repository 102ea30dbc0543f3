"""Each part runs with what its extra installs, and says what it lacks without it."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import runtime_requirements
from support.places import SRC

RUN = """
import sys
sys.path[:0] = {path!r}
import runpy
sys.argv = {argv!r}
if {module!r}:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
else:
    exec({argv!r}[1])
"""


class Environment:
    """An environment with lockd and what some of its extras require, and no more."""

    def __init__(self, place: Path, *extras: str) -> None:
        self.place = place
        place.mkdir()
        for name in runtime_requirements.needed("lockd", set(extras), set()):
            if name == "lockd":
                continue
            package = metadata.distribution(name)
            for top in {file.parts[0] for file in package.files or ()} - {".."}:
                found = Path(str(package.locate_file(top)))
                if found.exists() and not (place / top).exists():
                    (place / top).symlink_to(found)

    def run(self, *words: str, module: str = "") -> "subprocess.CompletedProcess[str]":
        """Runs a script, or a module of the source with these words."""
        script = RUN.format(
            path=[SRC, str(self.place)], argv=["it", *words], module=module
        )
        command = [sys.executable, "-ISc", script]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def lockctl(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.run(*words, module="lockd")


@pytest.fixture
def client_alone(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "packages")


LOCKS = """
import lockd
with lockd.connect({socket!r}) as client, client.lock("backup") as lock:
    print(lock.fencing_token > 0)
"""


def test_client_for_threads_requires_msgpack_alone(
    client_alone: Environment, sock: str
) -> None:
    packages = {x.name.partition("-")[0] for x in client_alone.place.iterdir()}
    assert packages == {"msgpack"}
    done = client_alone.run(LOCKS.format(socket=sock))
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_plain_run_requires_no_part(client_alone: Environment, sock: str) -> None:
    run = "--socket", sock, "run", "backup", "--", "echo", "it ran"
    done = client_alone.lockctl(*run)
    assert (done.stdout, done.stderr, done.returncode) == ("it ran\n", "", 0)


def test_lockctl_says_what_to_install(client_alone: Environment) -> None:
    done = client_alone.lockctl("list")
    assert done.returncode == 69
    assert done.stderr == (
        "lockctl: this command line needs the Python package click, which is not "
        "installed: install it with `pip install 'lockd[cli]'`\n"
    )


DAEMON = "from lockd.__main__ import lockd; lockd()"


def test_daemon_says_what_to_install(client_alone: Environment) -> None:
    done = client_alone.run(DAEMON)
    assert done.returncode == 1
    assert done.stderr.startswith("lockd: the daemon needs the Python package ")
    assert done.stderr.endswith(
        ", which is not installed: install it with `pip install 'lockd[daemon]'`\n"
    )


def test_aio_says_what_to_install(client_alone: Environment) -> None:
    script = "import lockd\ntry:\n lockd.aio\nexcept ImportError as e: print(e)"
    assert client_alone.run(script).stdout == (
        "lockd.aio needs the Python package anyio, which is not installed: "
        "install it with `pip install 'lockd[aio]'`\n"
    )


def test_broken_installation_is_not_taken_for_a_missing_part(
    client_alone: Environment,
) -> None:
    script = (
        "import sys; sys.modules['lockd.client.aio'] = None\nimport lockd; lockd.aio"
    )
    error = client_alone.run(script).stderr.splitlines()[-1]
    assert error.startswith("ModuleNotFoundError: ")


ASYNC = """
import asyncio, lockd.aio
async def main():
    async with lockd.aio.connect({socket!r}) as client, client.hold("backup") as grant:
        print(grant.fencing_token > 0)
asyncio.run(main())
"""


def test_extra_aio_is_enough(tmp_path: Path, sock: str) -> None:
    done = Environment(tmp_path / "p", "aio").run(ASYNC.format(socket=sock))
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_extra_filelock_is_enough(tmp_path: Path, sock: str) -> None:
    script = """
import os, sys, lockd
os.environ["LOCKD_SOCKET"] = {socket!r}
with lockd.FileLock("a.lock") as lock:
    print(lock.is_locked)
"""
    done = Environment(tmp_path / "p", "filelock").run(script.format(socket=sock))
    assert (done.stdout, done.stderr) == ("True\n", "")
    missing = Environment(tmp_path / "q").run("import lockd; lockd.FileLock")
    assert "lockd.FileLock needs the Python package filelock" in missing.stderr
    assert "pip install 'lockd[filelock]'" in missing.stderr


def test_extra_tooz_is_enough(tmp_path: Path) -> None:
    script = "import lockd.compat.tooz as it; print(it.LockdDriver.__name__)"
    assert Environment(tmp_path / "p", "tooz").run(script).stdout == "LockdDriver\n"
    missing = Environment(tmp_path / "q").run(script)
    assert "pip install 'lockd[tooz]'" in missing.stderr


def test_extra_cli_is_enough_for_all_but_top(tmp_path: Path, sock: str) -> None:
    cli = Environment(tmp_path / "p", "cli")
    status = cli.lockctl("--socket", sock, "status")
    assert (status.returncode, status.stderr) == (0, "")
    commands = "from lockd.ctl.commands import lockctl; print(*lockctl.commands)"
    for name in cli.run(commands).stdout.split():
        shown = cli.lockctl(name, "--help")
        assert (shown.returncode, shown.stderr) == (0, ""), name


def test_extra_top_is_enough_for_its_screen(tmp_path: Path) -> None:
    script = "import lockd.ctl.top.app as app; print(app.Top.__name__)"
    assert Environment(tmp_path / "p", "top").run(script).stdout == "Top\n"
    missing = Environment(tmp_path / "q", "cli")
    script = "from lockd.ctl.top.command import _load; _load()"
    assert "pip install 'lockd[top]'" in missing.run(script).stderr


def test_extra_daemon_is_enough(tmp_path: Path) -> None:
    script = "import sys; sys.argv = ['lockd', '--version']\n" + DAEMON
    done = Environment(tmp_path / "p", "daemon").run(script)
    assert done.stdout.startswith("lockd ")
