import fcntl
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lockd.daemon.system.listener import _alone, bind_listener
from lockd.errors import ConfigError
from support.daemon_process import DaemonProcess
from support.nursery import DAEMONS
from support.rights import needs_root
from support.wire_client import WireClient


def test_socket_and_its_directory_are_made_and_the_socket_removed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "lockd" / "x.sock"
    listener = bind_listener(str(path))
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.remove()
    assert not path.exists()
    listener.socket.close()


def test_umask_is_what_it_was(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        listener = bind_listener(str(tmp_path / "x.sock"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    listener.socket.close()


def test_relative_path_is_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = bind_listener("x.sock")
    assert (tmp_path / "x.sock").is_socket()
    listener.remove()
    assert not (tmp_path / "x.sock").exists()
    listener.socket.close()


def test_leftover_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    bind_listener(path).socket.close()
    listener = bind_listener(path)
    listener.socket.close()


@pytest.mark.parametrize("obstacle", ["directory", "link", "fifo"])
def test_lock_file_that_cannot_be_used_is_no_defect_at_the_end(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.sock"
    listener = bind_listener(str(path))
    lock = Path(f"{path}.lock")
    lock.unlink(missing_ok=True)
    if obstacle == "directory":
        lock.mkdir()
    elif obstacle == "link":
        lock.symlink_to("nowhere")
    else:
        os.mkfifo(lock)
    listener.remove()
    listener.socket.close()
    (said,) = caplog.messages
    assert said.startswith(f"'{path}' is left behind: ")
    lock.rmdir() if obstacle == "directory" else lock.unlink()
    bind_listener(str(path)).socket.close()


def test_socket_of_another_is_not_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    first = bind_listener(path)
    os.unlink(path)
    second = bind_listener(path)
    first.socket.close()
    first.remove()
    assert os.path.exists(path)
    second.socket.close()


@pytest.mark.parametrize("backlog", [0, 4096])
def test_socket_that_is_listened_to_is_left_alone(backlog: int, tmp_path: Path) -> None:
    """Also one whose backlog is full."""
    path = str(tmp_path / "x.sock")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as guest:
        other.bind(path)
        other.listen(backlog)
        guest.connect(path)
        with pytest.raises(ConfigError, match="another daemon listens"):
            bind_listener(path)
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link"])
def test_what_is_no_socket_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    make: dict[str, Callable[[], None]] = {
        "file": path.touch,
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path),
    }
    make[kind]()
    with pytest.raises(ConfigError, match="is not a socket"):
        bind_listener(str(path))
    assert path.exists()


@pytest.mark.parametrize("path", ["/proc/x.sock", "/dev/null/x.sock", "/" + "x" * 200])
def test_impossible_path_is_refused_with_the_reason(path: str) -> None:
    with pytest.raises(ConfigError, match="the socket "):
        bind_listener(path)


def test_two_that_start_at_once_do_not_take_each_others_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    with _alone(path, fcntl.LOCK_EX):
        with pytest.raises(ConfigError, match="another daemon is starting"):
            bind_listener(path)
        assert os.listdir(tmp_path) == ["x.sock.lock"]
    assert os.listdir(tmp_path) == []


def test_end_waits_for_who_is_just_starting(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    listener = bind_listener(path)
    with _alone(path, fcntl.LOCK_EX):
        remover = threading.Thread(target=listener.remove)
        remover.start()
        assert os.path.exists(path)
    remover.join()
    assert os.listdir(tmp_path) == []
    listener.socket.close()


def test_lock_file_that_was_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "x.sock.lock").touch()
    listener = bind_listener(str(tmp_path / "x.sock"))
    assert os.listdir(tmp_path) == ["x.sock"]
    listener.socket.close()


@needs_root
def test_nobody_else_holds_up_a_start(tmp_path: Path) -> None:
    """Whatever of it another user can open and lock, also while one starts."""
    path = str(tmp_path / "run" / "x.sock")
    bind_listener(path).socket.close()
    os.unlink(path)
    with _alone(path, fcntl.LOCK_EX):
        assert stat.S_IMODE(os.stat(f"{path}.lock").st_mode) == 0o600
    directory = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # as anybody can
    listener = bind_listener(path)
    listener.socket.close()
    listener.remove()
    os.close(directory)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_lock_file_that_is_none_is_refused_and_not_followed(
    kind: str, tmp_path: Path
) -> None:
    lock, target = tmp_path / "x.sock.lock", tmp_path / "target"
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(ConfigError, match=r"x\.sock"):
        bind_listener(str(tmp_path / "x.sock"))
    assert not target.exists()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_modes_are_set_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    """Also those of the directories that are made for the socket."""
    path = tmp_path / "a" / "b" / "x.sock"
    before = os.umask(mask)
    try:
        listener = bind_listener(str(path))
    finally:
        os.umask(before)
    for made, mode in ((path, 0o660), (path.parent, 0o755), (tmp_path / "a", 0o755)):
        assert stat.S_IMODE(made.stat().st_mode) == mode, made
    listener.socket.close()


def test_directory_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    listener = bind_listener(str(directory / "x.sock"))
    (directory / "x.sock").unlink()
    listener.remove()
    directory.rmdir()
    listener.remove()
    listener.socket.close()


@pytest.mark.slow
def test_of_two_daemons_that_race_for_a_leftover_exactly_one_wins(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lockd.sock"
    bind_listener(str(path)).socket.close()
    for round_ in range(10):
        racers = []
        for name in ("a", "b"):
            directory = tmp_path / f"{name}-{round_}"
            directory.mkdir()
            daemon = DaemonProcess(directory)
            daemon.socket = path
            racers.append(
                DAEMONS.popen(daemon.command, stderr=subprocess.PIPE, text=True)
            )
        said = [racer.stderr.readline() for racer in racers if racer.stderr]
        winners = [
            racer
            for racer, line in zip(racers, said, strict=True)
            if "serves at" in line
        ]
        with WireClient(path) as client:
            client.acquire("a")
        for racer in racers:
            if racer in winners:
                racer.kill()
            racer.communicate(timeout=30)
        assert len(winners) == 1, said
        assert sorted(racer.returncode for racer in racers) == [-9, 78]
