"""What the tests of this folder share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.wire_client import (
    Refusal,
    WireClient,
    connected_as_nobody,
)

Limited = Callable[..., DaemonProcess]


@pytest.fixture
def limited(start_daemon: StartDaemon) -> Limited:
    """Starts a daemon with some limits."""

    def start(more: str = "", **limits: float) -> DaemonProcess:
        lines = [f"{key} = {value}" for key, value in limits.items()]
        return start_daemon("\n".join([more, "[limits]", *lines]))

    return start


def greeted(daemon: DaemonProcess) -> WireClient:
    client = WireClient(daemon.socket)
    client.call("hello", protocol=1, client="test")
    return client


def check_limit(refusal: Refusal, key: str, most: float) -> None:
    assert refusal.code == "limit"
    said, _, step = refusal.sentence.partition(": ")
    assert said == f"the limit of {most} is reached (limits.{key})"
    assert step.endswith(", or have an admin raise it")
    assert refusal.facts in (None, {"limit": key, "most": most})


def turned_away(client: WireClient) -> Refusal:
    """Returns what a client was told before its connection ended."""
    (message,) = client.rest()
    client.close()
    assert message[:2] == [1, None]
    return Refusal(message[2])


@pytest.fixture(scope="module")
def nobodys(common: DaemonProcess) -> Path:
    return common.socket


@pytest.fixture
def nobody(nobodys: Path, connect: Callable[[], WireClient]) -> Iterator[WireClient]:
    """A client of uid 65534."""
    connect()
    with connected_as_nobody(nobodys) as client:
        yield client
