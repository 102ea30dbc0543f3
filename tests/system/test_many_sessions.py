"""What is long to tell is no reason to lose anything."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from conftest import StartDaemon
from lockd import Client, connect
from support.daemon_process import DaemonProcess

MANY = 1_100


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_listing_more_sessions_than_a_request_may_have_elements(
    start_daemon: StartDaemon, enough_descriptors: None
) -> None:
    lockd = start_daemon(f"[limits]\nsessions_per_user = {MANY + 1}\n")
    with ExitStack() as stack, connected(lockd) as client:
        grant = client.acquire("precious")
        for _ in range(MANY):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(lockd.socket))
        while len(client.list_sessions()) < MANY + 1:
            pass  # the last few are just being taken in
        assert grant.held


def connected(daemon: DaemonProcess) -> Client:
    return connect(str(daemon.socket))
