"""Who is taken in, and who is turned away because others have all sessions."""

import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import lockd
from daemon.clients.conftest import (
    Limited,
    check_limit,
    greeted,
    turned_away,
)
from lockd.daemon.clients.limits import unreserved_sessions
from lockd.daemon.config.config import Limits
from support.daemon_process import DaemonProcess
from support.places import TESTS
from support.rights import needs_root
from support.wire_client import (
    NOBODY,
    WireClient,
    connected_as,
    wait_for_sessions,
)


def greeted_soon(daemon: DaemonProcess) -> WireClient:
    """Connects as soon as the daemon has noticed that others have gone."""
    while True:
        client = WireClient(daemon.socket)
        with suppress(BrokenPipeError):  # it was turned away before it said anything
            client.send("hello", protocol=1, client="test")
        message = client.receive()
        assert message is not None
        if message[1] is not None:
            return client
        client.close()


def test_client_too_many_is_told_and_turned_away(limited: Limited) -> None:
    daemon = limited(sessions_per_user=2)
    with greeted(daemon) as first, greeted(daemon):
        check_limit(turned_away(WireClient(daemon.socket)), "sessions_per_user", 2)
        with pytest.raises(lockd.LimitError, match="sessions_per_user"):
            lockd.connect(str(daemon.socket))
        first.acquire("a")
    with greeted_soon(daemon) as client:
        wait_for_sessions(client, 1)
        with greeted(daemon) as another:
            another.acquire("a")


CROWD_IN_A_NAMESPACE = """
import sys
from support.wire_client import Refusal, WireClient
clients = []
for _ in range(9):
    client = WireClient(sys.argv[1])
    error, _ = client.answer(client.send("statistics") if len(clients) < 2 else None)
    print(error[1] if error else "in", flush=True)
    clients.append(client)
sys.stdin.read()
"""


def test_who_makes_a_namespace_has_no_more_sessions(limited: Limited) -> None:
    """SO_PEERCRED has the uid that made it, whatever it calls itself in there."""
    daemon = limited(sessions_per_user=3)
    try:
        subprocess.run(["unshare", "--user", "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("unshare(1) makes no user namespace here")
    command = ["unshare", "--user", sys.executable, "-c", CROWD_IN_A_NAMESPACE]
    with (
        greeted(daemon) as ours,
        subprocess.Popen(
            [*command, str(daemon.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        ) as crowd,
    ):
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        said = [crowd.stdout.readline() for _ in range(9)]
        assert said[:2] == ["in\n"] * 2
        assert all("(limits.sessions_per_user)" in line for line in said[2:])
        wait_for_sessions(ours, 3)
        crowd.stdin.close()
    with greeted_soon(daemon) as client:
        wait_for_sessions(client, 1)


@needs_root
def test_last_places_are_for_root_and_admins(limited: Limited) -> None:
    daemon = limited(sessions=20, admin_sessions=1)
    with ExitStack() as stack:

        def stranger() -> WireClient:
            client = connected_as(daemon.socket, NOBODY, NOBODY)
            return stack.enter_context(client)

        # An eighth is for root; the figure that they are told is the one that counts.
        ours = [stranger() for _ in range(18)]
        for client in ours:
            client.call("statistics")
        refusal = turned_away(stranger())
        assert refusal.sentence.startswith(
            "the limit of 18 is reached (limits.sessions, less 2 for root and the "
            "daemon's user): "
        )
        roots = [stack.enter_context(WireClient(daemon.socket)) for _ in range(2)]
        for client in roots:
            client.call("statistics")
        check_limit(turned_away(WireClient(daemon.socket)), "sessions", 20)


@pytest.mark.parametrize(
    ("sessions", "others"),
    [(1, 1), (7, 7), (8, 7), (20, 18), (128, 112), (4_096, 4_080)],
)
def test_few_sessions_are_not_all_for_root(sessions: int, others: int) -> None:
    assert unreserved_sessions(Limits(sessions=sessions)) == others


def test_admins_are_counted_apart(limited: Limited, tmp_path: Any) -> None:
    path = f"{tmp_path}/admin.sock"
    daemon = limited(f"admin_socket = '{path}'", sessions=1, admin_sessions=2)
    with greeted(daemon), WireClient(path) as admin, WireClient(path) as other:
        admin.call("statistics")
        other.call("statistics")
        check_limit(turned_away(WireClient(path)), "admin_sessions", 2)
        check_limit(turned_away(WireClient(daemon.socket)), "sessions", 1)
        other.close()
        wait_for_sessions(admin, 2)
        with WireClient(path) as another:
            another.call("statistics")
