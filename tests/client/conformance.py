"""What every client must do, whoever waits in it: threads, trio or asyncio.

The cases of `Conformance` are run for each client, those of `AsyncConformance` for the
two that can be cancelled.
"""

import fcntl
import os
import signal
import termios
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import lockd
from client.adapters import AsyncShell, Peer, Pending, Shell, Thread
from client.door import open_door
from lockd.client.paths import ATTEMPTS
from lockd.client.reply import MOST_LEFT
from support.daemon_process import DaemonProcess
from support.processes import idle
from support.wire_client import WireClient, wait_for_sessions, wait_for_waiters


def names_of(parties: list[dict[str, Any]]) -> list[str]:
    return [party["name"] for party in parties]


def freeze(daemon: DaemonProcess) -> None:
    """Stops the daemon; a signal that has been sent has not yet stopped anybody."""
    os.kill(daemon.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{daemon.pid}/stat")
    for _ in range(1_000_000):
        if stat.read_text().rpartition(")")[2].split()[0] == "T":
            return
    raise AssertionError


def holders(watcher: WireClient, resource: str) -> list[str]:
    return names_of(watcher.call("query", resource=resource)["holders"])


def break_unheard(daemon: DaemonProcess, peer: Peer, grant: lockd.Grant) -> Pending:
    """Has a client ask for the end of its own grant, and stops the daemon before.

    So the daemon breaks it before it carries out what the client asks for next.
    """
    freeze(daemon)
    breaking = peer.start("break_grant", grant.fencing_token, "why")
    while not unread_by_daemon(grant):
        pass
    return breaking


def unread_by_daemon(grant: lockd.Grant) -> int:
    """Returns the bytes of the client's requests that wait for the daemon (unix(7))."""
    link: Any = grant.link
    sock = getattr(link, "sock", None) or link._sock
    unread = array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, unread)
    return unread[0]


def wait_until_free(watcher: WireClient, resource: str) -> None:
    """Waits until nobody holds a lock or waits for it."""
    watcher.acquire(resource)
    watcher.call("release", resource=resource)


