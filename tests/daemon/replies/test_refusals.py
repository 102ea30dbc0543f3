"""The facts that a refusal carries."""

from collections.abc import Callable

import pytest

from daemon.replies.conftest import HOLDER, SITUATION
from support.wire_client import WireClient, wait_for_waiters


@pytest.mark.parametrize("code", ["busy", "timeout", "already_held"])
def test_facts_of_a_refusal_have_their_shape(
    code: str, client: WireClient, other: WireClient
) -> None:
    other.call("hello", protocol=1, client="test")
    asker = other
    if code == "already_held":
        other.acquire("a")
    else:
        client.acquire("a")
    timeout = {"busy": 0, "timeout": 0.01, "already_held": None}[code]
    refusal = asker.refusal("acquire", resource="a", timeout=timeout)
    assert refusal.code == code
    assert refusal.facts is not None
    assert set(refusal.facts) - {"waited"} == SITUATION
    assert set(refusal.facts["holders"][0]) == HOLDER
    if code == "timeout":
        assert refusal.facts["waited"] == pytest.approx(0.01)


def test_refusal_names_at_most_sixteen_of_each(
    connect: Callable[[], WireClient], client: WireClient
) -> None:
    holders = [connect() for _ in range(20)]
    for holder in holders:
        holder.acquire("a", mode="shared")
    for count, waiter in enumerate((connect() for _ in range(18)), 1):
        waiter.send("acquire", resource="a")
        wait_for_waiters(client, "a", count)
    client.call("hello", protocol=1, client="test")
    facts = client.refusal("acquire", resource="a", timeout=0).facts
    assert facts is not None
    assert (len(facts["holders"]), facts["holder_count"]) == (16, 20)
    assert (len(facts["waiters"]), facts["waiter_count"]) == (16, 18)
    (listed,) = client.call("list")["resources"]
    assert set(listed) == SITUATION | {"outside"}
    assert (len(listed["holders"]), listed["holder_count"]) == (4, 20)
    assert (len(listed["waiters"]), listed["waiter_count"]) == (4, 18)
