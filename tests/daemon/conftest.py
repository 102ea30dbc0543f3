import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from support.daemon_process import DaemonProcess
from support.nursery import SCRIPTS
from support.places import TESTS
from support.wire_client import WireClient, wait_for_sessions

PRELUDE = """
import os, signal, sys
from support.nursery import SCRIPTS
from support.wire_client import WireClient
def ready(word="ready"):
    print(word, flush=True)
def connect():
    return WireClient(sys.argv[1])
"""

Connect = Callable[[], WireClient]
StartChild = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon for the tests of one module that leave it as they found it."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("lockd"))
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def connect(common: DaemonProcess) -> Iterator[Connect]:
    """Connects clients to the common daemon, which has forgotten all of them after."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(WireClient(common.socket))
    with WireClient(common.socket) as last:
        wait_for_sessions(last, 1)
        assert last.call("statistics")["resources"] == 0


@pytest.fixture
def client(connect: Connect) -> WireClient:
    return connect()


@pytest.fixture
def other(connect: Connect) -> WireClient:
    return connect()


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
