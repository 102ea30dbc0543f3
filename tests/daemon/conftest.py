import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.daemon_process import DaemonProcess
from support.nursery import SCRIPTS
from support.places import TESTS
from support.wire_client import Connect, WireClient, wait_for_sessions

PRELUDE = """
import os, signal, sys
from support.nursery import SCRIPTS
from support.wire_client import WireClient
def ready(word="ready"):
    print(word, flush=True)
def connect():
    return WireClient(sys.argv[1])
"""

StartChild = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon for the tests of one module that leave it as they found it."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("lockd"))
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def address(common: DaemonProcess) -> Iterator[Path]:
    """The socket of the common daemon, which has forgotten all clients afterwards.

    Where the tests of a folder, or of a module, have another daemon, they say so here.
    """
    yield common.socket
    with WireClient(common.socket) as last:
        wait_for_sessions(last, 1)
        assert last.call("statistics")["resources"] == 0


@pytest.fixture
def connect(address: Path) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(WireClient(address))


@pytest.fixture
def client(connect: Connect) -> WireClient:
    return connect()


@pytest.fixture
def other(connect: Connect) -> WireClient:
    return connect()


def register(
    client: WireClient, pid: int | None = None, **more: object
) -> dict[str, Any]:
    owner: dict[str, object] = {"name": "vm"} | ({"pid": pid} if pid else {})
    result = client.call("register", owner=owner, **more)["owner"]
    assert isinstance(result, dict)
    return result


@pytest.fixture
def start_child() -> Iterator[StartChild]:
    """Starts client processes from a script, and waits until each is ready."""
    with ExitStack() as stack:

        def start(daemon: DaemonProcess, script: str) -> subprocess.Popen[str]:
            child = SCRIPTS.popen(
                [sys.executable, "-c", PRELUDE + script, str(daemon.socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(TESTS)},
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            return child

        yield start
