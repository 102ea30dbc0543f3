from collections.abc import Iterator

import pytest

from lockd.client.threads import process
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


@pytest.fixture
def daemon(lockd: DaemonProcess) -> DaemonProcess:
    """The daemon behind `sock`; `lockd` is the library in these tests."""
    return lockd


@pytest.fixture(autouse=True)
def _own_connection(sock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connects this process to the daemon of the test, at its first use of a lock."""
    monkeypatch.setenv("LOCKD_SOCKET", sock)
    monkeypatch.setattr(process, "_connection", process.ProcessConnection())


@pytest.fixture
def watcher(sock: str) -> Iterator[WireClient]:
    """A connection that asks what the daemon knows."""
    with WireClient(sock) as client:
        yield client
