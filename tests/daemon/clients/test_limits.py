"""Every limit: reached by the one who asks, unnoticed by everybody else."""

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack

from conftest import StartDaemon
from daemon.clients.conftest import (
    Limited,
    check_limit,
    greeted,
    turned_away,
)
from lockd.daemon.clients.limits import shadowed
from lockd.daemon.config.config import Limits
from support.rights import needs_root
from support.wire_client import (
    NOBODY,
    WireClient,
    connected_as,
    wait_for_sessions,
    wait_for_waiters,
)


def test_one_lock_too_many_is_refused(limited: Limited) -> None:
    daemon = limited(locks_per_session=3)
    with greeted(daemon) as client, greeted(daemon) as other:
        client.acquire("a")
        client.acquire("b")
        check_limit(
            client.refusal("acquire", resources=["c", "d"]), "locks_per_session", 3
        )
        client.acquire("c")
        check_limit(client.refusal("acquire", resource="d"), "locks_per_session", 3)
        other.acquire("d")
        client.call("release", resource="a")
        client.acquire("e")


def test_shared_hold_that_is_counted_is_one_lock(limited: Limited) -> None:
    daemon = limited(locks_per_user=2)
    with greeted(daemon) as client:
        client.acquire("a", mode="shared")
        client.acquire("a", mode="shared")
        client.acquire("b")
        check_limit(client.refusal("acquire", resource="c"), "locks_per_user", 2)


def test_what_one_users_locks_and_requests_say_is_bounded(limited: Limited) -> None:
    daemon = limited(text_bytes_per_user=1_024)
    with greeted(daemon) as one, greeted(daemon) as two:
        one.acquire("a", label="l" * 500, reason="r" * 300)
        waiting = two.send("acquire", resource="a", label="l" * 200)
        wait_for_waiters(one, "a", 1)
        said: list[dict[str, Any]] = [
            {"resource": "b", "reason": "ü" * 13},
            {"resources": ["b", "c"], "label": "x" * 12},
            {"resource": "/" + "n" * 299, "lockspace": "direct"},
        ]
        for more in said:
            refusal = two.refusal("acquire", **more)
            check_limit(refusal, "text_bytes_per_user", 1_024)
        assert ": shorten label and reason, or release something" in refusal.sentence
        used = one.call("statistics")["limits"]["text_bytes_per_user"]
        assert used == {"used": 1_000, "most": 1_024, "uid": os.getuid()}
        # What says nothing is not refused; nor is what says just as much as is left.
        one.acquire("b")
        two.acquire("c", label="x" * 24)
        check_limit(
            one.refusal("acquire", resource="d", label="x"),
            "text_bytes_per_user",
            1_024,
        )
        one.call("release", resource="a")
        two.result(waiting)
        one.acquire("d", label="x" * 800)


@needs_root
def test_what_one_user_says_is_no_matter_to_others(limited: Limited) -> None:
    daemon = limited(text_bytes_per_user=1_024)
    with (
        greeted(daemon) as client,
        connected_as(daemon.socket, NOBODY, NOBODY) as stranger,
    ):
        client.acquire("a", label="x" * 1_024)
        check_limit(
            client.refusal("acquire", resource="b", label="x"),
            *("text_bytes_per_user", 1_024),
        )
        stranger.acquire("b", label="x" * 1_024)


def test_what_locks_say_counts_in_the_next_program(limited: Limited) -> None:
    daemon = limited(text_bytes_per_user=1_024)
    with greeted(daemon) as client:
        client.acquire("a", label="x" * 1_024)
        daemon.upgrade()
        check_limit(
            client.refusal("acquire", resource="b", label="x"),
            *("text_bytes_per_user", 1_024),
        )
        client.call("release", resource="a")
        client.acquire("b", label="x" * 1_024)


def test_requests_for_several_locks_do_not_pass_the_limit_by_waiting(
    limited: Limited,
) -> None:
    daemon = limited(locks_per_user=9)
    with greeted(daemon) as holder, greeted(daemon) as client:
        holder.acquire("a")
        first = client.send("acquire", resources=["a", "b", "c", "d"], mode="shared")
        alone = client.send("acquire", resource="a", mode="shared")
        wait_for_waiters(holder, "a", 2)
        check_limit(
            client.refusal("acquire", resources=["a", "e", "f", "g", "h"]),
            *("locks_per_user", 9),
        )
        used = holder.call("statistics")["limits"]["locks_per_user"]
        assert used == {"used": 5, "most": 9, "uid": os.getuid()}
        client.call("cancel", request=first)
        client.refused(first)
        holder.call("release", resource="a")
        client.result(alone)
        client.call("acquire", resources=["e", "f", "g", "h"])


