"""The door of lockctl: every end is a status, and little is loaded."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ctl.processes import Lockctl
from lockd import Client
from lockd.ctl.main import main
from support.places import ROOT, SRC


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


@pytest.mark.parametrize("error", [RecursionError(), FileNotFoundError(2, "", "a")])
def test_defect_is_told_with_its_place_and_70(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """Not 1: that would be "held" for test, and "free" for who."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(click.Group, "invoke", lambda *_: fail())
    monkeypatch.setattr(gc, "disable", lambda: None)  # this process goes on
    monkeypatch.setattr(sys, "argv", ["lockctl", "spaces"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70
    assert "in fail" in capsys.readouterr().err


NEVER = {"anyio", "asyncio", "lockd.daemon", "msgspec", "textual", "trio"}
"""Rooms, here and of others, that no command of lockctl needs but `top`."""

NOT_TO_RUN = NEVER | {
    *("click", "ctypes", "inspect", "json", "locale", "re", "rich", "subprocess"),
    *("enum", "signal", "socket", "threading", "typing", "warnings", "weakref"),
    *("lockd.ctl.commands", "lockd.ctl.line", "lockd.ctl.look", "lockd.ctl.render"),
    *("lockd.client.blocking", "lockd.client.tasks"),
}
"""Rooms that `lockctl run` with a plain command line does not need."""

LAUNCHER = (ROOT / "tools" / "launcher.in").read_text().partition("\n")[2]


def loaded_by(*args: str, socket: str, status: int = 0) -> set[str]:
    """Executes lockctl as it is installed. Returns all modules that it has loaded."""
    packages = Path(click.__file__).parents[1]
    script = LAUNCHER.replace("@libdir@", SRC).replace("@command@", "lockctl")
    script = f"import sys\nsys.path.append({str(packages)!r})\n{script}"
    done = subprocess.run(
        [sys.executable, "-IS", "-X", "importtime", "-c", script, *args],
        env={**os.environ, "LOCKD_SOCKET": socket},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


def rooms_of(modules: set[str]) -> set[str]:
    """Returns modules and all that they are in."""
    parts = [module.split(".") for module in modules]
    return {".".join(x[:depth]) for x in parts for depth in range(1, len(x) + 1)}


@pytest.mark.parametrize(
    "line",
    ["job -- true", "-n -s job other -- true", "--slots 4 --wait=1 job -- true"],
)
def test_run_loads_nothing_that_it_does_not_need(sock: str, line: str) -> None:
    loaded = rooms_of(loaded_by("run", *line.split(), socket=sock))
    assert "lockd.ctl.run" in loaded
    assert sorted(loaded & NOT_TO_RUN) == []


@pytest.mark.parametrize(
    ("line", "more", "status"),
    [
        ("list", {"json", "rich"}, 0),
        ("list --json", {"rich"}, 0),
        ("who job", {"json", "rich"}, 1),
        ("test job", {"json", "rich"}, 0),
        ("show job", {"json", "rich"}, 0),
        ("status", {"json", "rich"}, 0),
        ("acquire job --owner-pid 1", {"json", "rich"}, 0),
        ("spaces", {"json", "rich"}, 0),
        ("run -h", {"json", "rich", "lockd.client"}, 0),
    ],
)
def test_command_loads_nothing_that_it_does_not_need(
    sock: str, line: str, more: set[str], status: int
) -> None:
    loaded = rooms_of(loaded_by(*line.split(), socket=sock, status=status))
    assert sorted(loaded & (NEVER | more)) == []
