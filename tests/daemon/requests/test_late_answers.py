"""Requests whose answer does not come at once, whatever it waits for.

Until then the msgid is in use (protocol 2.1), the request is one of its user's, and a
client that asks no more is not done with (protocol 1.1).
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from daemon.served import Served
from lockd.daemon.clients.access import rights_of
from lockd.daemon.config.config import LockspaceConfig
from lockd.lockspaces.memory import MemoryLockspace
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_sessions

MSGID = 77


class SlowLockspace(MemoryLockspace):
    """One whose files lie on a file system that answers when it is told to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.answers = threading.Event()

    def anchor_is_slow(self, resource: str) -> bool:
        return True

    def create_resource(self, resource: str) -> None:
        self.answers.wait()

    delete_resource = create_resource


class Place:
    """A daemon in which each of the things happens only when a test says so."""

    def __init__(self, served: Served, other: WireClient) -> None:
        self.served = served
        self.other = other
        self.slow = SlowLockspace("slow")
        served.call(self._add_slow)

    def _add_slow(self) -> None:
        service = self.served.service
        service.parts.runtime.add_lockspace(self.slow)
        service.parts.access.set_rights("slow", rights_of(LockspaceConfig("memory")))

    def release(self) -> None:
        for name in ("a", "b"):
            self.other.call("release", resource=name)

    def end_reload(self) -> None:
        self.served.call(self._end_reload)

    def _end_reload(self) -> None:
        reloads, server = (
            self.served.service.parts.reloads,
            self.served.service.parts.server,
        )
        reloads.answer(reloads.waiting(), None)
        server.end_turn()


class Late(NamedTuple):
    """A request that has to wait, and what ends its wait.

    Attributes:
        is_held: whether its client holds something then.
    """

    method: str
    params: dict[str, Any]
    end: Callable[[Place], None]
    is_held: bool = False


IN_SLOW = {"lockspace": "slow", "resource": "x"}

LATE = {
    "a lock": Late("acquire", {"resource": "a"}, Place.release, is_held=True),
    "several locks": Late(
        "acquire", {"resources": ["a", "b"]}, Place.release, is_held=True
    ),
    "a reload": Late("reload", {}, Place.end_reload),
    "a new file": Late("create_resource", IN_SLOW, lambda x: x.slow.answers.set()),
    "no file": Late("delete_resource", IN_SLOW, lambda x: x.slow.answers.set()),
}


@pytest.fixture(params=LATE)
def late(request: pytest.FixtureRequest) -> Late:
    return LATE[request.param]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    with Served(tmp_path, kept=False) as served, WireClient(served.socket) as other:
        for name in ("a", "b"):
            other.acquire(name)
        place = Place(served, other)
        yield place
        place.slow.answers.set()


@pytest.fixture
def address(place: Place) -> Path:
    return place.served.socket


def ask(client: WireClient, late: Late, msgid: int = MSGID) -> None:
    client.send_message([0, msgid, late.method, [late.params]])


@pytest.mark.interpreted
def test_client_that_asks_no_more_gets_the_answer(
    late: Late, place: Place, client: WireClient
) -> None:
    ask(client, late)
    client.socket.shutdown(socket.SHUT_WR)
    # Whoever is answered now was asked after that.
    place.other.call("statistics")
    late.end(place)
    error, _ = client.answer(MSGID)
    assert error is None
    if not late.is_held:
        assert client.rest() == []


@pytest.mark.interpreted
def test_msgid_is_in_use_until_the_answer(
    late: Late, place: Place, client: WireClient
) -> None:
    ask(client, late)
    for again in LATE.values():
        ask(client, again)
        refusal = client.refused(MSGID)
        assert (refusal.code, refusal.sentence.split(":")[0]) == (
            "invalid",
            "another request with this msgid has no answer yet",
        )
    late.end(place)
    assert client.answer(MSGID)[0] is None
    client.send_message([0, MSGID, "statistics", [{}]])
    assert client.result(MSGID)["sessions"] == 2


@pytest.mark.interpreted
def test_each_is_one_of_the_requests_of_its_user(
    place: Place, client: WireClient
) -> None:
    keeper, most = place.served.service.parts.limits, len(LATE)
    keeper.limits = replace(keeper.limits, requests_per_user=most)

    def used() -> int | None:
        return keeper.usage()["requests_per_user"]["used"]

    with ExitStack() as stack:
        for late in LATE.values():
            one = stack.enter_context(WireClient(place.served.socket))
            ask(one, late)
            # Answered after that was taken.
            one.call("statistics")
        assert place.served.call(used) == most
        for late in LATE.values():
            ask(client, late)
            refusal = client.refused(MSGID)
            assert refusal.code == "limit", late
            assert "limits.requests_per_user" in refusal.sentence
    wait_for_sessions(client, 2)
    assert place.served.call(used) == 0
    place.slow.answers.set()


def test_half_closed_client_is_answered_by_the_program_that_follows(
    lockd: DaemonProcess,
) -> None:
    with WireClient(lockd.socket) as client:
        client.send("reload")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == [[1, 1, None, None]]


def test_reload_again_with_its_msgid_is_refused_and_the_first_is_answered(
    lockd: DaemonProcess,
) -> None:
    with WireClient(lockd.socket) as client:
        for method, params in (
            ("reload", {}),
            ("acquire", {"resource": "a"}),
            ("reload", {}),
        ):
            client.send_message([0, 5, method, [params]])
        answers = [client.answer(5) for _ in range(3)]
    assert [error and error[1].split(":")[0] for error, _ in answers] == [
        "invalid",
        "invalid",
        None,
    ]
