"""Lock files that stay for a moment: how long, and what becomes of them in the end."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import StartDaemon
from daemon.stores.kept import is_locked
from lockd.lockspaces.spares import SHARE
from support.outside import Outside
from support.rights import needs_root
from support.service_manager import ServiceManager
from support.wire_client import (
    NOBODY,
    PATIENCE,
    Connect,
    WireClient,
    connected_as,
    wait_for_sessions,
)

FILES = {"lockspace": "files"}


def use(client: WireClient, resource: str = "f", lockspace: str = "files") -> None:
    """Takes and releases a lock. Its file then is a spare one."""
    client.acquire(resource, lockspace=lockspace)
    client.call("release", resource=resource, lockspace=lockspace)


def opened(pid: int, place: Path) -> list[str]:
    """Returns what a process has open in a directory."""
    found = [os.readlink(x) for x in Path(f"/proc/{pid}/fd").iterdir()]
    return [x for x in found if x.startswith(f"{place}/")]


def in_flight(client: WireClient) -> int:
    found = client.call("statistics")["kept"]["in_flight"]
    assert isinstance(found, int)
    return found


# While the daemon runs.


@pytest.mark.slow
def test_file_goes_soon_after_its_last_holder(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    use(client)
    assert opened(manager.pid, locks) == [f"{locks}/f"]
    assert not is_locked(locks / "f")
    assert client.call("list", **FILES)["resources"] == []
    until = time.monotonic() + PATIENCE
    while (locks / "f").exists() or opened(manager.pid, locks):
        assert time.monotonic() < until
        client.call("statistics")


def test_file_that_is_taken_again_and_again_is_kept_once(
    client: WireClient, locks: Path
) -> None:
    use(client)
    before = in_flight(client)
    inode = (locks / "f").stat().st_ino
    for _ in range(20):
        use(client)
    client.acquire("f", **FILES)
    assert in_flight(client) == before
    assert (locks / "f").stat().st_ino == inode
    assert is_locked(locks / "f")


def test_file_that_somebody_removed_meanwhile_is_made_and_kept_anew(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    use(client)
    (locks / "f").unlink()
    client.acquire("f", **FILES)
    # It has the number of the one before.
    manager.kill_and_start()
    client.call("statistics")
    assert is_locked(locks / "f")
    client.call("release", resource="f", **FILES)


def test_waiter_gets_a_file_that_another_program_had_locked(
    client: WireClient, locks: Path, outside: Outside
) -> None:
    use(client)
    assert outside.lock(locks / "f")
    refusal = client.refusal("acquire", resource="f", timeout=0, **FILES)
    assert refusal.code == "busy"
    asked = client.send("acquire", resource="f", **FILES)
    outside.unlock(locks / "f")
    client.result(asked)
    assert is_locked(locks / "f")


def test_reload_that_moves_a_lockspace_leaves_nothing_where_it_was(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    config = "[lockspaces.files]\nkind = 'directory'\npath = '{}'\n"
    daemon = start_daemon(config.format(old))
    with WireClient(daemon.socket) as client:
        use(client)
        daemon.config.write_text(config.format(new))
        daemon.reload()
        assert os.listdir(old) == []
        assert not opened(daemon.pid, old)
        client.acquire("f", **FILES)
        assert is_locked(new / "f")


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_lockspaces_on_one_directory_follow_each_other(
    start_daemon: StartDaemon, tmp_path: Path, mode: str
) -> None:
    config = "[lockspaces.{}]\nkind = 'directory'\npath = '{}'\n"
    daemon = start_daemon(
        config.format("files", tmp_path / "x") + config.format("more", tmp_path / "x")
    )
    with WireClient(daemon.socket) as client:
        for _ in range(3):
            use(client)
            client.acquire("f", lockspace="more", mode=mode)
            assert client.refusal("acquire", resource="f", timeout=0, **FILES)
            client.call("release", resource="f", lockspace="more")
        assert daemon.stop() == 0
    assert os.listdir(tmp_path / "x") == []


# Descriptors.

Start = Callable[[], Path]


@pytest.fixture(params=["kept", "not kept"])
def start_narrow(
    request: pytest.FixtureRequest,
    manager: ServiceManager,
    locks: Path,
    start_daemon: StartDaemon,
) -> Start:
    """Starts a daemon with few descriptors; kept, it has even fewer in flight."""
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({20 * SHARE}, {20 * SHARE}))"
    script = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
    prefix = (sys.executable, "-c", script)

    def start() -> Path:
        if request.param == "kept":
            manager.stop()
            manager.start(prefix=prefix)
            return manager.socket
        config = f"[lockspaces.files]\nkind = 'directory'\npath = '{locks}'\n"
        return start_daemon(config, list(prefix)).socket

    return start


@pytest.mark.slow
def test_spare_files_take_no_descriptor_from_a_lock(
    start_narrow: Start, locks: Path
) -> None:
    with WireClient(start_narrow()) as client:

        def most() -> int:
            taken = 0
            while True:
                msgid = client.send("acquire", resource=f"{taken}", **FILES)
                if client.answer(msgid)[0] is not None:
                    return taken
                taken += 1

        found = most()
        assert found > 10 * SHARE
        for number in range(found):
            client.call("release", resource=f"{number}", **FILES)
        assert len(os.listdir(locks)) > 10
        for number in range(SHARE):
            use(client, f"other {number}")
        assert most() >= found


@needs_root
@pytest.mark.slow
def test_spare_files_take_no_descriptor_from_a_session(start_narrow: Start) -> None:
    address = start_narrow()
    with WireClient(address) as client:

        def most() -> int:
            with ExitStack() as stack:
                taken = 0
                while True:
                    stranger = connected_as(address, NOBODY, NOBODY)
                    other = stack.enter_context(stranger)
                    try:
                        other.send("statistics")
                        said = other.receive()
                    except ConnectionError:  # it was turned away at once
                        break
                    if not said or said[2] is not None:
                        break
                    taken += 1
            wait_for_sessions(client, 1)
            return taken

        found = most()
        assert found > 5 * SHARE
        for number in range(SHARE):
            use(client, f"{number}")
        assert most() >= found


# Who comes next.


def test_kill_removes_them_with_the_next_start(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    for number in range(10):
        use(client, f"{number}")
    client.acquire("held", **FILES)
    assert len(os.listdir(locks)) == 11
    manager.kill_and_start()
    client.call("statistics")
    assert os.listdir(locks) == ["held"]
    assert is_locked(locks / "held")
    use(client, "0")
    assert (locks / "0").exists()


def test_file_that_is_taken_again_survives_a_kill(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    use(client)
    token = client.acquire("f", **FILES)["fencing_token"]
    for _ in range(2):
        manager.kill_and_start()
        check = client.call("check", resource="f", fencing_token=token, **FILES)
        assert check == {"current": True}
        assert is_locked(locks / "f")
    client.call("release", resource="f", **FILES)
    assert os.listdir(locks) == []


@pytest.mark.parametrize("kind", ["posix", "ofd"])
def test_file_that_another_program_has_locked_is_left_by_the_next_start(
    manager: ServiceManager,
    client: WireClient,
    locks: Path,
    outside: Outside,
    kind: str,
) -> None:
    use(client)
    assert outside.lock(locks / "f", "exclusive", kind)
    manager.kill_and_start()
    client.call("statistics")
    assert is_locked(locks / "f")
    refusal = client.refusal("acquire", resource="f", timeout=0, **FILES)
    assert refusal.code == "busy"
    outside.unlock(locks / "f", kind)
    client.acquire("f", **FILES)


def test_file_of_somebody_else_is_left_by_the_next_start(
    manager: ServiceManager, client: WireClient, locks: Path, outside: Outside
) -> None:
    use(client)
    outside.exchange(locks / "f")
    manager.kill_and_start()
    client.call("statistics")
    assert os.listdir(locks) == ["f"]


def test_file_that_another_lockspace_has_made_is_left_by_the_next_start(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    made = {"name": "more", "kind": "directory", "path": str(locks)}
    client.call("create_lockspace", **made)
    for _ in range(3):
        use(client)
        client.acquire("f", lockspace="more")
        manager.kill_and_start()
        client.call("statistics")
        assert is_locked(locks / "f")
        client.call("release", resource="f", lockspace="more")


def test_stop_and_restart_remove_them(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    use(client)
    client.acquire("held", **FILES)
    assert manager.stop() == 0
    assert os.listdir(locks) == ["held"]
    manager.start()
    client.call("release", resource="held", **FILES)
    assert os.listdir(locks) == []


def test_upgrade_removes_them(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    use(client)
    manager.upgrade()
    client.call("statistics")
    assert os.listdir(locks) == []
    assert not opened(manager.pid, locks)


def test_upgrade_without_a_service_manager_removes_them(
    start_daemon: StartDaemon, locks: Path
) -> None:
    config = f"[lockspaces.files]\nkind = 'directory'\npath = '{locks}'\n"
    daemon = start_daemon(config)
    with WireClient(daemon.socket) as client:
        use(client)
        daemon.upgrade()
        client.call("statistics")
        assert os.listdir(locks) == []
        use(client)
        assert daemon.stop() == 0
    assert os.listdir(locks) == []


def test_client_that_dies_leaves_a_file_for_the_next(
    connect: Connect, client: WireClient, locks: Path
) -> None:
    other = connect()
    other.acquire("f", **FILES)
    inode = (locks / "f").stat().st_ino
    other.close()
    wait_for_sessions(client, 1)
    assert not is_locked(locks / "f")
    client.acquire("f", **FILES)
    assert (locks / "f").stat().st_ino == inode
