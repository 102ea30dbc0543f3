"""What is left of locks when processes die, stop, or fork."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lockd import Client, connect
from support.asking import ask_until
from support.daemon_process import DaemonProcess
from support.outside import Outside
from system.actors import Actor, wait_for_waiter
from system.conftest import StartActor


@pytest.fixture
def holder(start_actor: Callable[[str], Actor]) -> Actor:
    """A process that holds `web1` of the directory lockspace."""
    actor = start_actor("holder")
    assert actor("acquire", "web1", lockspace="vms") > 0
    return actor


def start_waiter(start_actor: StartActor, client: Client) -> Actor:
    waiter = start_actor("waiter").start("acquire", "web1", lockspace="vms")
    wait_for_waiter(client, "web1", "vms")
    return waiter


def is_held_by(client: Client, actor: Actor) -> bool:
    holders = client.query("web1", lockspace="vms")["holders"]
    return [who["pid"] for who in holders] == [actor.pid]


# Clients.


def test_next_waiter_is_granted_when_the_holder_is_killed(
    client: Client,
    start_actor: StartActor,
    holder: Actor,
    locks: Path,
    outside: Outside,
) -> None:
    waiter = start_waiter(start_actor, client)
    holder.kill()
    assert waiter.result() > 0
    state = client.query("web1", lockspace="vms")
    assert state["last_holder"]["ended"] == "disconnected"
    assert outside.probe(locks / "web1") == ("exclusive", -1)


def test_killed_waiter_leaves_the_queue(
    client: Client, start_actor: StartActor, holder: Actor
) -> None:
    first = start_waiter(start_actor, client)
    second = start_actor("second").start("acquire", "web1", lockspace="vms")
    ask_until(client, "web1", lambda state: state["waiter_count"] == 2, lockspace="vms")
    first.kill()
    holder("release", "web1", lockspace="vms")
    assert second.result() > 0


def test_stopped_holder_keeps_its_lock(
    client: Client,
    start_actor: StartActor,
    holder: Actor,
    locks: Path,
    outside: Outside,
) -> None:
    waiter = start_waiter(start_actor, client)
    holder.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    assert is_held_by(client, holder)
    assert not outside.lock(locks / "web1")
    holder.send_signal(signal.SIGCONT)
    holder("release", "web1", lockspace="vms")
    assert waiter.result() > 0


@pytest.mark.parametrize("verb", ["fork_and_exit", "fork_and_close"])
def test_end_of_a_forked_child_leaves_the_lock_to_its_parent(
    client: Client, holder: Actor, locks: Path, outside: Outside, verb: str
) -> None:
    assert holder(verb) == 0
    assert is_held_by(client, holder)
    assert outside.probe(locks / "web1") == ("exclusive", -1)
    assert holder("release", "web1", lockspace="vms") is None


def test_forked_child_does_not_keep_the_lock_of_its_dead_parent(
    client: Client, start_actor: StartActor
) -> None:
    child_waits, child_may_end = os.pipe()
    try:
        holder = start_actor("holder", pass_fds=(child_waits,))
        holder("acquire", "web1", lockspace="vms")
        child = os.pidfd_open(holder("fork_and_stay", child_waits))
        waiter = start_waiter(start_actor, client)
        holder.send_signal(signal.SIGKILL)
        assert waiter.result() > 0
        signal.pidfd_send_signal(child, 0)
        os.close(child)
    finally:
        os.close(child_may_end)
        os.close(child_waits)


# The daemon.


def test_killed_daemon_leaves_no_lock_and_every_client_knows(
    house: DaemonProcess,
    client: Client,
    start_actor: StartActor,
    holder: Actor,
    locks: Path,
    outside: Outside,
) -> None:
    waiter = start_waiter(start_actor, client)
    house.kill()
    assert outside.probe(locks / "web1") is None
    assert waiter.result() == "ConnectionLostError"
    assert holder("query", "web1", lockspace="vms") == "ConnectionLostError"


def test_restarted_daemon_goes_on_with_higher_tokens_and_old_files(
    house: DaemonProcess, start_actor: StartActor, locks: Path, outside: Outside
) -> None:
    before = start_actor("holder")("acquire", "web1", lockspace="vms")
    house.kill()
    assert (locks / "web1").exists()
    house.start()
    with connect(house.socket) as client:
        grant = client.acquire("web1", lockspace="vms", timeout=0)
        assert grant.fencing_token > before
        assert outside.probe(locks / "web1") == ("exclusive", -1)


def test_tokens_rise_through_every_kind_of_end(house: DaemonProcess) -> None:
    def tokens_of_three_grants() -> list[int]:
        with connect(house.socket) as client:
            return [client.acquire(f"web{n}").fencing_token for n in range(3)]

    tokens = tokens_of_three_grants()
    for end in (house.kill, house.stop, house.kill, house.kill):
        end()
        house.start()
        tokens += tokens_of_three_grants()
    assert tokens == sorted(set(tokens))


def test_clean_end_of_the_daemon_frees_all_and_removes_what_it_made(
    house: DaemonProcess, holder: Actor, locks: Path, image: Path, outside: Outside
) -> None:
    holder("acquire", str(image))
    assert house.stop() == 0
    assert outside.probe(image) is None
    assert holder("query", "web1", lockspace="vms") == "ConnectionLostError"
    assert not list(locks.iterdir())
    assert not house.socket.exists()


def test_stopped_daemon_loses_nothing(
    house: DaemonProcess,
    client: Client,
    start_actor: StartActor,
    holder: Actor,
    locks: Path,
    outside: Outside,
) -> None:
    waiter = start_waiter(start_actor, client)
    late = start_actor("late")
    late("acquire", "other", lockspace="vms")
    os.kill(house.pid, signal.SIGSTOP)
    assert os.waitid(os.P_PID, house.pid, os.WSTOPPED | os.WNOWAIT)
    late.start("acquire", "web1", lockspace="vms")
    holder.start("release", "web1", lockspace="vms")
    assert outside.probe(locks / "web1") == ("exclusive", -1)
    assert outside.probe(locks / "other") == ("exclusive", -1)
    os.kill(house.pid, signal.SIGCONT)
    assert holder.result() is None
    assert waiter.result() > 0
    waiter("release", "web1", lockspace="vms")
    assert late.result() > 0
    assert outside.probe(locks / "other") == ("exclusive", -1)
