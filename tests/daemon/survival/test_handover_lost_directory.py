"""The state directory is removed as a whole while the daemon runs."""

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from daemon.stores.kept import is_locked
from daemon.survival.conftest import holders
from support.daemon_process import DaemonProcess
from support.service_manager import ServiceManager
from support.wire_client import Refusal, WireClient

MADE_AGAIN = "was removed or exchanged while lockd ran"


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> DaemonProcess:
    return start_daemon()


def said_hello(client: WireClient) -> dict[str, Any]:
    found: dict[str, Any] = client.call("hello", protocol=1, client="test")
    return found


def remove(directory: Path) -> None:
    """Removes it at once: lockd must not find half of it, and mend that."""
    removed = directory.rename(directory.with_name("removed"))
    while removed.exists():
        # Until it looks again, lockd may still write there.
        shutil.rmtree(removed, ignore_errors=True)


def check_directory(directory: Path, instance: str) -> None:
    """Asserts that a start finds there what it would have found before."""
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = {"epoch", "epoch.lock", "instance"}
    assert names == set(os.listdir(directory))
    for name in names:
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert (directory / "instance").read_text() == f"{instance}\n"


def test_daemon_makes_it_again_and_says_so_once(daemon: DaemonProcess) -> None:
    with WireClient(daemon.socket) as client:
        instance = said_hello(client)["instance"]
        token = client.acquire("a")["fencing_token"]
        for _ in range(2):
            remove(daemon.state_dir)
            line = daemon.wait_for_line(MADE_AGAIN)
            assert f"the state directory '{daemon.state_dir}'" in line
            check_directory(daemon.state_dir, instance)
        assert client.call("statistics")["problems"] == []
        # It may not be locked by its path: it is the daemon's own.
        (daemon.state_dir / "x").touch()
        own = str(daemon.state_dir / "x")
        with pytest.raises(Refusal, match="is lockd's own"):
            client.call("acquire", lockspace="direct", resource=own)
    assert daemon.stop() == 0
    assert len([line for line in daemon.said if MADE_AGAIN in line]) == 2
    daemon.start()
    with WireClient(daemon.socket) as client:
        hello = said_hello(client)
        assert (hello["epoch"], hello["instance"]) == (2, instance)
        assert client.acquire("a")["fencing_token"] > token


def test_second_daemon_is_refused_there(daemon: DaemonProcess, tmp_path: Path) -> None:
    remove(daemon.state_dir)
    daemon.wait_for_line(MADE_AGAIN)
    (tmp_path / "second").mkdir()
    second = DaemonProcess(tmp_path / "second")
    second.state_dir = daemon.state_dir
    with pytest.raises(AssertionError, match="another lockd uses the state directory"):
        second.start()
    assert second.wait() == 78


def test_upgrade_goes_on_without_it(daemon: DaemonProcess) -> None:
    """The new program has no other chance: the old one is gone."""
    with WireClient(daemon.socket) as client:
        instance = said_hello(client)["instance"]
        token = client.acquire("a")["fencing_token"]
        remove(daemon.state_dir)
        daemon.upgrade()
        assert holders(client, "a")
        client.call("release", resource="a")
        assert client.acquire("a")["fencing_token"] > token
        with WireClient(daemon.socket) as other:
            assert said_hello(other)["instance"] == instance
        check_directory(daemon.state_dir, instance)


def test_upgrade_goes_on_though_it_cannot_be_made_again(
    daemon: DaemonProcess,
) -> None:
    with WireClient(daemon.socket) as client:
        instance = said_hello(client)["instance"]
        client.acquire("a")
        remove(daemon.state_dir)
        daemon.state_dir.touch()
        daemon.upgrade()
        daemon.wait_for_line("the epoch cannot be written")
        (problem,) = client.call("statistics")["problems"]
        assert "is not a directory" in problem
        assert holders(client, "a")
        daemon.state_dir.unlink()
        daemon.wait_for_line(MADE_AGAIN)
        check_directory(daemon.state_dir, instance)


def test_kill_loses_nothing_without_it(
    manager: ServiceManager, client: WireClient, locks: Path
) -> None:
    """The daemon is killed before it notices; children of a holder come later."""
    hello = said_hello(client)
    token = client.acquire("f", lockspace="files")["fencing_token"]
    state = manager.directory / "state"
    for _ in range(2):
        remove(state)
        manager.kill_and_start()
        assert is_locked(locks / "f")
        check_directory(state, hello["instance"])
    with WireClient(manager.socket) as child:
        within = [f"{hello['instance']}:{token}"]
        found = child.call("hello", protocol=1, client="test", within=within)
        assert found["epoch"] == hello["epoch"]
        inner = child.acquire("f", lockspace="files")
        assert inner["inside"] == [token]
        assert inner["fencing_token"] > token
