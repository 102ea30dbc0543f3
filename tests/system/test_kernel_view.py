"""lockd and processes that lock files themselves see each other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from campaigns.listings import comparisons
from conftest import StartDaemon
from lockd import AnchorError, BusyError, Client, NotFoundError
from lockd.terms import EXCLUSIVE, SHARED, Mode
from support.outside import Outside
from system.actors import Actor, wait_for_waiter

Place = tuple[str, str, Path]


@pytest.fixture(params=["directory", "direct"])
def place(request: pytest.FixtureRequest, locks: Path, image: Path) -> Place:
    """A lockspace, a resource that has a file already, and that file."""
    if request.param == "direct":
        return "direct", str(image), image
    (locks / "web1").touch()
    return "vms", "web1", locks / "web1"


# From here to there.


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_lock_is_seen_and_respected_outside(
    client: Client, place: Place, outside: Outside, mode: Mode
) -> None:
    lockspace, name, file = place
    grant = client.acquire(name, lockspace=lockspace, mode=mode)
    assert outside.probe(file) == (mode, -1)
    assert not outside.lock(file)
    assert not outside.lock(file, kind="ofd")
    assert outside.lock(file, SHARED) == (mode == SHARED)
    client.release(grant)
    assert outside.lock(file)


def test_conversion_is_seen_outside(
    client: Client, place: Place, outside: Outside
) -> None:
    lockspace, name, file = place
    grant = client.acquire(name, lockspace=lockspace)
    client.convert(grant, SHARED)
    assert outside.probe(file) == (SHARED, -1)
    client.convert(grant, EXCLUSIVE)
    assert outside.probe(file, SHARED) == (EXCLUSIVE, -1)


# From there to here.


def test_posix_lock_from_outside_is_busy_and_named(
    client: Client, place: Place, outside: Outside
) -> None:
    lockspace, name, file = place
    outside.lock(file)
    command = Path(f"/proc/{outside.pid}/comm").read_text().rstrip()
    with pytest.raises(BusyError) as refusal:
        client.acquire(name, lockspace=lockspace, timeout=0)
    assert refusal.value.facts["outside"] == {
        "mode": EXCLUSIVE,
        "pid": outside.pid,
        "command": command,
        "by": None,
        "start": 0,
        "length": 1,
    }
    assert command in str(refusal.value)
    assert f"(pid {outside.pid})" in str(refusal.value)


def test_ofd_lock_from_outside_is_busy_and_not_named(
    client: Client, place: Place, outside: Outside
) -> None:
    lockspace, name, file = place
    outside.lock(file, kind="ofd")
    with pytest.raises(BusyError) as refusal:
        client.acquire(name, lockspace=lockspace, timeout=0)
    assert refusal.value.facts["outside"]["pid"] is None


@pytest.mark.parametrize("kind", ["posix", "ofd"])
def test_waiter_gets_the_lock_when_the_one_outside_goes(
    client: Client,
    start_actor: Callable[[str], Actor],
    place: Place,
    outside: Outside,
    kind: str,
) -> None:
    lockspace, name, file = place
    outside.lock(file, kind=kind)
    waiter = start_actor("waiter").start("acquire", name, lockspace=lockspace)
    wait_for_waiter(client, name, lockspace)
    outside.unlock(file, kind)
    assert waiter.result() > 0
    assert outside.probe(file) == (EXCLUSIVE, -1)


def test_shared_locks_here_and_outside_go_together(
    client: Client, place: Place, outside: Outside
) -> None:
    lockspace, name, file = place
    assert outside.lock(file, SHARED)
    client.acquire(name, lockspace=lockspace, mode=SHARED, timeout=0)
    assert outside.probe(file) == (SHARED, -1)


def test_upgrade_waits_until_nobody_outside_shares(
    client: Client,
    start_actor: Callable[[str], Actor],
    place: Place,
    outside: Outside,
) -> None:
    lockspace, name, file = place
    outside.lock(file, SHARED)
    holder = start_actor("holder")
    holder("acquire", name, lockspace=lockspace, mode=SHARED)
    assert (
        holder("convert", name, mode=EXCLUSIVE, lockspace=lockspace, timeout=0)
        == "busy"
    )
    holder.start("convert", name, mode=EXCLUSIVE, lockspace=lockspace)
    wait_for_waiter(client, name, lockspace)
    assert outside.probe(file) == (SHARED, -1)
    outside.unlock(file)
    assert holder.result() > 0
    assert outside.probe(file, SHARED) == (EXCLUSIVE, -1)


# Files that change under a lock.


def test_alias_of_a_locked_file_is_busy_and_names_the_other(
    client: Client, image: Path, tmp_path: Path, outside: Outside
) -> None:
    alias = tmp_path / "alias.img"
    alias.hardlink_to(image)
    client.acquire(str(image))
    with pytest.raises(BusyError, match="under the name") as refusal:
        client.acquire(str(alias), timeout=0)
    assert str(image) in str(refusal.value)
    assert outside.probe(image) == (EXCLUSIVE, -1)


def test_waiter_learns_that_the_file_was_removed_and_the_daemon_goes_on(
    client: Client, start_actor: Callable[[str], Actor], place: Place
) -> None:
    lockspace, name, file = place
    grant = client.acquire(name, lockspace=lockspace)
    waiter = start_actor("waiter")
    create = None if lockspace == "direct" else False
    waiter.start("acquire", name, lockspace=lockspace, create=create)
    wait_for_waiter(client, name, lockspace)
    file.unlink()
    client.release(grant)
    assert waiter.result() == "not_found"
    file.touch()
    assert client.try_acquire(name, lockspace=lockspace)


def test_waiter_gets_the_file_that_took_the_place_of_the_locked_one(
    client: Client,
    start_actor: Callable[[str], Actor],
    place: Place,
    outside: Outside,
) -> None:
    lockspace, name, file = place
    grant = client.acquire(name, lockspace=lockspace)
    waiter = start_actor("waiter").start("acquire", name, lockspace=lockspace)
    wait_for_waiter(client, name, lockspace)
    outside.exchange(file)
    client.release(grant)
    assert waiter.result() > grant.fencing_token
    assert outside.probe(file) == (EXCLUSIVE, -1)


def test_nobody_joins_the_holders_of_a_file_that_was_exchanged(
    client: Client, start_actor: Callable[[str], Actor], place: Place, outside: Outside
) -> None:
    lockspace, name, file = place
    reader = start_actor("reader")
    reader("acquire", name, lockspace=lockspace, mode=SHARED)
    outside.exchange(file)
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        client.acquire(name, lockspace=lockspace, mode=SHARED)
    reader("release", name, lockspace=lockspace)
    client.acquire(name, lockspace=lockspace)
    assert outside.probe(file) == (EXCLUSIVE, -1)


def test_vanished_directory_is_unavailable_and_other_lockspaces_go_on(
    client: Client, locks: Path
) -> None:
    locks.rmdir()
    with pytest.raises(Exception, match="'vms' is gone") as refusal:
        client.acquire("web1", lockspace="vms")
    assert getattr(refusal.value, "code", None) == "unavailable"
    client.acquire("web1")
    locks.mkdir()
    client.acquire("web1", lockspace="vms")


def test_missing_file_is_made_only_if_that_is_allowed(
    client: Client, locks: Path
) -> None:
    with pytest.raises(NotFoundError):
        client.acquire("web1", lockspace="vms", create=False)
    grant = client.acquire("web1", lockspace="vms")
    assert (locks / "web1").exists()
    client.release(grant)
    # It may stay a moment for the next holder, but not for one that wants to find it.
    with pytest.raises(NotFoundError):
        client.acquire("web1", lockspace="vms", create=False)
    assert not (locks / "web1").exists()


# Listings.


def test_listing_equals_the_kernels_view_under_load(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """A few of the comparisons of campaigns/listings.py."""
    locks = tmp_path / "listed"
    locks.mkdir()
    daemon = start_daemon(f"[lockspaces.files]\nkind = 'directory'\npath = '{locks}'\n")
    found = list(comparisons(daemon.socket, locks, 25))
    assert [x.different for x in found if x.different] == []
    # It is no comparison of nothing.
    assert sum(x.same for x in found) > 5
