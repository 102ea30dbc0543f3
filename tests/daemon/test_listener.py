import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon_process import DaemonProcess
from lockd.daemon.listener import bind_listener
from lockd.errors import ConfigError
from wire_client import WireClient


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
    with pytest.raises(ConfigError, match="is no socket"):
        bind_listener(str(path))
    assert path.exists()


@pytest.mark.parametrize("path", ["/proc/x.sock", "/dev/null/x.sock", "/" + "x" * 200])
def test_impossible_path_is_refused_with_the_reason(path: str) -> None:
    with pytest.raises(ConfigError, match="the socket "):
        bind_listener(path)


def test_two_that_start_at_once_do_not_take_each_others_socket(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="just being started"):
        bind_listener(str(tmp_path / "x.sock"))
    os.close(directory)


def test_end_waits_for_who_is_just_starting(tmp_path: Path) -> None:
    listener = bind_listener(str(tmp_path / "x.sock"))
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    remover = threading.Thread(target=listener.remove)
    remover.start()
    assert (tmp_path / "x.sock").exists()
    os.close(directory)
    remover.join()
    assert not (tmp_path / "x.sock").exists()
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
                subprocess.Popen(daemon.command, stderr=subprocess.PIPE, text=True)
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
