"""A MessagePack-RPC client that nobody here wrote: pynvim's."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from pynvim.msgpack_rpc import socket_session

from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_waiters


@pytest.fixture
def session(common: DaemonProcess, connect: object) -> Iterator[Any]:
    found = socket_session(str(common.socket))
    yield found
    # Its own close() leaves the socket to the garbage collector.
    loop = found.loop
    loop._transport.abort()
    loop._loop.call_soon(loop._loop.stop)
    loop._loop.run_forever()
    found.close()


def test_lock_is_taken_and_given_back(session: Any, client: WireClient) -> None:
    result = session.request("acquire", {"resource": "a", "reason": "pynvim"})
    assert set(result) == {"grant"}
    (holder,) = client.call("query", resource="a")["holders"]
    assert holder["fencing_token"] == result["grant"]["fencing_token"]
    assert holder["reason"] == "pynvim"
    assert session.request("release", {"resource": "a"}) is None


def test_hello_and_methods_without_parameters(session: Any) -> None:
    assert (
        session.request("hello", {"protocol": 1, "client": "pynvim"})["protocol"] == 1
    )
    assert session.request("statistics")["epoch"] == 1


def test_error_is_shown_whole(session: Any, client: WireClient) -> None:
    client.acquire("a", reason="backup")
    with pytest.raises(Exception, match=rf"^busy: 'a' .*pid {os.getpid()}.*backup"):
        session.request("acquire", {"resource": "a", "timeout": 0})
    with pytest.raises(Exception, match=r"^unknown_method: there is no method 'nope'"):
        session.request("nope", {})
    with pytest.raises(Exception, match=r"^invalid: acquire: .*`colour`"):
        session.request("acquire", {"resource": "a", "colour": 1})


def test_error_with_facts_is_shown_too(session: Any, client: WireClient) -> None:
    session.request("hello", {"protocol": 1, "client": "pynvim"})
    client.acquire("a")
    with pytest.raises(Exception, match=r"^busy: "):
        session.request("acquire", {"resource": "a", "timeout": 0})


def test_answers_may_come_out_of_order(session: Any, client: WireClient) -> None:
    client.acquire("a")
    order: list[str] = []

    def waiting() -> None:
        session.request("acquire", {"resource": "a"})
        order.append("a")
        session.stop()

    def meanwhile() -> None:
        session.request("acquire", {"resource": "b"})
        wait_for_waiters(client, "a", 1)
        order.append("b")
        client.call("release", resource="a")

    session.threadsafe_call(waiting)
    session.threadsafe_call(meanwhile)
    session.run(None, None)
    assert order == ["b", "a"]


def test_lost_lock_is_told_as_a_notification(session: Any, client: WireClient) -> None:
    token = session.request("acquire", {"resource": "a"})["grant"]["fencing_token"]
    client.call("break", fencing_token=token, reason="enough")
    kind, name, (told,) = session.next_message()
    assert (kind, name) == ("notification", "lost")
    assert (told["cause"], told["reason"]) == ("broken", "enough")
