"""lockd and the real virtlockd on one directory exclude each other."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lockd import BusyError, Client
from lockspaces.outside import Outside
from system.actors import LIMIT, Actor, wait_for_waiter
from system.conftest import StartActor

VIRTLOCKD: Final = "/usr/sbin/virtlockd"

pytestmark = [
    pytest.mark.skipif(
        not os.access(VIRTLOCKD, os.X_OK),
        reason="virtlockd is not installed (Debian: libvirt-daemon)",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="virtlockd needs root here"),
]

_HEADER: Final = struct.Struct(">7I")  # length, program, .. procedure, .. status
_PROGRAM: Final = 0x0EA7BEEF
_REGISTER, _ACQUIRE, _RELEASE, _CREATE_LOCKSPACE = 1, 6, 7, 8
_SHARED, _AUTOCREATE = 1, 2

ENOUGH: Final = 100
MOST_TRIES: Final = 100_000


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Virtlockd:
    """A connection to virtlockd in libvirt's RPC, acting for some process.

    virtlockd kills that process when the connection ends with locks held.
    """

    def __init__(self, path: Path, directory: Path, owner_pid: int) -> None:
        self._directory = str(directory)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        owner = bytes(16) + _text("a guest") + struct.pack(">III", 1, owner_pid, 0)
        assert self._call(_REGISTER, owner)
        assert self._call(_CREATE_LOCKSPACE, _text(self._directory) + bytes(4))

    def acquire(self, name: str, flags: int = 0) -> bool:
        """Tries to take a lock."""
        return self._call(_ACQUIRE, self._resource(name, flags))

    def release(self, name: str) -> None:
        assert self._call(_RELEASE, self._resource(name, 0))

    def close(self) -> None:
        self._socket.close()

    def _resource(self, name: str, flags: int) -> bytes:
        return _text(self._directory) + _text(name) + struct.pack(">I", flags)

    def _call(self, procedure: int, payload: bytes) -> bool:
        length = _HEADER.size + len(payload)
        header = _HEADER.pack(length, _PROGRAM, 1, procedure, 0, 0, 0)
        self._socket.sendall(header + payload)
        answer = self._socket.recv(_HEADER.size, socket.MSG_WAITALL)
        length, *_, status = _HEADER.unpack(answer)
        if length > _HEADER.size:
            self._socket.recv(length - _HEADER.size, socket.MSG_WAITALL)
        return int(status) == 0


@pytest.fixture
def virtlockd(tmp_path: Path, locks: Path, outside: Outside) -> Iterator[Virtlockd]:
    """A connection to a virtlockd of our own, which gets its socket as from systemd."""
    path, config = tmp_path / "virtlockd.sock", tmp_path / "virtlockd.conf"
    config.write_text('log_outputs = "3:stderr"\n')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        take_socket = 'exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@"'
        virtlockd = [VIRTLOCKD, "-f", str(config), "-p", str(tmp_path / "pid")]
        process = subprocess.Popen(
            ["sh", "-c", take_socket, "sh", *virtlockd],
            stdin=listener.fileno(),
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
            | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "virtlockd.socket"},
        )
    connection = None
    try:
        connection = Virtlockd(path, locks, outside.pid)
        yield connection
    finally:
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


@pytest.mark.parametrize("create", [True, False])
def test_virtlockd_respects_a_lock_of_lockd(
    client: Client, virtlockd: Virtlockd, locks: Path, create: bool
) -> None:
    if not create:
        (locks / "web1").touch()
    grant = client.acquire("web1", lockspace="vms", create=create)
    assert not virtlockd.acquire("web1", _AUTOCREATE)
    assert not virtlockd.acquire("web1", _AUTOCREATE | _SHARED)
    client.release(grant)
    assert virtlockd.acquire("web1", _AUTOCREATE)


@pytest.mark.parametrize("flags", [0, _AUTOCREATE])
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
    assert virtlockd.acquire("web1", _AUTOCREATE | _SHARED)
    with pytest.raises(BusyError) as refusal:
        client.convert("web1", "exclusive", lockspace="vms", timeout=0)
    assert refusal.value.facts["outside"]["command"] == "virtlockd"
    virtlockd.release("web1")
    client.convert("web1", "exclusive", lockspace="vms", timeout=0)


@pytest.mark.parametrize("flags", [0, _AUTOCREATE])
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
    assert not virtlockd.acquire("web1", _AUTOCREATE)


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
            if virtlockd.acquire("web1", _AUTOCREATE):
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
    assert virtlockd.acquire("web1", _AUTOCREATE)
    assert virtlockd.acquire("web2", _AUTOCREATE | _SHARED)
    assert checked(tmp_path) == (
        75,
        False,
        [(f"{locks}/web1", "exclusive"), (f"{locks}/web2", "shared")],
    )
    virtlockd.release("web1")
    virtlockd.release("web2")
    assert checked(tmp_path)[2] == []
