"""What the tests of this folder share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.service_manager import ServiceManager
from support.wire_client import WireClient

Connect = Callable[[], WireClient]


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    directory = tmp_path / "locks"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def manager(tmp_path: Path, locks: Path) -> Iterator[ServiceManager]:
    place = tmp_path / "service"
    place.mkdir()
    manager = ServiceManager(
        place,
        f"""
        kill_grace = 1
        [lockspaces.files]
        kind = "directory"
        path = "{locks}"
        [lockspaces.killed]
        kind = "memory"
        on_disconnect = "kill"
        """,
    )
    manager.start()
    yield manager
    manager.close()


@pytest.fixture
def connect(manager: ServiceManager) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(WireClient(manager.socket))


@pytest.fixture
def client(connect: Connect) -> WireClient:
    return connect()


@pytest.fixture
def other(connect: Connect) -> WireClient:
    return connect()


def holders(client: WireClient, resource: str, lockspace: str = "default") -> list[int]:
    found = client.call("query", resource=resource, lockspace=lockspace)
    return [holder["session"] for holder in found["holders"]]
