"""lockd and the real virtlockd on one directory exclude each other."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from lockd import BusyError, Client
from support import libvirt_client as lc
from support.outside import Outside
from support.virtlockd_process import VirtlockdProcess, why_not
from system.actors import LIMIT, Actor, wait_for_waiter
from system.conftest import StartActor

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ENOUGH: Final = 100
MOST_TRIES: Final = 100_000


class Virtlockd:
    """A connection to virtlockd about one lockspace, acting for some process.

    virtlockd kills its client if that is the owner and closes with locks held.
    """

    def __init__(self, path: Path, directory: Path, owner_pid: int) -> None:
        self._directory = str(directory)
        self._client = lc.LibvirtClient(path)
        self._client.register(owner_pid)
        assert self._client.done(lc.CREATE_LOCKSPACE, lc.text(self._directory))

    def acquire(self, name: str, flags: int = 0) -> bool:
        """Tries to take a lock."""
        return self._client.done(lc.ACQUIRE, lc.resource(self._directory, name, flags))

    def release(self, name: str) -> None:
        assert self._client.done(lc.RELEASE, lc.resource(self._directory, name))

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def virtlockd(tmp_path: Path, locks: Path, outside: Outside) -> Iterator[Virtlockd]:
    """A connection to a virtlockd of our own."""
    place = tmp_path / "virtlockd"
    place.mkdir()
    process = VirtlockdProcess(place)
    try:
        with closing(Virtlockd(process.socket, locks, outside.pid)) as connection:
            yield connection
    finally:
        process.close()


@pytest.mark.parametrize("create", [True, False])
def test_virtlockd_respects_a_lock_of_lockd(
    client: Client, virtlockd: Virtlockd, locks: Path, create: bool
) -> None:
    if not create:
        (locks / "web1").touch()
    grant = client.acquire("web1", lockspace="vms", create=create)
    assert not virtlockd.acquire("web1", lc.AUTOCREATE)
    assert not virtlockd.acquire("web1", lc.AUTOCREATE | lc.SHARED)
    client.release(grant)
    assert virtlockd.acquire("web1", lc.AUTOCREATE)


@pytest.mark.parametrize("flags", [0, lc.AUTOCREATE])
def test_lockd_respects_and_names_a_lock_of_virtlockd(
    client: Client, virtlockd: Virtlockd, locks: Path, flags: int
) -> None:
    if not flags:
        (locks / "web1").touch()
    assert virtlockd.acquire("web1", flags)
    with pytest.raises(BusyError) as refusal:
        client.acquire("web1", lockspace="vms", timeout=0)
    assert refusal.value.facts["outside"]["command"] == "virtlockd"
    virtlockd.release("web1")
    assert client.try_acquire("web1", lockspace="vms")


def test_shared_locks_of_both_go_together(client: Client, virtlockd: Virtlockd) -> None:
    assert client.try_acquire("web1", lockspace="vms", mode="shared")
    assert virtlockd.acquire("web1", lc.AUTOCREATE | lc.SHARED)
    with pytest.raises(BusyError) as refusal:
        client.convert("web1", "exclusive", lockspace="vms", timeout=0)
    assert refusal.value.facts["outside"]["command"] == "virtlockd"
    virtlockd.release("web1")
    client.convert("web1", "exclusive", lockspace="vms", timeout=0)


@pytest.mark.parametrize("flags", [0, lc.AUTOCREATE])
def test_waiter_of_lockd_gets_the_lock_from_virtlockd(
    client: Client,
    start_actor: StartActor,
    virtlockd: Virtlockd,
    locks: Path,
    flags: int,
) -> None:
    if not flags:
        (locks / "web1").touch()
    assert virtlockd.acquire("web1", flags)
    waiter: Actor = start_actor("waiter").start("acquire", "web1", lockspace="vms")
    wait_for_waiter(client, "web1", "vms")
    virtlockd.release("web1")
    assert waiter.result() > 0
    assert not virtlockd.acquire("web1", lc.AUTOCREATE)


@pytest.mark.slow
def test_never_both_while_files_come_and_go(
    client: Client, virtlockd: Virtlockd, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    both = []

    def be_inside() -> None:
        try:
            inside.touch(exist_ok=False)
        except FileExistsError:
            both.append(True)
        else:
            inside.unlink()

    # How often each was inside. Who is at it more often is chance: both go on until
    # neither has been there too seldom for a collision.
    turns = {"virtlockd": 0, "lockd": 0}

    def enough() -> bool:
        return min(turns.values()) >= ENOUGH

    def through_virtlockd() -> None:
        for _ in range(MOST_TRIES):
            if enough():
                return
            if virtlockd.acquire("web1", lc.AUTOCREATE):
                be_inside()
                virtlockd.release("web1")
                turns["virtlockd"] += 1

    thread = threading.Thread(target=through_virtlockd)
    thread.start()
    while thread.is_alive():
        if grant := client.try_acquire("web1", lockspace="vms"):
            be_inside()
            client.release(grant)
            turns["lockd"] += 1
    thread.join()
    assert enough(), turns
    assert not both


def checked(directory: Path) -> tuple[int, bool, list[tuple[str, str]]]:
    """Asks `lockctl virtlockd-check`; returns status, verdict, locks in a directory.

    It asks of all virtlockds here, and there may be others.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lockd.ctl.main", "virtlockd-check", "--json"],
        stdout=subprocess.PIPE,
        check=False,
        timeout=LIMIT,
    )
    told = json.loads(done.stdout)
    locks = [(lock["path"], lock["mode"]) for lock in told["locks"]]
    return (
        done.returncode,
        told["safe"],
        [lock for lock in locks if lock[0].startswith(f"{directory}/")],
    )


def test_check_tells_what_is_locked_in_virtlockd(
    virtlockd: Virtlockd, locks: Path, tmp_path: Path
) -> None:
    assert virtlockd.acquire("web1", lc.AUTOCREATE)
    assert virtlockd.acquire("web2", lc.AUTOCREATE | lc.SHARED)
    assert checked(tmp_path) == (
        75,
        False,
        [(f"{locks}/web1", "exclusive"), (f"{locks}/web2", "shared")],
    )
    virtlockd.release("web1")
    virtlockd.release("web2")
    assert checked(tmp_path)[2] == []