@needs_root
def test_locks_of_one_user_count_together(limited: Limited) -> None:
    daemon = limited(locks_per_user=2)
    with ExitStack() as stack:
        first, second = (stack.enter_context(greeted(daemon)) for _ in range(2))
        stranger = stack.enter_context(connected_as(daemon.socket, NOBODY, NOBODY))
        first.acquire("a")
        second.acquire("b")
        for client in (first, second):
            check_limit(client.refusal("acquire", resource="c"), "locks_per_user", 2)
        stranger.acquire("c")
        first.close()
        wait_for_sessions(second, 2)
        second.acquire("d")


def test_waiters_of_a_session_and_of_a_lock_are_bounded(limited: Limited) -> None:
    daemon = limited(waiters_per_session=2, queue_length=3)
    with greeted(daemon) as holder, greeted(daemon) as client, greeted(daemon) as more:
        holder.call("acquire", resources=["a", "b", "c"])
        client.send("acquire", resource="a")
        client.send("acquire", resource="b")
        wait_for_waiters(holder, "b", 1)
        check_limit(client.refusal("acquire", resource="c"), "waiters_per_session", 2)
        assert client.refusal("acquire", resource="c", timeout=0).code == "busy"
        more.send("acquire", resource="a")
        with greeted(daemon) as third, greeted(daemon) as fourth:
            third.send("acquire", resource="a")
            wait_for_waiters(holder, "a", 3)
            check_limit(fourth.refusal("acquire", resource="a"), "queue_length", 3)
            assert fourth.refusal("acquire", resource="a", timeout=0).code == "busy"
            fourth.acquire("free")


def test_unanswered_requests_of_a_user_are_bounded(limited: Limited) -> None:
    daemon = limited(requests_per_user=2)
    with greeted(daemon) as holder, greeted(daemon) as one, greeted(daemon) as two:
        holder.acquire("a")
        first = one.send("acquire", resource="a")
        two.send("acquire", resource="a")
        wait_for_waiters(holder, "a", 2)
        check_limit(two.refusal("acquire", resource="b"), "requests_per_user", 2)
        holder.call("release", resource="a")
        one.result(first)
        two.acquire("b")


def test_sessions_of_a_user_leave_no_more_unread_than_together_they_may(
    limited: Limited,
) -> None:
    """Three that do not read are each within their own limit."""
    daemon = limited(unread_bytes_per_user=200_000, unread_bytes=190_000)
    with ExitStack() as stack:
        client, witness = (stack.enter_context(greeted(daemon)) for _ in range(2))
        for _ in range(3):
            watcher = stack.enter_context(greeted(daemon))
            watcher.call("watch")
        left: list[int] = []
        name = "x" * 250
        for _ in range(6_000):
            client.acquire(name)
            client.call("release", resource=name)
            sessions = witness.call("statistics")["sessions"]
            if sessions != (left[-1] if left else 5):
                left.append(sessions)
            if sessions == 3:
                break
        # One after the other; what the last one leaves is within all limits.
        assert left == [4, 3]


def test_half_messages_of_a_user_are_bounded_together(limited: Limited) -> None:
    daemon = limited(unread_bytes_per_user=100_000, message_timeout=600)
    half = msgpack.packb([0, 1, "acquire", [{"reason": "r" * 16_000}]])[:15_000]
    with ExitStack() as stack:
        witness = stack.enter_context(greeted(daemon))
        for number in range(12):
            client = stack.enter_context(greeted(daemon))
            client.send_bytes(half)
            wait_for_sessions(witness, min(number + 2, 7))


def test_limit_that_cannot_be_reached_is_told() -> None:
    assert shadowed(Limits()) == []
    assert shadowed(Limits(sessions=20, locks_per_session=9, locks_per_user=8)) == [
        "limits.locks_per_session is 9, but limits.locks_per_user is 8: 8 applies",
        "limits.sessions_per_user is 1024, but limits.sessions is 20, with 2 reserved "
        "for root and the daemon's own user: 18 applies to all others",
    ]


def test_message_may_be_as_long_as_configured(limited: Limited) -> None:
    daemon = limited(message_bytes=2_000)
    with greeted(daemon) as client, greeted(daemon) as other:
        client.acquire("a", reason="x" * 1_900)
        client.send("acquire", resource="b", reason="x" * 2_000)
        (message,) = client.rest()
        assert message[2][1].startswith("protocol: a message is longer than 2000 bytes")
        other.acquire("a")


