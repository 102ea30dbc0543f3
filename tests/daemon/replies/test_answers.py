"""Who is told what, and when."""

from support.wire_client import Connect, WireClient, wait_for_waiters


def test_grants_to_others_go_out_with_the_release_that_caused_them(
    client: WireClient, connect: Connect
) -> None:
    client.acquire("a")
    waiters = [connect() for _ in range(3)]
    asked = []
    for count, waiter in enumerate(waiters, 1):
        asked.append(waiter.send("acquire", resource="a", mode="shared"))
        wait_for_waiters(client, "a", count)
    client.call("release", resource="a")
    tokens = [
        waiter.result(msgid)["grant"]["fencing_token"]
        for waiter, msgid in zip(waiters, asked, strict=True)
    ]
    assert tokens == sorted(tokens)


def test_answer_for_a_session_that_has_gone_is_dropped(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    client.acquire("a")
    other.send("acquire", resources=["a", "b"])
    wait_for_waiters(client, "a", 1)
    other.send_bytes(b"\xc1")
    client.send("release", resource="a")
    other.rest()
    connect().acquire("b")


def test_registration_that_is_refused_leaves_nothing_for_the_next_answer(
    client: WireClient,
) -> None:
    client.acquire("a")
    client.send_message([0, 50, "register", [{"owner": {"name": "x"}}]])
    assert client.refused(50).code == "invalid"
    client.send_message([0, 50, "release", [{"resource": "a"}]])
    assert client.result(50) is None


def test_lost_lock_is_told_to_the_session_that_took_it_only(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    other.call("break", fencing_token=token, reason="x")
    assert client.notification("lost")["fencing_token"] == token
    other.call("query", resource="a")
    assert other.kept == []
