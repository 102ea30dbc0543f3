from typing import Any

import pytest

from daemon.replies.conftest import GRANT, KEY, OWNER
from lockd.daemon.replies.sentences import sentence
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, Refused, Situation, WaitEdge, Waiter
from lockd.terms import OutsideHolder, ResourceKey

EXCLUSIVE = Grant(KEY, 1, OWNER, 1, "exclusive", 7, since=10.0, reason="backup")
WAITER = Waiter(OWNER, 2, "exclusive", 12.0, converting=False)
FREE = Situation(KEY, (), 0, (), 0)
CROWDED = Situation(KEY, (GRANT,) * 5, 5, (WAITER,) * 2, 2)


def said(code: str, **more: Any) -> str:
    return sentence(Refused(1, 1, code, **more), 15.0)


@pytest.mark.parametrize(
    "code", ["busy", "timeout", "cancelled", "not_held", "already_held", "in_use"]
)
def test_refusal_names_lock_holders_and_waiters_on_one_line(code: str) -> None:
    found = said(code, situation=CROWDED, waited=3.0)
    assert "'disks:a'" in found
    assert "2 more" in found
    assert "2 wait" in found
    assert found.isprintable()


@pytest.mark.parametrize("code", ["busy", "timeout", "deadlock", "already_held"])
@pytest.mark.parametrize("holders", [(), (EXCLUSIVE,), (GRANT, GRANT)])
@pytest.mark.parametrize("waiters", [(), (WAITER,), (WAITER, WAITER)])
@pytest.mark.parametrize("outside", [None, OutsideHolder("shared", 9, "qemu")])
def test_every_refusal_names_its_lock_once(
    code: str,
    holders: tuple[Grant, ...],
    waiters: tuple[Waiter, ...],
    outside: OutsideHolder | None,
) -> None:
    """Where nobody holds it, too: a try is refused behind waiters."""
    if code == "busy" and not (holders or waiters or outside):
        return  # nobody is refused so
    found = Situation(KEY, holders, len(holders), waiters, len(waiters))
    told = said(code, situation=found, outside=outside, waited=1.0)
    assert told.count("'disks:a'") == 1, told
    assert "it" not in told[: told.index("'disks:a'")].split(), told


def test_one_holder_is_named_with_time_and_reason() -> None:
    found = said("busy", situation=Situation(KEY, (EXCLUSIVE,), 1, (WAITER,), 1))
    assert "exclusively" in found
    assert "5 s" in found
    assert "backup" in found
    assert "waits for it" in found


def test_label_of_the_holder_tells_what_a_hashed_name_stands_for() -> None:
    labelled = EXCLUSIVE.replace(label="/srv/a\n.img")
    found = said("busy", situation=Situation(KEY, (labelled,), 1, (), 0))
    assert found.startswith("'disks:a' (/srv/a\\n.img) is held exclusively by")


def test_timeout_says_how_long_it_was() -> None:
    assert "3 s" in said("timeout", situation=FREE, waited=3.0)


def test_outside_holder_is_named_where_it_is_known() -> None:
    found = said("busy", situation=FREE, outside=OutsideHolder("exclusive", 9, "qemu"))
    assert "qemu" in found
    assert "pid 9" in found
    unknown = said("busy", situation=FREE, outside=OutsideHolder("shared"))
    assert "shared by a process that the kernel does not name" in unknown


def test_cycle_is_told_link_by_link_and_comes_back_to_the_first() -> None:
    other = Owner("other", 6, 5)
    cycle = (WaitEdge(OWNER, 1, KEY), WaitEdge(other, 2, ResourceKey("default", "b")))
    found = said("deadlock", situation=FREE, cycle=cycle)
    assert (
        "(pid 0, uid 5) waits for 'disks:a', held or queued for by other (pid 6, "
        "uid 5), who waits for 'b', held or queued for by"
    ) in found
    assert found.index("who waits for 'b'") < found.rindex("(pid 0, uid 5)")


def test_message_stands_alone_where_there_is_no_resource() -> None:
    assert said("not_found", message="the file is gone") == "the file is gone"
