"""Real lockctl processes against a real daemon."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.processes import Daemon, Lockctl
from lockd import Client, connect


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    directory = tmp_path / "lockd"
    directory.mkdir()
    daemon = Daemon(directory)
    try:
        daemon.wait_until_it_serves()
        yield daemon
    finally:
        daemon.stop(signal.SIGKILL)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with connect(daemon.socket, name="the test") as client:
        yield client


@pytest.fixture
def lockctl(daemon: Daemon) -> Iterator[Lockctl]:
    lockctl = Lockctl(daemon.socket)
    yield lockctl
    lockctl.end_all()
