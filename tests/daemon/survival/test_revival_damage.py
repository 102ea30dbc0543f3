"""What was kept is damaged when the daemon is killed; nothing is given away for it.

Who goes on has all that was granted; who does not sees the end of the connection. A
file of which nobody knows any more who holds it stays locked.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import msgpack
import pytest

from daemon.stores.kept import copies, is_locked, lock
from lockd.daemon.stores import ledger_file
from lockd.daemon.stores.in_flight import InFlight
from lockd.daemon.stores.labels import DAEMON, PEER, POSITION, SPACE, STATE, key_of
from lockd.daemon.stores.ledger import DAMAGED, Ledger
from lockd.daemon.system.fdstore import PREFIX
from support.nursery import RUN_SOURCE
from support.service_manager import ServiceManager
from support.wire_client import WireClient, wait_for_waiters

STAYS = "stays locked, and nobody holds it"

# Runs the daemon up to the first call of something.
DIE_AT = (
    RUN_SOURCE
    + """
import importlib, os, signal, sys
module, _, path = sys.argv[1].partition(":")
*owner, name = path.split(".")
place = importlib.import_module("lockd.daemon." + module)
for part in owner:
    place = getattr(place, part)
getattr(place, name)  # else it would never die
setattr(place, name, lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL))
sys.argv = ["lockd", *sys.argv[5:]]
from lockd.daemon.main import main
main()
"""
)


@pytest.fixture
def manager(tmp_path: Path, locks: Path) -> Iterator[ServiceManager]:
    place = tmp_path / "service"
    place.mkdir()
    config = f'[lockspaces.files]\nkind = "directory"\npath = "{locks}"\n'
    # The laws hold again when those are ended whom it concerns.
    manager = ServiceManager(place, config, checks=False)
    manager.start()
    yield manager
    manager.close()


class Victim:
    """A client that holds a file and a name of its own."""

    def __init__(self, manager: ServiceManager, locks: Path, number: int) -> None:
        self.client = WireClient(manager.socket)
        self.file, self.name = f"f{number}", f"m{number}"
        self.path = locks / self.file
        grants = [
            self.client.acquire(self.file, lockspace="files"),
            self.client.acquire(self.name),
        ]
        self.tokens = [grant["fencing_token"] for grant in grants]
        self.session = self.client.call("query", resource=self.name)["holders"][0][
            "session"
        ]

    def goes_on(self) -> bool:
        """Tells whether its connection has not ended; whoever goes on has it all."""
        names = [("files", self.file), ("default", self.name)]
        try:
            found = [
                self.client.call("check", lockspace=x, resource=y, fencing_token=z)
                for (x, y), z in zip(names, self.tokens, strict=True)
            ]
        except (AssertionError, OSError):
            return False
        assert found == [{"current": True}, {"current": True}]
        assert is_locked(self.path)
        return True


@pytest.fixture
def victims(manager: ServiceManager, locks: Path) -> Iterator[list[Victim]]:
    victims = [Victim(manager, locks, number) for number in range(4)]
    yield victims
    for victim in victims:
        victim.client.close()


def serve(manager: ServiceManager) -> None:
    """Starts the daemon, and waits until it has done what it does before it serves."""
    manager.start()
    with WireClient(manager.socket) as client:
        client.call("statistics")


def memory(manager: ServiceManager, name: str) -> int:
    return manager.stored[PREFIX + name]


def content(fd: int) -> bytes:
    return os.pread(fd, os.lseek(fd, 0, os.SEEK_HOLE), 0)


def lose(manager: ServiceManager, kind: str, name: object) -> None:
    """Takes the newest record of a key away, as damage does which nobody can read."""
    fds = [os.dup(memory(manager, f"ledger-{number}")) for number in range(2)]
    ledger = Ledger((fds[0], fds[1]))
    key = key_of(kind, name)
    if key in ledger.records():
        ledger.remove(key)
    else:
        # What says that it has no value any more is lost: the value counts again.
        ledger.put(key, before(ledger, key))
    ledger.put(DAMAGED, b"")
    ledger.commit()
    ledger.close()


def before(ledger: Ledger, key: bytes) -> bytes:
    """Returns the last value that a key had."""
    return history(ledger, key)[-1]


def history(ledger: Ledger, key: bytes) -> list[bytes]:
    """Returns all values that a key had."""
    found, offset = [], ledger_file.DATA
    while record := ledger_file.find_record(ledger._file, offset):
        values = dict(zip(record.keys, record.values or (), strict=True))
        if value := values.get(key):
            found.append(value)
        offset = record.offset + record.size
    assert found, f"{key!r} was never recorded"
    return found


def is_held(path: Path) -> bool:
    """Asks the kernel; a file that was made for a lock goes with it."""
    return path.exists() and is_locked(path)


def must_be_busy(manager: ServiceManager, victim: Victim) -> None:
    with WireClient(manager.socket) as rival:
        for space, name in (("files", victim.file), ("default", victim.name)):
            refusal = rival.refusal(
                "acquire", lockspace=space, resource=name, timeout=0
            )
            assert refusal.code == "busy"


def newest(manager: ServiceManager, kind: str) -> object:
    """Returns the name of the record of a kind that was written last."""
    begin = key_of(kind, 0)[:-1]
    for number in range(2):
        data = content(memory(manager, f"ledger-{number}"))
        if (at := data.rfind(begin)) >= 0:
            return msgpack.Unpacker(io.BytesIO(data[at:])).unpack()[1]
    raise AssertionError(f"no {kind} is recorded")


# Nobody held it.


def test_spare_file_is_not_stuck(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    spare, *others = victims
    spare.client.call("release", resource=spare.file, lockspace="files")
    assert spare.path.exists()
    manager.kill()
    lose(manager, PEER, others[0].session)
    serve(manager)
    assert not spare.path.exists()
    assert is_locked(others[1].path)
    with WireClient(manager.socket) as client:
        problems = client.call("statistics")["problems"]
    stuck = [x for x in problems if STAYS in x]
    assert not any(spare.file in x for x in stuck)


# Anything.


def zero(fd: int, chance: Random) -> None:
    size = len(content(fd))
    os.pwrite(fd, b"\0" * 300, chance.randrange(min(size, 8_000)) & -8)


def cut(fd: int, chance: Random) -> None:
    os.ftruncate(fd, chance.randrange(len(content(fd).rstrip(b"\0"))))


def turn_bits(fd: int, chance: Random) -> None:
    data = bytearray(content(fd))
    used = len(data.rstrip(b"\0"))
    for _ in range(chance.choice([1, 1, 20])):
        data[chance.randrange(used)] ^= 1 << chance.randrange(8)
    os.pwrite(fd, data, 0)


def fill(fd: int, chance: Random) -> None:
    os.pwrite(fd, chance.randbytes(len(content(fd))), 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ledger-0", "cells"])
@pytest.mark.parametrize("spoil", [zero, cut, turn_bits, fill])
@pytest.mark.parametrize("seed", range(3))
def test_whoever_is_not_told_has_it_all(
    manager: ServiceManager,
    victims: list[Victim],
    name: str,
    spoil: Callable[[int, Random], None],
    seed: int,
) -> None:
    waiter = WireClient(manager.socket)
    waiting = waiter.send("acquire", resource="f0", lockspace="files")
    wait_for_waiters(victims[0].client, "f0", 1, lockspace="files")
    manager.kill()
    spoil(memory(manager, name), Random(seed))
    serve(manager)
    going_on = [victim for victim in victims if victim.goes_on()]
    for victim in going_on:
        must_be_busy(manager, victim)
    locked = [victim.path for victim in victims if is_held(victim.path)]
    # Now nothing is damaged any more.
    manager.kill()
    serve(manager)
    assert [victim for victim in victims if victim.goes_on()] == going_on
    assert [victim.path for victim in victims if is_held(victim.path)] == locked
    if name == "cells":
        # All is known: the rule of the lockspace says what becomes of it.
        assert STAYS not in manager.log()
    with suppress(AssertionError, OSError):
        if victims[0] in going_on:
            victims[0].client.call("release", resource="f0", lockspace="files")
        waiter.result(waiting)
        assert is_locked(victims[0].path)
    waiter.close()


def test_nothing_can_be_read_and_it_serves(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    manager.kill()
    for name in ("ledger-0", "ledger-1", "cells"):
        os.ftruncate(memory(manager, name), 0)
    serve(manager)
    for start in range(3):
        assert not any(victim.goes_on() for victim in victims)
        assert all(is_held(victim.path) for victim in victims)
        manager.wait_for_log(STAYS, (start + 1) * len(victims))
        with WireClient(manager.socket) as client:
            token = client.acquire(f"new{start}", lockspace="files")["fencing_token"]
            assert token > max(victims[-1].tokens)
            refusal = client.refusal(
                "acquire", resource="f0", lockspace="files", timeout=0
            )
            assert refusal.code == "busy"
        manager.kill()
        serve(manager)


@pytest.mark.parametrize(
    "place",
    [
        "survival.remains:Remains.__init__",
        "start.takeover:take_over",
        "survival.keeping:StoredKeeping.hold_stuck",
        "stores.in_flight:InFlight.drop",
        "survival.recording:Recorder.record_anew",
        "survival.keeping:StoredKeeping.forget_the_rest",
        "survival.keeping:StoredKeeping.write_anew",
        "service:Service.run",
    ],
)
@pytest.mark.parametrize("all_of_it", [True, False])
def test_start_that_is_killed_forgets_no_damage(
    manager: ServiceManager, victims: list[Victim], place: str, all_of_it: bool
) -> None:
    manager.kill()
    if all_of_it:
        for number in range(2):
            os.ftruncate(memory(manager, f"ledger-{number}"), 0)
    else:
        for victim in victims:
            lose(manager, "grant", victim.tokens[0])
    for _ in range(2):
        manager.start(wait=False, prefix=(sys.executable, "-c", DIE_AT, place))
        assert manager.wait() == -signal.SIGKILL
    for _ in range(2):
        serve(manager)
        assert not any(victim.goes_on() for victim in victims)
        assert all(is_held(victim.path) for victim in victims)
        manager.kill()
    serve(manager)


# A record.


def test_file_of_a_lost_grant_stays_locked_until_the_service_is_stopped(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    manager.kill()
    lose(manager, "grant", victims[1].tokens[0])
    serve(manager)
    told, others = victims[1], [victims[0], *victims[2:]]
    for start in range(3):
        assert not told.goes_on()
        assert all(victim.goes_on() for victim in others)
        assert is_locked(told.path)
        manager.wait_for_log(f"'files:{told.file}' {STAYS}", start + 1)
        with WireClient(manager.socket) as rival:
            names = {"resource": told.file, "lockspace": "files"}
            assert rival.refusal("acquire", **names, timeout=0).code == "busy"
            # Its other grant was known, and went with it.
            rival.acquire(told.name)
        manager.kill()
        serve(manager)
    manager.upgrade()
    assert is_locked(told.path)
    assert manager.stop() == 0
    while manager.stored:
        os.close(manager.stored.popitem()[1])
    assert not is_held(told.path)
    serve(manager)


def test_lost_grant_of_a_name_ends_its_session(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    manager.kill()
    lose(manager, "grant", victims[2].tokens[1])
    serve(manager)
    assert [victim.goes_on() for victim in victims] == [True, True, False, True]
    assert not is_held(victims[2].path)


def test_lost_end_of_a_grant_brings_nobody_what_another_has(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    first, second = victims[:2]
    first.client.call("release", resource=first.file, lockspace="files")
    token = second.client.acquire(first.file, lockspace="files")["fencing_token"]
    manager.kill()
    lose(manager, "grant", first.tokens[0])
    serve(manager)
    names = {"resource": first.file, "lockspace": "files", "fencing_token": token}
    assert second.client.call("check", **names)["current"]
    assert is_locked(first.path)
    assert not first.goes_on()
    assert second.goes_on()


def test_lost_grant_beside_a_lost_end_of_another_is_noticed(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    # One too many and one too few: what is left are as many as before.
    victim = victims[0]
    victim.client.call("release", resource=victim.name)
    token = victim.client.acquire("other")["fencing_token"]
    victim.client.acquire("last")
    manager.kill()
    lose(manager, "grant", victim.tokens[1])
    lose(manager, "grant", token)
    serve(manager)
    assert not victim.goes_on()


def test_lost_conversion_is_noticed(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    client = victims[0].client
    token = client.acquire("c", mode="shared")["fencing_token"]
    client.call("convert", resource="c", mode="exclusive")
    manager.kill()
    lose(manager, "grant", token)
    serve(manager)
    assert not victims[0].goes_on()


def test_lost_request_ends_who_waits(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    waiting = victims[1].client.send("acquire", resource="m0")
    wait_for_waiters(victims[0].client, "m0", 1)
    manager.kill()
    lose(manager, "request", newest(manager, "request"))
    serve(manager)
    assert waiting
    assert [victim.goes_on() for victim in victims] == [True, False, True, True]


@pytest.mark.parametrize("kind", [PEER, STATE, POSITION, "session"])
def test_session_that_lost_its_record_is_told_before_others_get_its_locks(
    manager: ServiceManager, victims: list[Victim], kind: str
) -> None:
    manager.kill()
    lose(manager, kind, victims[3].session)
    serve(manager)
    assert [victim.goes_on() for victim in victims] == [True, True, True, False]
    with WireClient(manager.socket) as rival:
        rival.acquire(victims[3].name)


def test_older_state_does_not_pass_for_the_one_that_was_lost(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    """It would give a session the rights back that it gave up."""
    victims[3].client.call("restrict")
    victims[3].client.call("query", resource="m3")  # its position counts from here
    manager.kill()
    ledger = Ledger(_pair(manager))
    key = key_of(STATE, victims[3].session)
    *_, older, newest = history(ledger, key)
    assert older != newest
    ledger.put(key, older)
    ledger.put(DAMAGED, b"")
    ledger.commit()
    ledger.close()
    serve(manager)
    assert [victim.goes_on() for victim in victims] == [True, True, True, False]


@pytest.mark.parametrize("kind", [DAEMON, "counts"])
def test_lost_counts_give_no_number_twice(
    manager: ServiceManager, victims: list[Victim], kind: str
) -> None:
    manager.kill()
    lose(manager, kind, 0)
    serve(manager)
    assert all(victim.goes_on() for victim in victims)
    with WireClient(manager.socket) as client:
        token = client.acquire("new")["fencing_token"]
        assert token > max(max(victim.tokens) for victim in victims)
        session = client.call("query", resource="new")["holders"][0]["session"]
        assert session > victims[-1].session


@pytest.mark.parametrize("kind", [SPACE, "lockspace"])
@pytest.mark.parametrize("name", ["default", "files", "made"])
def test_lockspace_that_is_recorded_in_one_place_goes_on(
    manager: ServiceManager, victims: list[Victim], kind: str, name: str
) -> None:
    client = victims[0].client
    client.call("create_lockspace", name="made", kind="memory")
    client.acquire("a", lockspace="made")
    manager.kill()
    lose(manager, kind, name)
    serve(manager)
    assert all(victim.goes_on() for victim in victims)
    client.call("release", resource="a", lockspace="made")


def test_lockspace_of_which_nothing_is_known_costs_who_used_it(
    manager: ServiceManager, victims: list[Victim], tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    with WireClient(manager.admin_socket) as admin:
        path = str(tmp_path / "made")
        admin.call("create_lockspace", name="made", kind="directory", path=path)
        admin.acquire("f", lockspace="made")
        manager.kill()
        for kind in (SPACE, "lockspace"):
            lose(manager, kind, "made")
        serve(manager)
        assert all(victim.goes_on() for victim in victims)
        admin.rest()
        assert is_locked(tmp_path / "made" / "f")


# What is no record, and what is no label.


def test_what_is_no_record_is_told_and_costs_nothing(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    manager.kill()
    ledger = Ledger(_pair(manager))
    ledger.put(b"\xc0", b"\xc1")
    ledger.put(key_of("nonsense", [{}]), b"\xc0")
    ledger.put(key_of(PEER, [{}]), b"\xc0")
    ledger.commit()
    ledger.close()
    serve(manager)
    assert all(victim.goes_on() for victim in victims)
    manager.wait_for_log("not taken over: the record", 2)


def test_what_is_kept_without_a_label_stays_kept(
    manager: ServiceManager, victims: list[Victim], tmp_path: Path
) -> None:
    manager.kill()
    ends = [memory(manager, name[len(PREFIX) :]) for name in sorted(manager.stored)
            if "end-" in name]  # fmt: skip
    keeper = InFlight(copies(ends))
    keeper.recover()
    fd = lock(tmp_path / "unknown")
    keeper.keep(b"\xc1", fd)
    keeper.close()
    os.close(fd)
    for _ in range(3):
        serve(manager)
        assert all(victim.goes_on() for victim in victims)
        assert is_locked(tmp_path / "unknown")
        manager.kill()
    serve(manager)


def test_records_of_another_version_are_refused_and_kept(
    manager: ServiceManager, victims: list[Victim]
) -> None:
    manager.kill()
    ledger = Ledger(_pair(manager))
    generation, salt = ledger._file.generation, ledger._file.salt
    # Its bits join those of our own version, before the salt.
    ledger._file.write_header(generation, 99 << 32 | salt)
    header = ledger_file.read_header(memory(manager, "ledger-0"), [])
    assert header is not None
    assert header.version == 99
    manager.start(wait=False)
    assert manager.wait() == 75
    ledger._file.write_header(generation, salt)
    ledger.close()
    serve(manager)
    assert all(victim.goes_on() for victim in victims)


def _pair(manager: ServiceManager) -> tuple[int, int]:
    first, second = copies([memory(manager, f"ledger-{n}") for n in range(2)])
    return first, second
