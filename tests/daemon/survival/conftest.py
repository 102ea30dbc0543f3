"""What the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service_manager import ServiceManager
from support.wire_client import WireClient


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
def address(manager: ServiceManager) -> Path:
    return manager.socket


def holders(client: WireClient, resource: str, lockspace: str = "default") -> list[int]:
    found = client.call("query", resource=resource, lockspace=lockspace)
    return [holder["session"] for holder in found["holders"]]
