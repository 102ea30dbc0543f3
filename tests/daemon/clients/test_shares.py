"""One user's share of the loop, and what becomes of who wants more."""

import os
import signal
from contextlib import ExitStack

import msgpack
import pytest
import trio
from trio.testing import MockClock

from lockd.daemon.clients.shares import REST, SHARE, Shares
from support.daemon_process import DaemonProcess
from support.rights import needs_root
from support.wire_client import NOBODY, WireClient, connected_as, wait_for_sessions

GREEDY, OTHER = 1_000, 2_000


@pytest.fixture
async def shares(mock_clock: MockClock) -> Shares:
    return Shares(lambda: True)


async def spend(shares: Shares, clock: MockClock, seconds: float) -> None:
    began = trio.current_time()
    clock.jump(seconds)
    shares.charge(GREEDY, began)


async def test_user_has_time_until_its_share_is_spent(
    shares: Shares, mock_clock: MockClock
) -> None:
    shares.begin()
    await spend(shares, mock_clock, SHARE / 2)
    assert shares.has_time(GREEDY)
    await spend(shares, mock_clock, SHARE)
    assert not shares.has_time(GREEDY)
    assert shares.has_time(OTHER)


async def test_who_wanted_more_rests_for_a_while(
    shares: Shares, mock_clock: MockClock
) -> None:
    shares.begin()
    await spend(shares, mock_clock, 2 * SHARE)
    assert not shares.rests(GREEDY)
    assert not shares.has_time(GREEDY)
    assert shares.rests(GREEDY)
    assert shares.deadline == trio.current_time() + REST
    mock_clock.jump(REST / 2)
    shares.begin()
    assert not shares.has_time(GREEDY)
    mock_clock.jump(REST)
    shares.begin()
    assert shares.has_time(GREEDY)
    assert shares.deadline == float("inf")


async def test_who_is_alone_never_rests(mock_clock: MockClock) -> None:
    shares = Shares(lambda: False)
    shares.begin()
    await spend(shares, mock_clock, 2 * SHARE)
    assert not shares.has_time(GREEDY)
    assert not shares.rests(GREEDY)
    shares.begin()
    assert shares.has_time(GREEDY)


REQUESTS = 60
REASON = "x" * 500


@needs_root
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


@needs_root
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
