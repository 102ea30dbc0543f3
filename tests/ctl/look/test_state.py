"""What a person is told while `lockctl run` waits."""

import os
from typing import Any

import pytest

from ctl.processes import Lockctl
from lockd import Client
from lockd.ctl.look.state import State, explain_wait
from lockd.ctl.render import since
from support.asking import ask_until

HOLDER: dict[str, Any] = {
    "name": "tar",
    "fencing_token": 5,
    "pid": 604,
    "uid": 0,
    "since": 1_000_000_000.0,
    "label": None,
    "reason": None,
}
OUTSIDER: dict[str, Any] = {"command": "/usr/bin/qemu -m 4", "pid": 77}


@pytest.mark.parametrize(
    ("held_for", "reason", "count", "said"),
    [
        (4.0, None, 1, "held for 4 s by tar, pid 604, uid 0"),
        (
            7_800.0,
            "nightly",
            3,
            f"held for 2h10m, since {since(1_000_000_000)}, by tar, pid 604, uid 0 "
            "(nightly) and 2 more",
        ),
    ],
)
def test_holder_is_named_since_when_and_why(
    held_for: float, reason: str | None, count: int, said: str
) -> None:
    holders = [HOLDER | {"held_for": held_for, "reason": reason}]
    assert State({"holders": holders, "holder_count": count}, []).held == said


def test_who_holds_it_outside_is_named_where_nobody_else_does() -> None:
    nobody = {"holders": [], "holder_count": 0, "outside": None}
    assert State(nobody, []).held == "held by nobody in lockd"
    assert State(nobody, [OUTSIDER]).held == "held by qemu (pid 77) outside lockd"
    nameless = {"command": None, "pid": None}
    assert State(nobody, [nameless]).held == "held by a process outside lockd"
    told = nobody | {"outside": {"command": "qemu", "pid": 77, "mode": "shared"}}
    assert State(told, []).held == "held by qemu (pid 77) outside lockd"


def test_who_was_refused_meanwhile_waits_no_more(
    sock: str, client: Client, lockctl: Lockctl
) -> None:
    client.acquire("job")
    lockctl.start("run", "job", "--", "true")
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    other = state["waiters"][0]["session"] + 1
    assert explain_wait(sock, "default", ["job"], other, os.getpid()) is None


def test_who_has_it_by_now_waits_no_more(sock: str, client: Client) -> None:
    client.acquire("job")
    pid = os.getpid()
    assert explain_wait(sock, "default", ["job"], client.session, pid) is None


def test_pid_of_another_namespace_is_nobodys_ancestor(
    sock: str, client: Client, lockctl: Lockctl
) -> None:
    """The daemon knows the waiter by another pid than this process does."""
    client.acquire("job")
    lockctl.start("run", "job", "--", "true")
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    (waiter,) = state["waiters"]
    for pid, told in ((waiter["pid"], True), (7, False)):
        wait = explain_wait(sock, "default", ["job"], waiter["session"], pid)
        assert wait is not None
        assert wait.is_for_ancestor == told
