"""What comes and goes is freed when it goes: nobody has to look for cycles."""

import gc
import os
import socket
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.served import Served
from support.processes import idle
from support.wire_client import WireClient, wait_for_sessions, wait_for_waiters

ROUNDS = 5


@pytest.fixture(params=["plain", "kept"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path, kept=request.param == "kept") as served:
        yield served


@pytest.fixture
def witness(served: Served) -> Iterator[WireClient]:
    with WireClient(served.socket) as client:
        client.acquire("held")
        yield client


def holds(client: WireClient, witness: WireClient) -> None:
    client.call("hello", protocol=1, client="test")
    client.acquire("a", label="l", reason="r")
    client.call("acquire", resources=["b", "c"], mode="shared")
    client.call("convert", resource="b", mode="exclusive")
    client.call("release", resource="a")


def waits(client: WireClient, witness: WireClient) -> None:
    client.send("acquire", resource="held")
    wait_for_waiters(witness, "held", 1)


def is_refused(client: WireClient, witness: WireClient) -> None:
    client.call("hello", protocol=1, client="test")
    assert client.refusal("acquire", resource="held", timeout=0).code == "busy"
    assert client.refusal("acquire", resource="").code == "invalid"
    assert client.refusal("nonsense").code == "unknown_method"


def times_out(client: WireClient, witness: WireClient) -> None:
    assert client.refusal("acquire", resource="held", timeout=0.01).code == "timeout"


def watches(client: WireClient, witness: WireClient) -> None:
    client.call("watch")
    witness.acquire("seen")
    witness.call("release", resource="seen")
    client.notification("event")


def does_not_read(client: WireClient, witness: WireClient) -> None:
    client.call("watch")
    for _ in range(2_000):
        witness.acquire("x" * 200)
        witness.call("release", resource="x" * 200)


def lists(client: WireClient, witness: WireClient) -> None:
    client.call("list_sessions")
    client.call("list", limit=1)
    client.call("query", resource="held")
    client.call("statistics")


def registers_itself(client: WireClient, witness: WireClient) -> None:
    client.call("register", owner={"name": "me", "pid": os.getpid()})
    client.acquire("mine")


def registers_a_process(client: WireClient, witness: WireClient) -> None:
    with idle() as process:
        client.call("register", owner={"name": "it", "pid": process.pid})
        client.acquire("its")


def says_half_a_message(client: WireClient, witness: WireClient) -> None:
    client.send_bytes(b"\x94\x00\x01\xa5que")
    witness.call("statistics")


def sends_garbage(client: WireClient, witness: WireClient) -> None:
    client.send_bytes(b"\xc1")
    client.rest()


def shuts_down(client: WireClient, witness: WireClient) -> None:
    client.call("statistics")
    client.socket.shutdown(socket.SHUT_WR)
    client.rest()


def asks_much(client: WireClient, witness: WireClient) -> None:
    asked = [client.send("query", resource="held") for _ in range(50)]
    for msgid in asked:
        client.result(msgid)


Kind = Callable[[WireClient, WireClient], None]
KINDS: list[Kind] = [
    holds,
    waits,
    is_refused,
    times_out,
    watches,
    does_not_read,
    lists,
    registers_itself,
    registers_a_process,
    says_half_a_message,
    sends_garbage,
    shuts_down,
    asks_much,
]


@pytest.mark.interpreted(run=False)  # of 26 rounds, each would fail alike
@pytest.mark.parametrize("kind", KINDS)
def test_session_is_freed_when_it_ends(
    kind: Kind, served: Served, witness: WireClient
) -> None:
    def come_and_go() -> None:
        with WireClient(served.socket) as client:
            kind(client, witness)
        wait_for_sessions(witness, 1)

    def collect() -> Counter[str]:
        """Returns of what kinds that is of ours what only a collection frees."""
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            found = Counter(
                f"{type(x).__module__}.{type(x).__qualname__}" for x in gc.garbage
            )
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        return Counter({x: n for x, n in found.items() if x.startswith("lockd.")})

    come_and_go()
    refs: list[weakref.ref[object]] = []
    add_peer = served.service.parts.answers.add_peer

    def note_and_add(peer: object) -> None:
        refs.extend(map(weakref.ref, (peer, peer.connection, peer.flow)))  # type: ignore[attr-defined]
        add_peer(peer)  # type: ignore[arg-type]

    served.service.parts.answers.add_peer = note_and_add  # type: ignore[method-assign]
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            come_and_go()
        # Some more turns: what the last ones had in their hands is let go.
        for _ in range(4):
            witness.call("statistics")
        alive = [x() for x in refs if x() is not None]
        assert len(refs) == 3 * ROUNDS
        assert alive == []
        assert served.call(collect) == Counter()
    finally:
        gc.enable()
        with suppress(AttributeError):
            del served.service.parts.answers.add_peer
