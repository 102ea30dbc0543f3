"""Real lockctl processes against a real daemon."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.processes import LOCKER, Lockctl, Locker
from lockd import Client, connect
from lockd.ctl.act import reserve


@pytest.fixture
def client(sock: str) -> Iterator[Client]:
    with connect(sock, name="the test") as client:
        yield client


@pytest.fixture
def lockctl(sock: str) -> Iterator[Lockctl]:
    lockctl = Lockctl(sock)
    yield lockctl
    lockctl.end_all()


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    """The processes of reservations, which are ended whatever the test finds."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        reserve.end(pid)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk.img"
    disk.touch()
    return disk


@pytest.fixture
def locker() -> Iterator[Locker]:
    """Locks a file in another process, which knows nothing of lockd."""
    started: list[subprocess.Popen[str]] = []

    def lock(
        path: Path, kind: str, mode: str = "exclusive", start: int = 0, length: int = 1
    ) -> int:
        words = [str(path), kind, mode, str(start), str(length)]
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process.pid

    yield lock
    for process in started:
        process.communicate("")
