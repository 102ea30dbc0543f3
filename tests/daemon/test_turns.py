"""One user's share of the loop, and what becomes of who wants more."""

import os
import signal
from contextlib import ExitStack

import msgpack
import pytest
import trio
from trio.testing import MockClock

from daemon_process import DaemonProcess
from lockd.daemon.clients.shares import REST, SHARE, Turns
from wire_client import NOBODY, WireClient, connected_as, wait_for_sessions

GREEDY, OTHER = 1_000, 2_000


@pytest.fixture
async def turns(mock_clock: MockClock) -> Turns:
    return Turns(lambda: True)


async def spend(turns: Turns, clock: MockClock, seconds: float) -> None:
    began = trio.current_time()
    clock.jump(seconds)
    turns.charge(GREEDY, began)


async def test_user_has_time_until_its_share_is_spent(
    turns: Turns, mock_clock: MockClock
) -> None:
    turns.begin()
    await spend(turns, mock_clock, SHARE / 2)
    assert turns.has_time(GREEDY)
    await spend(turns, mock_clock, SHARE)
    assert not turns.has_time(GREEDY)
    assert turns.has_time(OTHER)


async def test_who_wanted_more_rests_for_a_while(
    turns: Turns, mock_clock: MockClock
) -> None:
    turns.begin()
    await spend(turns, mock_clock, 2 * SHARE)
    assert not turns.rests(GREEDY)
    assert not turns.has_time(GREEDY)
    assert turns.rests(GREEDY)
    assert turns.deadline == trio.current_time() + REST
    mock_clock.jump(REST / 2)
    turns.begin()
    assert not turns.has_time(GREEDY)
    mock_clock.jump(REST)
    turns.begin()
    assert turns.has_time(GREEDY)
    assert turns.deadline == float("inf")


async def test_who_is_alone_never_rests(mock_clock: MockClock) -> None:
    turns = Turns(lambda: False)
    turns.begin()
    await spend(turns, mock_clock, 2 * SHARE)
    assert not turns.has_time(GREEDY)
    assert not turns.rests(GREEDY)
    turns.begin()
    assert turns.has_time(GREEDY)


REQUESTS = 60
REASON = "x" * 500


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as another user")
@pytest.mark.parametrize("leave", [False, True])
def test_who_rests_gets_every_answer_and_leaves_nothing(
    lockd: DaemonProcess, leave: bool
) -> None:
    # Too long to be read at once.
    many = b"".join(
        msgpack.packb(
            [0, number, "acquire", [{"resource": f"{{}}-{number}", "reason": REASON}]]
        )
        for number in range(REQUESTS)
    )
    with ExitStack() as stack, WireClient(lockd.socket) as root:
        greedy = [
            stack.enter_context(connected_as(lockd.socket, NOBODY, NOBODY))
            for _ in range(10)
        ]
        for number, client in enumerate(greedy):
            client.send_bytes(many.replace(b"{}", b"%02d" % number))
        root.acquire("mine")
        for client in greedy[5:] if leave else ():
            client.close()
        for client in greedy[:5]:
            for msgid in range(REQUESTS):
                assert "grant" in client.result(msgid)
        for client in greedy:
            client.close()
        wait_for_sessions(root, 1)
        assert root.call("statistics")["held"] == 1


CROWD = 900


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as another user")
def test_newcomer_does_not_wait_for_those_of_another_user(
    lockd: DaemonProcess,
) -> None:
    with ExitStack() as stack, WireClient(lockd.socket):
        # All of them wait in the kernel's one line, root's client last.
        os.kill(lockd.pid, signal.SIGSTOP)
        for _ in range(CROWD):
            stack.enter_context(connected_as(lockd.socket, NOBODY, NOBODY))
        last = stack.enter_context(WireClient(lockd.socket))
        msgid = last.send("statistics")
        os.kill(lockd.pid, signal.SIGCONT)
        assert last.result(msgid)["sessions"] < CROWD // 2
        wait_for_sessions(last, CROWD + 2)
