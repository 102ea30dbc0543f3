from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd import Client, connect
from support.daemon_process import DaemonProcess
from system.actors import Actor


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Boots no machine unless that is asked for: `make test-system`."""
    asked = any("booted" in argument for argument in config.args)
    return True if collection_path.name == "booted" and not asked else None


StartActor = Callable[..., Actor]


@pytest.fixture
def house(start_daemon: Callable[[str], DaemonProcess], locks: Path) -> DaemonProcess:
    """A daemon that serves a directory lockspace, too."""
    return start_daemon(f'[lockspaces.vms]\nkind = "directory"\npath = "{locks}"\n')


@pytest.fixture
def client(house: DaemonProcess) -> Iterator[Client]:
    with connect(house.socket, name="the test") as client:
        yield client


@pytest.fixture
def start_actor(house: DaemonProcess) -> Iterator[StartActor]:
    started: list[Actor] = []

    def start(name: str, pass_fds: tuple[int, ...] = ()) -> Actor:
        started.append(Actor(house.socket, name, pass_fds))
        return started[-1]

    yield start
    for actor in started:
        actor.kill()
