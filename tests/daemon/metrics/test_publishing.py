"""Metrics where somebody wants them: over HTTP, and in a file."""

import collections
import itertools
import socket
from pathlib import Path

import pytest

from conftest import StartDaemon
from daemon.metrics.conftest import (
    fetched,
    metrics,
    write_to,
)
from lockd.daemon.metrics.scrape import AT_ONCE
from support.daemon_process import DaemonProcess
from support.processes import descriptors
from support.wire_client import WireClient


def address(lockd: DaemonProcess) -> str:
    lockd.config.write_text('[metrics]\nlisten = "127.0.0.1:0"')
    lockd.reload()
    return lockd.wait_for_line("metrics at").rpartition(" ")[2]


def test_lockspace_that_not_all_may_know_of_has_no_name_in_public(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    text_file = tmp_path / "lockd.prom"
    hidden = "kind = 'memory'\nallow_users = {acquire = [], share = [], list = []}\n"
    lockd = start_daemon(
        f"[metrics]\nlisten = '127.0.0.1:0'\ntextfile = '{text_file}'\n"
        f"[lockspaces.secret]\n{hidden}[lockspaces.other]\n{hidden}"
        "[lockspaces.known]\nkind = 'memory'\nallow_groups.list = ['*']\n"
    )
    url = lockd.wait_for_line("metrics at").rpartition(" ")[2]
    with WireClient(lockd.socket) as client:
        for space in ("secret", "other", "known"):
            client.acquire("a", lockspace=space)
        whole = metrics(client)
        public = fetched(url)
        client.call("release", lockspace="secret", resource="a")
        assert fetched(url)("lockd_ends_total", cause="released") == 1
    assert whole("lockd_held", lockspace="secret") == 1
    assert public("lockd_held") == 2
    assert public("lockd_held", lockspace="known") == 1
    assert public("lockd_grants_total") == public("lockd_wait_seconds_count") == 2
    assert public("lockd_anchors", lockspace="direct") == 0
    labels = {label for _, labels in public.values for label in labels}
    assert {value for name, value in labels if name == "lockspace"} == {
        *("default", "direct", "known")
    }
    while not text_file.exists():
        pass
    assert "secret" not in text_file.read_text()


def test_reload_begins_and_ends_to_listen(lockd: DaemonProcess) -> None:
    url = address(lockd)
    assert fetched(url)("lockd_complaint") == 0
    lockd.config.write_text("")
    lockd.reload()
    with pytest.raises(OSError, match=r"refused|reset"):
        # It was heard, and is done in a moment.
        collections.deque(map(fetched, itertools.repeat(url)), 0)


def test_port_that_is_taken_keeps_no_lock_from_anybody(
    start_daemon: StartDaemon,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        lockd = start_daemon(f'[metrics]\nlisten = "{place}"')
        line = lockd.wait_for_line("no metrics at")
        assert "Address already in use" in line
        with WireClient(lockd.socket) as client:
            client.acquire("a")
            assert metrics(client)("lockd_complaint") == 1
    lockd.reload()
    assert fetched(lockd.wait_for_line("metrics at").rpartition(" ")[2])


def test_who_asks_slowly_or_too_often_harms_nobody(lockd: DaemonProcess) -> None:
    host, port = address(lockd).split("/")[2].split(":")
    before = descriptors(lockd.pid)
    idle = [socket.create_connection((host, int(port)), 20) for _ in range(40)]
    for sock in idle[::2]:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    with WireClient(lockd.socket) as client:
        for _ in range(100):
            client.acquire("a")
            client.call("release", resource="a")
        # One more of them waits for a place; the client is a socket and a process.
        most = before + AT_ONCE + 1 + 2
        assert descriptors(lockd.pid) <= most
        # They are served when the time of the others is over.
        for sock in idle:
            sock.close()
        assert fetched(f"http://{host}:{port}/metrics")


def test_file_is_replaced_and_never_half_written(lockd: DaemonProcess) -> None:
    path = lockd.directory / "lockd.prom"
    write_to(lockd, path, "textfile_interval = 0.001")
    inodes: set[int] = set()
    while len(inodes) < 5:
        with path.open() as file:
            inodes.add(path.stat().st_ino)
            text = file.read()
        assert text.startswith("# TYPE lockd_build_info gauge\n")
        assert text.endswith("\n")
        assert text.splitlines()[-1].startswith("lockd_complaint ")
    assert path.stat().st_mode & 0o777 == 0o644


def test_file_that_cannot_be_written_is_told_of_once(
    start_daemon: StartDaemon,
) -> None:
    lockd = start_daemon(
        '[metrics]\ntextfile = "/proc/no/lockd.prom"\ntextfile_interval = 0.001'
    )
    assert "No such file" in lockd.wait_for_line("no metrics in /proc/no/lockd.prom")
    with WireClient(lockd.socket) as client:
        while metrics(client)("lockd_requests_total", method="metrics") < 50:
            pass
    lockd.stop()
    assert len([x for x in lockd.said if "no metrics" in x]) == 1


def test_leftover_of_a_killed_writer_is_no_obstacle(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    path, innocent = lockd.directory / "lockd.prom", tmp_path / "innocent"
    innocent.write_text("mine")
    Path(f"{path}.new").symlink_to(innocent)
    write_to(lockd, path)
    assert innocent.read_text() == "mine"
    assert not path.is_symlink()
