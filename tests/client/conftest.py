from collections.abc import Iterator

import pytest

from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


@pytest.fixture
def daemon(lockd: DaemonProcess) -> DaemonProcess:
    """The daemon behind `sock`; `lockd` is the library in these tests."""
    return lockd


@pytest.fixture
def watcher(sock: str) -> Iterator[WireClient]:
    """A connection that asks what the daemon knows."""
    with WireClient(sock) as client:
        yield client