def test_half_a_message_is_not_waited_for_for_ever(limited: Limited) -> None:
    daemon = limited(message_timeout=0.05)
    with greeted(daemon) as slow, greeted(daemon) as silent, greeted(daemon) as other:
        slow.acquire("a")
        slow.send_bytes(b"\x94\x00\x63\xa5hel")
        (message,) = slow.rest()
        assert message[2][1].startswith("protocol: a message was not complete after")
        other.acquire("a", timeout=10)
        silent.acquire("b")


def test_one_message_after_the_other_is_no_half_message(limited: Limited) -> None:
    daemon = limited(message_timeout=1)
    request = msgpack.packb([0, 1, "check", [{"resource": "a", "fencing_token": 1}]])
    with greeted(daemon) as client:
        until = time.monotonic() + 1.5
        # There is always a message that has begun, and never one for long.
        client.send_bytes(request[:5])
        while time.monotonic() < until:
            client.send_bytes(request[5:] + request[:5])
            assert client.result(1) == {"current": False}
        client.send_bytes(request[5:])
        client.result(1)


def test_message_that_gets_complete_in_time_is_answered(limited: Limited) -> None:
    daemon = limited(message_timeout=60)
    with greeted(daemon) as client:
        client.send_bytes(b"\x94\x00\x63\xaastat")
        with greeted(daemon) as other:
            other.call("statistics")
        client.send_bytes(b"istics\x90")
        assert client.result(0x63)["sessions"] >= 1


def test_lowered_limit_takes_nothing_away(limited: Limited) -> None:
    daemon = limited(locks_per_session=5)
    with greeted(daemon) as client:
        client.call("acquire", resources=["a", "b", "c"])
        daemon.config.write_text("[limits]\nlocks_per_session = 1\n")
        daemon.reload()
        check_limit(client.refusal("acquire", resource="d"), "locks_per_session", 1)
        for name in "abc":
            client.call("release", resource=name)
        client.acquire("d")


def test_clients_get_in_again_when_descriptors_are_free(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    used = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 5, used + 5))
    with ExitStack() as stack:
        inside = stack.enter_context(greeted(daemon))
        crowd = [WireClient(daemon.socket) for _ in range(20)]
        refused = 0
        for client in crowd:
            stack.enter_context(client)
            try:
                client.call("statistics")
            except (AssertionError, ConnectionError):
                refused += 1
        assert refused >= 15
        inside.acquire("a")
        for client in crowd:
            client.close()
        wait_for_sessions(inside, 1)
        with greeted(daemon) as late:
            late.acquire("b")


@needs_root
def test_admin_gets_in_when_others_have_all_descriptors(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "locks").mkdir(mode=0o755)
    path = tmp_path / "admin.sock"
    daemon = start_daemon(
        f"admin_socket = '{path}'\n[lockspaces.files]\nkind = 'directory'\n"
        f"path = '{tmp_path}/locks'\n",
        prefix=["prlimit", "--nofile=600:600"],
    )
    with ExitStack() as stack:

        def stranger() -> WireClient:
            client = connected_as(daemon.socket, NOBODY, NOBODY)
            return stack.enter_context(client)

        client, taken, error = stranger(), 0, None
        while error is None:
            wanted = {"resource": f"{taken}", "lockspace": "files"}
            error, _ = client.answer(client.send("acquire", **wanted))
            taken += error is None
        assert error[1].startswith("unavailable")
        assert taken > 450
        assert len(os.listdir(tmp_path / "locks")) == taken
        # Each takes two, and the first ones perhaps the last that are not reserved.
        crowd = [stranger() for _ in range(4)]
        refusal = turned_away(crowd[-1])
        assert refusal.sentence.startswith(
            "the limit of 536 descriptors is reached (LimitNOFILE): "
        )
        admins = [stack.enter_context(WireClient(path)) for _ in range(10)]
        admins.append(stack.enter_context(WireClient(daemon.socket)))
        for admin in admins:
            admin.call("statistics")
            admin.close()
        daemon.upgrade()
        client.call("release", resource="0", lockspace="files")


def test_lockctl_says_which_limit_it_is(limited: Limited) -> None:
    daemon = limited(sessions_per_user=1)
    with greeted(daemon):
        done = subprocess.run(
            ["lockctl", f"--socket={daemon.socket}", "list"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env=os.environ | {"PATH": os.path.dirname(sys.executable)},
        )
    assert done.returncode == 69
    assert done.stderr == (
        "lockctl: the limit of 1 is reached (limits.sessions_per_user): end another "
        "session of this user, or have an admin raise it\n"
    )
