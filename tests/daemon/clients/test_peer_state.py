"""The state of a session goes from one daemon to the next, older or newer."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import msgpack
import msgspec
import pytest

from lockd.daemon.clients.peer import ARRAY, RELOAD, Peer
from lockd.daemon.clients.peer_state import PeerState, Position
from lockd.daemon.system.credentials import Credentials, Identity

OLDEST = [7, 3, {"greeted": True, "partial": b""}, b"x", 0, [], False, False, None]
"""What the first daemon that kept a state wrote, but for the last two fields."""


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        pair = socket.socketpair()
        for sock in pair:
            stack.enter_context(sock).setblocking(False)
        yield list(pair)


def peer_of(sock: socket.socket) -> Peer:
    identity = Identity(Credentials(1, 2, 3), frozenset([3]), None, False, 2)
    return Peer(1, sock, identity, 0.0, lambda events: None)


def state_of(peer: Peer, claims: int | None = None) -> PeerState:
    """Returns its state as it comes out of two records."""
    position, rest = map(msgspec.msgpack.encode, peer.dump_state(claims))
    state = msgspec.msgpack.decode(rest, type=PeerState)
    assert state.position_apart
    return state.at(msgspec.msgpack.decode(position, type=Position))


def test_state_of_an_older_daemon_has_the_defaults() -> None:
    state = msgspec.convert([*OLDEST, False, None], PeerState)
    assert (state.done, state.sent, state.unsent) == (7, 3, b"x")
    assert (state.claims, state.reloads) == (None, ())
    assert (state.unsent_apart, state.partial_apart) == (0, 0)
    assert not state.position_apart
    assert state.is_inheritable


def test_state_of_a_newer_daemon_can_be_read() -> None:
    now = msgspec.to_builtins(msgspec.convert([*OLDEST, False, None], PeerState))
    assert msgspec.convert([*now, "unknown"], PeerState).done == 7


def test_peer_continues_where_another_one_stopped(
    sockets: list[socket.socket],
) -> None:
    ours, theirs = sockets
    before = peer_of(ours)
    request = msgpack.packb([0, 1, "query", [{"resource": "a"}]])
    theirs.sendall(request + request[:5])
    before.receive(lambda peer, call: peer.send_result(call.msgid, {"n": 1}))
    before.introduce("somebody")
    before.restrict()
    before.begin_watching("images")
    before.expected = {8: ARRAY, 9: {"owner": None}}
    before.late = {10: RELOAD}
    before.collect()
    state = state_of(before, claims=2)
    assert state.done == len(request) + 5
    assert state.connection["partial"] == request[:5]
    assert (state.arrays, state.reloads, state.claims) == ([8], (10,), 2)

    after = peer_of(ours)
    after.load_state(state)
    assert after.connection.greeted
    assert (after.client, after.restricted, after.watched) == (
        *("somebody", True),
        "images",
    )
    assert (after.expected, after.late) == ({8: ARRAY}, {10: RELOAD})
    assert state_of(after, claims=2) == state
    after.flush()
    assert msgpack.unpackb(theirs.recv(1_000)) == [1, 1, None, {"n": 1}]
    theirs.sendall(request[5:])
    calls: list[int] = []
    after.receive(lambda peer, call: calls.append(call.msgid))
    assert calls == [1]


def test_requests_that_were_left_for_later_are_not_done(
    sockets: list[socket.socket],
) -> None:
    ours, theirs = sockets
    peer = peer_of(ours)
    request = msgpack.packb([0, 1, "query", [{"resource": "a"}]])
    theirs.sendall(2 * request)

    def answer_at_length(peer: Peer, call: object) -> None:
        peer.send_result(1, "x" * 300_000)

    peer.receive(answer_at_length)
    assert peer.has_more
    state = state_of(peer)
    assert state.done == len(request)
    assert state.connection["partial"] == b""
