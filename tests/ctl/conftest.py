"""Real lockctl processes against a real daemon."""

from collections.abc import Iterator

import pytest

from ctl.processes import Lockctl
from lockd import Client, connect


@pytest.fixture
def client(sock: str) -> Iterator[Client]:
    with connect(sock, name="the test") as client:
        yield client


@pytest.fixture
def lockctl(sock: str) -> Iterator[Lockctl]:
    lockctl = Lockctl(sock)
    yield lockctl
    lockctl.end_all()