class Conformance:
    """The cases of every client; a subclass has the fixture `shell`."""

    @pytest.fixture
    def alice(self, shell: Shell, sock: str) -> Peer:
        return shell.connect(sock, name="alice")

    @pytest.fixture
    def bob(self, shell: Shell, sock: str) -> Peer:
        return shell.connect(sock, name="bob")

    # One lock.

    def test_acquired_lock_is_held_until_released(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk")
        assert (grant.lockspace, grant.resource) == ("default", "disk")
        assert grant.mode == lockd.EXCLUSIVE
        assert grant.held
        assert holders(watcher, "disk") == ["alice"]
        alice.call("release", grant)
        assert not grant.held
        assert not grant.lost
        assert holders(watcher, "disk") == []

    def test_next_holder_hears_of_work_that_failed(
        self, alice: Peer, bob: Peer
    ) -> None:
        grant = alice.call("acquire", "disk")
        assert grant.previous is None
        token = grant.fencing_token
        alice.call("call", "release", fencing_token=token, outcome="failed")
        previous = bob.call("acquire", "disk").previous
        assert (previous["ended"], previous["outcome"]) == ("released", "failed")
        assert (previous["name"], previous["fencing_token"]) == ("alice", token)
        with pytest.raises(TypeError):
            previous["name"] = "nobody"
        bob.call("release", "disk")
        assert alice.call("acquire", "disk").previous is None

    def test_lock_of_a_program_around_is_granted_inside(
        self,
        alice: Peer,
        bob: Peer,
        shell: Shell,
        sock: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        outer = alice.call("acquire", "disk")
        assert outer.inside == ()
        with WireClient(sock) as other:
            instance = other.call("hello", protocol=1, client="test")["instance"]
        monkeypatch.setenv("LOCKD_WITHIN", f"{instance}:{outer.fencing_token}")
        inner = shell.connect(sock, name="child").call("acquire", "disk")
        assert inner.inside == (outer.fencing_token,)
        assert inner.mode == lockd.EXCLUSIVE
        with pytest.raises(lockd.BusyError):
            bob.call("acquire", "disk", timeout=0)
        alice.call("release", outer)
        assert bob.call("check", "disk", outer.fencing_token)

    def test_fencing_tokens_rise(self, alice: Peer) -> None:
        tokens = []
        for _ in range(3):
            tokens.append(alice.call("acquire", "disk").fencing_token)
            alice.call("release", "disk")
        assert tokens == sorted(set(tokens))

    def test_waiter_gets_the_lock_when_it_is_released(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        first = alice.call("acquire", "disk")
        waiting = bob.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        alice.call("release", first)
        second = waiting.result()
        assert second.fencing_token > first.fencing_token
        assert second.waited > 0
        assert holders(watcher, "disk") == ["bob"]

    def test_waiters_are_served_in_order(
        self, shell: Shell, sock: str, alice: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        peers = [shell.connect(sock, name=f"peer {i}") for i in range(3)]
        waits = []
        for count, peer in enumerate(peers, start=1):
            waits.append(peer.start("acquire", "disk"))
            wait_for_waiters(watcher, "disk", count)
        alice.call("release", "disk")
        for peer, wait in zip(peers, waits, strict=True):
            grant = wait.result()
            assert holders(watcher, "disk") == [f"peer {peers.index(peer)}"]
            peer.call("release", grant)

    def test_shared_holders_hold_together_and_keep_an_exclusive_out(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk", mode=lockd.SHARED)
        grant = bob.call("acquire", "disk", mode=lockd.SHARED)
        assert grant.mode == lockd.SHARED
        assert holders(watcher, "disk") == ["alice", "bob"]
        assert watcher.refusal("acquire", resource="disk", timeout=0).code == "busy"

    def test_slots_are_held_together_and_numbered(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        first = alice.call("acquire", "gpu", slots=2)
        second = bob.call("try_acquire", "gpu", slots=True)
        assert (first.mode, first.slot, first.slots) == (lockd.SLOT, 0, 2)
        assert (second.mode, second.slot, second.slots) == (lockd.SLOT, 1, 2)
        assert watcher.refusal("acquire", resource="gpu", timeout=0).code == "busy"
        with pytest.raises(lockd.InvalidRequestError, match="3 were asked for"):
            bob.call("acquire", "gpu", slots=3)
        with pytest.raises(lockd.AlreadyHeldError):
            alice.call("acquire", "gpu", mode=lockd.SLOT)
        alice.call("release", first)
        body = alice.hold("gpu", slots=2)
        assert body.grant().slot == 0
        assert holders(watcher, "gpu") == ["bob", "alice"]
        body.leave()
        body.result()
        alice.call("statistics")  # The daemon takes its requests in order.
        assert holders(watcher, "gpu") == ["bob"]

    def test_slots_have_a_mode_of_their_own(self, alice: Peer) -> None:
        with pytest.raises(lockd.InvalidRequestError, match="leave the mode out"):
            alice.call("acquire", "gpu", slots=2, mode=lockd.SHARED)
        grant = alice.call("acquire", "gpu", slots=2, mode=lockd.SLOT)
        assert alice.call("acquire", "other").slot is None
        with pytest.raises(lockd.InvalidRequestError, match="from or to a slot"):
            alice.call("convert", grant, lockd.SHARED)
        assert grant.held
        assert grant.mode == lockd.SLOT

    def test_second_shared_hold_of_one_session_takes_a_second_release(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        first = alice.call("acquire", "disk", mode=lockd.SHARED)
        second = alice.call("acquire", "disk", mode=lockd.SHARED)
        assert first.fencing_token == second.fencing_token
        alice.call("release", first)
        assert holders(watcher, "disk") == ["alice"]
        assert second.held
        alice.call("release", second)
        assert holders(watcher, "disk") == []

    def test_try_returns_a_grant_or_nothing(self, alice: Peer, bob: Peer) -> None:
        grant = alice.call("try_acquire", "disk")
        assert grant.held
        assert bob.call("try_acquire", "disk") is None
        alice.call("release", grant)
        assert bob.call("try_acquire", "disk").held

    def test_refused_try_names_the_holder_and_the_reason(
        self, alice: Peer, bob: Peer
    ) -> None:
        alice.call("acquire", "disk", reason="nightly dump", label="/srv/a.img")
        with pytest.raises(lockd.BusyError) as caught:
            bob.call("acquire", "disk", timeout=0)
        (holder,) = caught.value.facts["holders"]
        assert holder["name"] == "alice"
        assert holder["pid"] == os.getpid()
        assert holder["reason"] == "nightly dump"
        assert holder["label"] == "/srv/a.img"
        assert "alice" in str(caught.value)

    def test_timeout_names_the_holder_and_leaves_the_queue(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        with pytest.raises(lockd.AcquireTimeoutError) as caught:
            bob.call("acquire", "disk", timeout=0.01)
        assert names_of(caught.value.facts["holders"]) == ["alice"]
        assert caught.value.facts["waited"] == pytest.approx(0.01)
        wait_for_waiters(watcher, "disk", 0)

    def test_lock_that_the_caller_holds_is_refused_at_once(self, alice: Peer) -> None:
        alice.call("acquire", "disk")
        for timeout in (None, 0, 5):
            with pytest.raises(lockd.AlreadyHeldError, match="exclusively by this t"):
                alice.call("acquire", "disk", timeout=timeout)

    def test_what_is_not_held_cannot_be_released(self, alice: Peer) -> None:
        with pytest.raises(lockd.NotHeldError):
            alice.call("release", "disk")

    def test_stale_release_does_not_release_a_newer_grant(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        stale = alice.call("acquire", "disk")
        alice.call("release", stale)
        newer = alice.call("acquire", "disk")
        alice.call("release", stale)
        assert newer.held
        assert holders(watcher, "disk") == ["alice"]

    # Several locks, and other modes.

    def test_several_locks_are_granted_all_or_none(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "b")
        with pytest.raises(lockd.BusyError) as caught:
            bob.call("acquire_all", ["a", "b"], timeout=0)
        assert caught.value.facts["resource"] == "b"
        waiting = bob.start("acquire_all", ["c", "b", "a"])
        wait_for_waiters(watcher, "b", 1)
        assert holders(watcher, "a") == holders(watcher, "c") == []
        alice.call("release", "b")
        grants = waiting.result()
        assert [grant.resource for grant in grants] == ["c", "b", "a"]
        bob.call("release", *grants)
        assert [holders(watcher, name) for name in "abc"] == [[], [], []]

    def test_downgrade_lets_shared_waiters_in(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk")
        waiting = bob.start("acquire", "disk", mode=lockd.SHARED)
        wait_for_waiters(watcher, "disk", 1)
        converted = alice.call("convert", grant, lockd.SHARED)
        assert converted is grant
        assert grant.mode == lockd.SHARED
        assert waiting.result().held

    def test_upgrade_waits_for_the_other_holders_and_keeps_the_token(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk", mode=lockd.SHARED)
        token = grant.fencing_token
        bob.call("acquire", "disk", mode=lockd.SHARED)
        waiting = alice.start("convert", grant, lockd.EXCLUSIVE)
        wait_for_waiters(watcher, "disk", 1)
        bob.call("release", "disk")
        assert waiting.result() is grant
        assert (grant.mode, grant.fencing_token) == (lockd.EXCLUSIVE, token)

    def test_upgrade_that_is_refused_leaves_the_mode(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk", mode=lockd.SHARED)
        other = bob.call("acquire", "disk", mode=lockd.SHARED)
        with pytest.raises(lockd.BusyError):
            alice.call("convert", grant, lockd.EXCLUSIVE, timeout=0)
        waiting = alice.start("convert", grant, lockd.EXCLUSIVE)
        wait_for_waiters(watcher, "disk", 1)
        with pytest.raises(lockd.DeadlockError):
            bob.call("convert", other, lockd.EXCLUSIVE)
        assert grant.mode == other.mode == lockd.SHARED
        bob.call("release", other)
        assert waiting.result().mode == lockd.EXCLUSIVE

    def test_deadlock_names_the_cycle(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        bob.call("acquire", "b")
        waiting = alice.start_all("acquire", "a", "b")
        wait_for_waiters(watcher, "b", 1)
        with pytest.raises(lockd.DeadlockError, match=r"by alice \(pid") as caught:
            bob.call("acquire", "a")
        cycle = caught.value.facts["cycle"]
        assert {(link["name"], link["resource"]) for link in cycle} == {
            ("alice", "b"),
            ("bob", "a"),
        }
        bob.call("release", "b")
        assert all(grant.held for grant in waiting.result())

    # Who holds what.

    def test_query_tells_who_holds_who_waits_and_who_held(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        waiting = bob.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        found = alice.call("query", "disk")
        assert names_of(found["holders"]) == ["alice"]
        assert names_of(found["waiters"]) == ["bob"]
        alice.call("release", "disk")
        waiting.result()
        last = alice.call("query", "disk")["last_holder"]
        assert (last["name"], last["ended"]) == ("alice", "released")

    def test_anybody_can_check_a_fencing_token(self, alice: Peer, bob: Peer) -> None:
        token = alice.call("acquire", "disk").fencing_token
        assert bob.call("check", "disk", token) is True
        assert bob.call("check", "disk", token + 1) is False
        alice.call("release", "disk")
        assert bob.call("check", "disk", token) is False

    def test_listing_goes_through_all_pages(self, alice: Peer, bob: Peer) -> None:
        names = [f"lock {i:03}" for i in range(320)]
        for start in range(0, len(names), 64):
            alice.call("acquire_all", names[start : start + 64])
        found = bob.collect("list_resources", "default")
        assert [resource["resource"] for resource in found] == names
        assert names_of(found[0]["holders"]) == ["alice"]
        assert bob.collect("list_resources", "direct") == []

    def test_all_holders_that_match_are_listed(
        self, bob: Peer, watcher: WireClient
    ) -> None:
        watcher.call("register", owner={"name": "many"})
        for strand in range(11):
            watcher.acquire("gpu", mode="slot", slots=12, strand=strand)
        for name in ("a", "pool"):
            watcher.acquire(name, mode="shared")
            watcher.acquire(name, mode="shared", strand=1)
        found = bob.collect("list_resources", owner="many")
        assert [x["resource"] for x in found] == ["a", "gpu", "pool"]
        assert [x["slot"] for x in found[1]["holders"]] == [*range(11)]
        assert [len(x["holders"]) for x in found] == [2, 11, 2]

    def test_those_who_wait_are_listed(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        waiting = bob.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        (found,) = alice.collect("list_waiters", "default")
        assert (found["name"], found["place"]) == ("bob", 1)
        assert names_of(found["behind"]) == ["alice"]
        assert alice.collect("list_waiters", "direct") == []
        alice.call("release", "disk")
        waiting.result()

    def test_sessions_lockspaces_and_counters_are_told(
        self, alice: Peer, tmp_path: Path
    ) -> None:
        alice.call("create_lockspace", "disks", "directory", str(tmp_path))
        spaces = {space["name"]: space for space in alice.call("list_lockspaces")}
        assert spaces["disks"]["path"] == str(tmp_path)
        (session,) = alice.call("list_sessions")
        assert session["session"] == alice.session
        assert session["name"] == "alice"
        assert session["client"] == "lockd-python"
        alice.call("acquire", "disk")
        assert alice.call("statistics")["held"] == 1

    def test_resource_of_a_directory_is_a_file(
        self, alice: Peer, tmp_path: Path
    ) -> None:
        alice.call("create_lockspace", "disks", "directory", str(tmp_path))
        with pytest.raises(lockd.NotFoundError):
            alice.call("acquire", "a", lockspace="disks", create=False)
        alice.call("create_resource", "a", lockspace="disks")
        assert (tmp_path / "a").exists()
        grant = alice.call("acquire", "a", lockspace="disks", create=False)
        assert grant.lockspace == "disks"
        alice.call("release", "a", lockspace="disks")
        alice.call("delete_resource", "a", lockspace="disks")
        assert not (tmp_path / "a").exists()

    def test_name_that_begins_with_a_slash_is_a_file(
        self, alice: Peer, tmp_path: Path
    ) -> None:
        image = tmp_path / "a.img"
        image.touch()
        assert alice.call("acquire", str(image)).lockspace == "direct"
        assert alice.call("query", str(image))["holder_count"] == 1
        alice.call("release", str(image))
        assert alice.call("query", str(image))["holder_count"] == 0

    # What is refused.

    def test_request_that_is_too_large_costs_nothing_else(self, alice: Peer) -> None:
        grant = alice.call("acquire", "disk")
        with pytest.raises(lockd.InvalidRequestError, match="has 70000 bytes"):
            alice.call("acquire", "x" * 70_000)
        with pytest.raises(lockd.InvalidRequestError, match="has 70000 bytes"):
            alice.call("call", "acquire", resource="a", unknown="x" * 70_000)
        with pytest.raises(TypeError, match="label must be text, not object"):
            alice.call("acquire", "other", label=object())
        with pytest.raises(TypeError, match="timeout must be a number from 0 to 1e"):
            alice.call("acquire", "other", timeout="soon")
        assert grant.held
        assert alice.call("check", "disk", grant.fencing_token)

    def test_unknown_method_costs_nothing_else(self, alice: Peer) -> None:
        with pytest.raises(lockd.UnknownMethodError):
            alice.call("call", "nonsense")
        assert alice.call("acquire", "disk").held

    def test_restricted_session_can_only_give_back(self, alice: Peer) -> None:
        grant = alice.call("acquire", "disk")
        alice.call("restrict")
        with pytest.raises(lockd.RestrictedError):
            alice.call("acquire", "other")
        with pytest.raises(PermissionError):
            alice.call("acquire", "other")
        alice.call("release", grant)
        assert alice.call("query", "disk")["holder_count"] == 0

    # Owners.

    def test_locks_of_a_registered_process_end_with_the_process(
        self, shell: Shell, sock: str, watcher: WireClient
    ) -> None:
        with idle() as child:
            helper = shell.connect(sock)
            owner = helper.call("register", "guest", uuid="u", pid=child.pid)
            assert owner["name"] == "guest"
            assert (owner["uuid"], owner["pid"]) == ("u", child.pid)
            helper.call("acquire", "disk")
            helper.close()
            wait_for_sessions(watcher, 1)
            assert holders(watcher, "disk") == ["guest"]
        wait_until_free(watcher, "disk")

    def test_helpers_of_one_process_speak_for_it_alike(
        self, shell: Shell, sock: str, watcher: WireClient
    ) -> None:
        with idle() as child:
            first, second = shell.connect(sock), shell.connect(sock)
            for helper in first, second:
                helper.call("register", "guest", pid=child.pid)
            token = first.call("acquire", "disk").fencing_token
            grant = second.call("convert", "disk", lockd.SHARED)
            assert (grant.mode, grant.fencing_token) == (lockd.SHARED, token)
            second.call("release", grant)
            assert holders(watcher, "disk") == []

    # The end of a connection.

    def test_closed_session_holds_nothing(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk")
        alice.close()
        wait_until_free(watcher, "disk")
        assert not grant.held
        assert not grant.lost
        with pytest.raises(lockd.ConnectionLostError):
            alice.call("acquire", "disk")

    def test_daemon_that_dies_takes_the_locks_with_it(
        self, alice: Peer, bob: Peer, watcher: WireClient, daemon: DaemonProcess
    ) -> None:
        grant = alice.call("acquire", "disk")
        waiting = bob.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        daemon.kill()
        with pytest.raises(lockd.ConnectionLostError):
            waiting.result()
        with pytest.raises(lockd.LockLostError) as caught:
            alice.call("release", grant)
        assert caught.value.cause == "disconnected"
        assert caught.value.resource == "disk"
        assert grant.lost
        with pytest.raises(lockd.ConnectionLostError):
            alice.call("query", "disk")

    def test_daemon_that_dies_ends_a_body_with_a_lost_lock(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        body = alice.hold("disk")
        body.grant()
        daemon.kill()
        body.leave()
        with pytest.raises(lockd.LockLostError, match="the connection to the daemon"):
            body.result()

    def test_disconnected_session_hears_of_it(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        body = bob.hold("other")
        body.grant()
        waiting = bob.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        alice.call("disconnect_session", bob.session, "maintenance")
        with pytest.raises(lockd.ConnectionLostError):
            waiting.result()
        body.leave()
        with pytest.raises(lockd.LockLostError):
            body.result()
        wait_for_waiters(watcher, "disk", 0)

    def test_no_daemon_is_told_with_the_path_and_the_remedy(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "nobody.sock")
        with pytest.raises(lockd.ConnectionLostError) as caught:
            shell.connect(path)
        assert path in str(caught.value)
        assert f"`lockd --socket {path}`" in str(caught.value)

    @pytest.mark.parametrize("reads", [True, False], ids=["closed", "reset"])
    def test_connection_that_ends_unheard_is_opened_again(
        self, shell: Shell, sock: str, tmp_path: Path, reads: bool
    ) -> None:
        with open_door(
            tmp_path / "door", reads=reads, leads_to=sock, after=ATTEMPTS - 1
        ) as door:
            peer = shell.connect(door.path, name="alice")
            assert door.ended == ATTEMPTS - 1
        assert peer.call("acquire", "disk").held

    def test_connection_that_always_ends_unheard_is_given_up(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        with open_door(tmp_path / "door") as door:
            with pytest.raises(lockd.ConnectionLostError, match="closed the connect"):
                shell.connect(door.path)
            assert door.ended == ATTEMPTS

    def test_connection_on_which_something_was_heard_is_not_opened_again(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        with open_door(tmp_path / "door", says=b"\x94") as door:
            with pytest.raises(lockd.ConnectionLostError):
                shell.connect(door.path)
            assert door.ended == 1

    def test_path_that_no_socket_can_have_is_told(self, shell: Shell) -> None:
        with pytest.raises(lockd.ConnectionLostError, match="too long"):
            shell.connect("/" + "x" * 200)

    def test_name_that_is_refused_opens_no_session(
        self, shell: Shell, sock: str, watcher: WireClient
    ) -> None:
        with pytest.raises(lockd.InvalidRequestError):
            shell.connect(sock, name="")
        wait_for_sessions(watcher, 1)

    # Bodies.

    def test_body_holds_the_lock_until_it_ends(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        body = alice.hold("disk", reason="why")
        grant = body.grant()
        assert grant.held
        assert holders(watcher, "disk") == ["alice"]
        body.leave()
        body.result()
        alice.call("statistics")  # The daemon takes its requests in order.
        assert holders(watcher, "disk") == []

    def test_bodies_of_one_client_take_turns(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        first = alice.hold("disk")
        token = first.grant().fencing_token
        with pytest.raises(lockd.BusyError, match="of this program for"):
            alice.hold("disk", timeout=0).result()
        patience = r"not granted within 0\.01 s; it is held exclusively by another t"
        with pytest.raises(lockd.AcquireTimeoutError, match=patience):
            alice.hold("disk", timeout=0.01).result()
        second = alice.hold("disk")
        first.leave()
        first.result()
        assert second.grant().fencing_token > token
        second.leave()
        second.result()

    def test_shared_bodies_of_one_client_run_together(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        bodies = [alice.hold("disk", mode=lockd.SHARED) for _ in range(3)]
        for body in bodies:
            body.grant()
        assert holders(watcher, "disk") == ["alice"] * 3
        for body in bodies:
            body.leave()
            body.result()
        alice.call("statistics")  # The daemon takes its requests in order.
        assert holders(watcher, "disk") == []

    def test_broken_lock_ends_the_body_with_a_lost_lock(
        self, alice: Peer, bob: Peer, watcher: WireClient
    ) -> None:
        body = alice.hold("disk")
        grant = body.grant()
        bob.call("break_grant", grant.fencing_token, "it hangs")
        assert holders(watcher, "disk") == []
        body.leave()
        with pytest.raises(lockd.LockLostError, match="it hangs") as caught:
            body.result()
        assert caught.value.cause == "broken"
        assert caught.value.fencing_token == grant.fencing_token
        with pytest.raises(lockd.LockLostError):
            grant.check()
        assert alice.call("acquire", "disk").held

    # Releases that nobody waits for.

    def test_end_of_a_body_does_not_wait_for_the_daemon(
        self, alice: Peer, watcher: WireClient, daemon: DaemonProcess
    ) -> None:
        body = alice.hold("disk")
        grant = body.grant()
        freeze(daemon)
        body.leave()
        body.result()
        assert not grant.held
        os.kill(daemon.pid, signal.SIGCONT)
        wait_until_free(watcher, "disk")
        assert not grant.lost

    def test_release_waits_unless_told_otherwise(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        first, second = (alice.call("acquire", name) for name in ("a", "b"))
        freeze(daemon)
        alice.run_in_main(lambda: first.release(wait=False))
        waiting = alice.run(second.release)
        alice.run_in_main(lambda: first.release("failed", wait=False))
        assert not first.held
        assert second.held
        os.kill(daemon.pid, signal.SIGCONT)
        waiting.result()
        assert not second.held

    def leave_what_was_broken(self, peer: Peer, daemon: DaemonProcess) -> lockd.Grant:
        """Releases a lock that is broken when nobody can know it yet."""
        grant: lockd.Grant = peer.call("acquire", "disk")
        breaking = break_unheard(daemon, peer, grant)
        peer.run_in_main(lambda: grant.release(wait=False))
        os.kill(daemon.pid, signal.SIGCONT)
        breaking.result()
        # Another one reads the refusal, and is not told.
        peer.start("statistics").result()
        return grant

    def test_loss_that_crosses_a_release_is_told_to_the_next_call(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        grant = self.leave_what_was_broken(alice, daemon)
        with pytest.raises(lockd.LockLostError, match="why") as caught:
            alice.call("create_lockspace", "new", "memory")
        assert caught.value.fencing_token == grant.fencing_token
        spaces = alice.call("list_lockspaces")
        assert "new" not in names_of(spaces)

    def test_acquire_that_tells_of_a_loss_acquires_nothing(
        self, alice: Peer, watcher: WireClient, daemon: DaemonProcess
    ) -> None:
        grant = alice.call("acquire", "disk")
        breaking = break_unheard(daemon, alice, grant)
        alice.run_in_main(lambda: grant.release(wait=False))
        waiting = unread_by_daemon(grant)

        def go_on() -> None:
            while unread_by_daemon(grant) == waiting:
                pass
            os.kill(daemon.pid, signal.SIGCONT)

        thread = Thread(go_on)
        with pytest.raises(lockd.LockLostError, match="why"):
            alice.call("acquire", "other")
        thread.result()
        breaking.result()
        alice.call("statistics")
        assert holders(watcher, "other") == []
        assert alice.call("acquire", "other").held

    def test_others_are_not_told_of_a_loss(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        self.leave_what_was_broken(alice, daemon)
        for name in ("a", "b"):
            assert alice.start("acquire", name).result().held
        with pytest.raises(lockd.LockLostError, match="why"):
            alice.call("acquire", "c")

    def test_loss_that_nobody_heard_of_is_told_at_the_end(
        self, alice: Peer, watcher: WireClient, daemon: DaemonProcess
    ) -> None:
        self.leave_what_was_broken(alice, daemon)
        with pytest.raises(lockd.LockLostError, match="why"):
            alice.close()
        wait_for_sessions(watcher, 1)

    def test_end_of_the_session_comes_after_its_releases(
        self, alice: Peer, watcher: WireClient
    ) -> None:
        grant = alice.call("acquire", "disk")
        alice.run_in_main(lambda: grant.release("failed", wait=False))
        alice.close()
        found = watcher.call("acquire", resource="disk")["grant"]["previous"]
        assert (found["ended"], found["outcome"]) == ("released", "failed")

    def test_end_of_the_daemon_is_no_refusal(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        grant = alice.call("acquire", "disk")
        freeze(daemon)
        alice.run_in_main(lambda: grant.release(wait=False))
        daemon.kill()
        with pytest.raises(lockd.ConnectionLostError):
            alice.call("statistics")
        alice.close()

    def test_releases_without_an_answer_are_few(
        self, alice: Peer, daemon: DaemonProcess
    ) -> None:
        names = [f"disk {number}" for number in range(3 * MOST_LEFT)]
        grants = [alice.call("acquire", name) for name in names]
        left = grants[0].link.left
        most = []

        def release(place: int) -> Any:
            most.append(len(left.unanswered))
            return grants[place].release(wait=False)

        freeze(daemon)
        for place in range(MOST_LEFT):
            alice.run_in_main(partial(release, place))
        waiting = alice.start_calls(release, range(MOST_LEFT, len(grants)))
        while len(left.unanswered) < MOST_LEFT + 1:
            pass
        os.kill(daemon.pid, signal.SIGCONT)
        waiting.result()
        assert max(most) == MOST_LEFT
        assert alice.call("statistics")["held"] == 0
        assert len(left.unanswered) == 0


class AsyncConformance(Conformance):
    """The cases of the clients that can be cancelled."""

    def test_cancelled_wait_leaves_the_queue(
        self, shell: AsyncShell, sock: str, alice: Peer, watcher: WireClient
    ) -> None:
        alice.call("acquire", "disk")
        first, second = shell.connect(sock), shell.connect(sock)
        waiting = first.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        next_in_line = second.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 2)
        waiting.cancel()
        waiting.result()
        assert waiting.cancelled
        assert watcher.call("query", resource="disk")["waiter_count"] == 1
        alice.call("release", "disk")
        assert next_in_line.result().held

    @pytest.mark.parametrize("first", ["release", "cancel"])
    def test_grant_that_races_with_a_cancel_is_given_back(
        self,
        shell: AsyncShell,
        sock: str,
        daemon: DaemonProcess,
        watcher: WireClient,
        first: str,
    ) -> None:
        peer = shell.connect(sock)
        watcher.acquire("disk")
        waiting = peer.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        freeze(daemon)
        if first == "cancel":
            waiting.cancel()
        watcher.send("release", resource="disk")
        if first == "release":
            waiting.cancel()
        os.kill(daemon.pid, signal.SIGCONT)
        waiting.result()
        assert waiting.cancelled
        wait_until_free(watcher, "disk")
        assert peer.call("acquire", "disk").held

    @pytest.mark.parametrize("first", ["release", "cancel"])
    def test_upgrade_that_races_with_a_cancel_is_taken_back(
        self,
        shell: AsyncShell,
        sock: str,
        daemon: DaemonProcess,
        watcher: WireClient,
        first: str,
    ) -> None:
        peer = shell.connect(sock)
        watcher.acquire("disk", mode="shared")
        grant = peer.call("acquire", "disk", mode="shared")
        waiting = peer.start("convert", grant, lockd.EXCLUSIVE)
        wait_for_waiters(watcher, "disk", 1)
        freeze(daemon)
        if first == "cancel":
            waiting.cancel()
        watcher.send("release", resource="disk")
        if first == "release":
            waiting.cancel()
        os.kill(daemon.pid, signal.SIGCONT)
        waiting.result()
        assert waiting.cancelled
        assert peer.call("query", "disk")["holders"][0]["mode"] == lockd.SHARED
        assert grant.mode == lockd.SHARED

    def test_cancelled_body_gives_its_lock_back_first(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        body = shell.connect(sock).hold("disk")
        body.grant()
        body.cancel()
        body.result()
        assert body.cancelled
        assert holders(watcher, "disk") == []

    def test_cancelled_body_in_line_lets_the_next_one_in(
        self, shell: AsyncShell, sock: str
    ) -> None:
        peer = shell.connect(sock)
        first = peer.hold("disk")
        first.grant()
        second, third = peer.hold("disk"), peer.hold("disk")
        second.cancel()
        second.result()
        assert second.cancelled
        first.leave()
        first.result()
        assert third.grant().held

    def test_body_in_line_hears_of_the_end_of_the_connection(
        self, shell: AsyncShell, sock: str, daemon: DaemonProcess
    ) -> None:
        stays = shell.portal.call(lambda: anyio.move_on_after(5, shield=True))

        async def hold_on(client: lockd.aio.Client, holding: anyio.Event) -> None:
            async with client.hold("disk"):
                holding.set()
                with stays:
                    await anyio.sleep_forever()

        async def wait_in_line(client: lockd.aio.Client) -> None:
            async with client.hold("disk"):
                raise AssertionError

        async def main() -> None:
            async with (
                lockd.aio.connect(sock) as client,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(outcome_of, hold_on, client, holding := anyio.Event())
                await holding.wait()
                tasks.start_soon(outcome_of, wait_in_line, client)
                await anyio.wait_all_tasks_blocked()
                daemon.kill()

        async def outcome_of(function: Any, *args: Any) -> None:
            try:
                await function(*args)
            except lockd.LockdError as error:
                outcomes.append(type(error))
            stays.cancel()

        outcomes: list[type[lockd.LockdError]] = []
        shell.run(main)
        assert outcomes == [lockd.ConnectionLostError, lockd.LockLostError]

    def test_lost_connection_cancels_the_body(
        self, shell: AsyncShell, sock: str, daemon: DaemonProcess
    ) -> None:
        body = shell.connect(sock).hold("disk")
        body.grant()
        daemon.kill()
        with pytest.raises(lockd.LockLostError) as caught:
            body.result()
        assert caught.value.cause == "disconnected"

    def test_broken_lock_cancels_its_body_and_no_other(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        peer = shell.connect(sock)
        body, other = peer.hold("disk"), peer.hold("other")
        other.grant()
        token = body.grant().fencing_token
        watcher.call("break", fencing_token=token, reason="it hangs")
        with pytest.raises(lockd.LockLostError, match="it hangs"):
            body.result()
        other.leave()
        other.result()

    def test_session_that_ends_lets_nobody_wait(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        watcher.acquire("disk")
        peer = shell.connect(sock)
        waiting = peer.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        peer.close()
        with pytest.raises(lockd.ConnectionLostError, match="the client is closed"):
            waiting.result()
        wait_for_sessions(watcher, 1)

    def test_waiting_acquire_holds_up_nothing_else(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        watcher.acquire("disk")
        peer = shell.connect(sock)
        peer.start("acquire", "disk")
        wait_for_waiters(watcher, "disk", 1)
        assert peer.call("acquire", "other").held

    def test_release_of_a_grant_says_how_the_work_ended(
        self, shell: AsyncShell, sock: str
    ) -> None:
        async def main() -> None:
            async with lockd.aio.connect(sock) as client:
                grant = await client.acquire("disk")
                with pytest.raises(lockd.InvalidRequestError, match="outcome"):
                    await grant.release("bad")  # type: ignore[arg-type]
                await grant.release(outcome="died")
                previous = (await client.acquire("disk")).previous
                assert previous is not None
                assert previous["outcome"] == "died"

        shell.run(main)

    def test_no_group_comes_around_an_error(self, shell: AsyncShell, sock: str) -> None:
        async def refused() -> None:
            async with lockd.aio.connect(sock) as client:
                await client.acquire("disk")
                await client.acquire("disk")

        with pytest.raises(lockd.AlreadyHeldError):
            shell.run(refused)

        async def refused_in_a_body() -> None:
            async with lockd.aio.connect(sock) as client, client.hold("disk"):
                await client.release("nothing")

        with pytest.raises(lockd.NotHeldError):
            shell.run(refused_in_a_body)

    def test_error_of_a_body_comes_through_a_cancellation(
        self, shell: AsyncShell, sock: str
    ) -> None:
        async def main() -> None:
            with anyio.CancelScope() as scope:
                async with lockd.aio.connect(sock):
                    scope.cancel()
                    raise lockd.BusyError("from the body")

        with pytest.raises(lockd.BusyError, match="from the body"):
            shell.run(main)

    def test_error_of_a_body_comes_before_a_lost_lock(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        async def main() -> None:
            async with lockd.aio.connect(sock) as client, client.hold("disk") as grant:
                token = grant.fencing_token
                watcher.call("break", fencing_token=token, reason="why")
                watcher.call("statistics")  # by now the client has been told
                raise ValueError("from the body")

        with pytest.raises(ValueError, match="from the body"):
            shell.run(main)
        wait_until_free(watcher, "disk")

    def test_body_without_a_pause_hears_of_the_loss_at_its_end(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        async def main() -> None:
            async with lockd.aio.connect(sock) as client, client.hold("disk") as grant:
                token = grant.fencing_token
                watcher.call("break", fencing_token=token, reason="why")
                watcher.call("statistics")  # by now the client has been told

        with pytest.raises(lockd.LockLostError):
            shell.run(main)

    def test_second_body_of_one_task_is_refused_at_once(
        self, shell: AsyncShell, sock: str
    ) -> None:
        async def main() -> None:
            async with lockd.aio.connect(sock) as client, client.hold("disk"):
                with pytest.raises(lockd.AlreadyHeldError):
                    async with client.hold("disk"):
                        raise AssertionError

        shell.run(main)

    def test_watch_brings_events_and_loses_none_to_a_cancellation(
        self, shell: AsyncShell, sock: str, watcher: WireClient
    ) -> None:
        async def main() -> None:
            async with (
                lockd.aio.connect(sock) as client,
                client.watch("default") as events,
            ):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anext(events)
                watcher.acquire("disk")
                event = await anext(events)
                assert (event["event"], event["resource"]) == ("granted", "disk")
                watcher.call("release", resource="disk")
                await client.statistics()
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anext(events)
                assert (await anext(events))["event"] == "released"

        shell.run(main)

    def test_large_requests_and_answers_pass_at_once(
        self, shell: AsyncShell, sock: str
    ) -> None:
        async def main() -> None:
            async with lockd.aio.connect(sock) as client:
                async with anyio.create_task_group() as tasks:
                    for i in range(200):
                        tasks.start_soon(acquire, client, i)
                assert (await client.statistics())["held"] == 200

        async def acquire(client: lockd.aio.Client, i: int) -> None:
            grant = await client.acquire(f"disk {i}", label="x" * 4_000)
            assert grant.resource == f"disk {i}"

        shell.run(main)
