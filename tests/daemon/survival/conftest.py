"""What the tests of this folder share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.service_manager import ServiceManager
from support.wire_client import Connect, WireClient


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


def refuse_convert_of_removed(
    connect: Connect,
    locks: Path,
    begin_again: Callable[[], object],
    held: str,
    wanted: str,
) -> None:
    """Removes the file of a held lock, begins again, and converts the lock.

    A convert is refused at once, the lock is still held, and nobody else gets it before
    its release.
    """
    client, other = connect(), connect()
    token = client.acquire("a", lockspace="files", mode=held)["fencing_token"]
    (locks / "a").unlink()
    begin_again()
    asked = {"lockspace": "files", "resource": "a", "mode": wanted}
    for timeout in ({"timeout": 0}, {}):
        refusal = client.refusal("convert", **asked, **timeout)
        assert refusal.code == "io"
        assert "was exchanged or removed while locked" in refusal.sentence
    check = {"lockspace": "files", "resource": "a", "fencing_token": token}
    assert client.call("check", **check)["current"]
    assert other.refusal("acquire", **asked | {"timeout": 0}).code in ("busy", "io")
    client.call("release", lockspace="files", resource="a")
    assert other.acquire("a", lockspace="files")["fencing_token"] > token
