"""What of a daemon is recorded."""

import os
import sys
import time

import msgpack
import msgspec

from lockd.daemon.clients.peer_state import PeerState, Position
from lockd.daemon.stores.labels import PEER, POSITION, STATE, key_of
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.ledger_file import FileHeader, read_header
from lockd.daemon.survival.recording import LAST
from lockd.daemon.system.fdstore import PREFIX
from support.nursery import RUN_SOURCE
from support.service_manager import ServiceManager
from support.wire_client import Connect, WireClient, wait_for_sessions, wait_for_waiters


def test_what_is_recorded_does_not_grow_with_what_is_unread(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    def written() -> int:
        """Returns how many bytes ten locks had recorded."""
        while True:
            before = ledger_headers(manager)
            for _ in range(10):
                other.acquire("a")
                other.call("release", resource="a")
            after = ledger_headers(manager)
            if [x and x.generation for x in before] == [
                x and x.generation for x in after
            ]:
                return sum(
                    new.end - old.end
                    for old, new in zip(before, after, strict=True)
                    if old and new
                )

    alone = written()
    client.call("watch")
    name = "x" * 250
    for _ in range(15):
        asked = []
        for _ in range(100):
            asked.append(other.send("acquire", resource=name))
            asked.append(other.send("release", resource=name))
        for msgid in asked:
            other.result(msgid)
    assert other.call("statistics")["kept"]["bytes"] > 400_000
    assert written() < alone + 20 * 2_500


def recorded_last_holders(manager: ServiceManager) -> int:
    """Returns how many were ever written, in a ledger too short to lose garbage."""
    end = max(header.end for header in ledger_headers(manager) if header)
    written = os.pread(manager.stored[f"{PREFIX}ledger-0"], end, 0)
    return written.count(key_of(LAST, ("default", ""))[:-1])


def ledger_headers(manager: ServiceManager) -> list[FileHeader | None]:
    return [
        read_header(manager.stored[f"{PREFIX}ledger-{number}"], [])
        for number in range(2)
    ]


#: A daemon that records all anew, as if what it finds had been written by another.
RECORDING_ANEW = (
    RUN_SOURCE
    + """
import runpy, sys
from lockd.daemon.survival.revival import Revived
Revived.is_as_written = False
sys.argv = sys.argv[3:]
runpy.run_module("lockd.daemon.main", run_name="__main__")
"""
)


def recorded(manager: ServiceManager) -> dict[str, bytes]:
    """Returns what is recorded of all but the daemon, which counts its starts."""
    ledger = open_ledger(manager)
    found = {repr(msgpack.unpackb(x)): y for x, y in ledger.records().items()}
    ledger.close()
    return {key: value for key, value in found.items() if "daemon" not in key}


def open_ledger(manager: ServiceManager) -> Ledger:
    fds = [os.dup(manager.stored[f"{PREFIX}ledger-{number}"]) for number in range(2)]
    return Ledger((fds[0], fds[1]))


def test_records_are_those_that_would_be_written_anew(
    manager: ServiceManager, connect: Connect
) -> None:
    """Whoever goes on lets the records count that it finds, and adds what changed."""
    client, other, leaver, witness = (connect() for _ in range(4))
    for name in ("a", "b"):
        client.acquire(name)
        client.acquire(name, lockspace="files")
    leaver.acquire("c")
    waiting = []
    for count, each in enumerate((other, client), 1):
        waiting.append(each.send("acquire", resource="c"))
        wait_for_waiters(witness, "c", count)
    manager.kill()
    leaver.close()
    # The end of a connection was not recorded any more.
    ledger = open_ledger(manager)
    for kind in (PEER, STATE, POSITION):
        known = next(x for x in ledger.records() if msgpack.unpackb(x)[0] == kind)
        ledger.put(key_of(kind, 999), ledger.records()[known])
    ledger.commit()
    ledger.close()
    manager.start()
    assert other.result(waiting[0])["grant"]["resource"] == "c"
    wait_for_sessions(witness, 3)
    manager.kill()
    found = recorded(manager)
    assert f"['{PEER}', 999]" not in found
    manager.start(prefix=(sys.executable, "-c", RECORDING_ANEW))
    witness.call("statistics")
    manager.kill()
    anew = recorded(manager)
    assert found.keys() == anew.keys()
    # Those who were answered: how far they are was recorded before that.
    differing = {key for key in found if found[key] != anew[key]}
    assert differing == {f"['{POSITION}', {session}]" for session in (2, 4)}
    manager.start()


def test_state_that_has_its_position_goes_on(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    """So it was recorded before version 3 of the ledger."""
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    manager.kill()
    ledger = open_ledger(manager)
    found = ledger.records()
    for session in (1, 2):
        at = key_of(POSITION, session)
        position = msgspec.msgpack.decode(found[at], type=Position)
        state = msgspec.msgpack.decode(found[key_of(STATE, session)], type=PeerState)
        ledger.put(key_of(STATE, session), msgspec.msgpack.encode(state.at(position)))
        ledger.remove(at)
    ledger.commit()
    ledger.close()
    manager.start()
    client.call("release", resource="a")
    assert other.result(waiting)["grant"]["resource"] == "a"
    manager.kill_and_start()
    other.call("release", resource="a")


# The last holder of a lock is recorded when there is time.


def held(client: WireClient, name: str, **more: str) -> int:
    """Holds a lock for a moment. Returns the fencing token."""
    token: int = client.acquire(name)["fencing_token"]
    client.call("release", resource=name, **more)
    return token


def last_token(client: WireClient, name: str) -> int | None:
    last = client.call("query", resource=name)["last_holder"]
    return None if last is None else int(last["fencing_token"])


def test_last_holder_after_a_kill_is_unknown_or_the_right_one(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    first = held(client, "a")
    # An upgrade leaves nothing for later.
    manager.upgrade()
    assert last_token(client, "a") == first
    second = held(other, "a")
    manager.kill_and_start()
    assert last_token(client, "a") in (None, second)


def test_hold_that_failed_is_known_after_a_kill(
    manager: ServiceManager, client: WireClient, other: WireClient
) -> None:
    failed = held(client, "a", outcome="failed")
    ended_well = held(client, "b", outcome="failed"), held(client, "b", outcome="ok")
    manager.kill_and_start()
    assert last_token(other, "a") == failed
    assert last_token(other, "b") in (None, ended_well[1])


def test_last_holder_is_known_after_a_restart(
    manager: ServiceManager, client: WireClient
) -> None:
    token = held(client, "a")
    manager.stop()
    manager.start()
    assert last_token(client, "a") == token


def test_last_holder_is_recorded_though_nobody_asks_for_more(
    manager: ServiceManager, client: WireClient
) -> None:
    # It asks for nothing while it waits: each request would end a turn.
    tokens = {f"lock-{n}": held(client, f"lock-{n}") for n in range(300)}
    while recorded_last_holders(manager) < 200:
        time.sleep(0.01)
    manager.kill_and_start()
    known = [
        name for name, token in tokens.items() if last_token(client, name) == token
    ]
    assert len(known) >= 200
