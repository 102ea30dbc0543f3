"""kill -9 while guests hold disks: what virtlockd loses, and what lockd does."""

import os
import signal
import time
from functools import partial
from typing import Final

from support import libvirt_client as lc
from support.libvirt_client import LibvirtClient
from torture.board import Board
from torture.inside import Actor, Stage, fork
from torture.keepers import LIBVIRT_SOCKET, why_free
from torture.line import PATIENCE
from torture.places import DISKS
from torture.report import Report
from torture.target import Target

GUESTS: Final = 20
KILLS: Final = 3

_LOCKD: Final = (
    "lockd-virtlockd.socket",
    "lockd.socket",
    "lockd-admin.socket",
    "lockd.service",
)
_VIRTLOCKD: Final = ("virtlockd.socket",)


def guests(board: Board, stage: Stage) -> None:
    """As so many QEMU processes: each has a connection, and a disk locked by it.

    Says by its tallies how many connections ended, disks are not locked, and are
    granted to a second guest.
    """
    held: list[tuple[LibvirtClient, str]] = []
    for number in range(GUESTS):
        path = f"{DISKS}/other-{os.getpid()}-{number}"
        with open(path, "w"):
            pass
        client = LibvirtClient(LIBVIRT_SOCKET)
        client.register()
        assert client.done(lc.ACQUIRE, lc.resource("", path))
        held.append((client, path))
    stage.step()
    # Not ourselves: for virtlockd we would have the disk already.
    rival = _rival(fork(signal.pause))
    for client, path in held:
        client.socket.setblocking(False)
        try:
            is_lost = client.socket.recv(1) == b""
        except BlockingIOError:
            is_lost = False
        except ConnectionResetError:
            is_lost = True
        board.tally(0, "ended", is_lost)
        board.tally(0, "not locked", bool(why_free(path, 1)))
        is_granted = rival.done(lc.ACQUIRE, lc.resource("", path))
        board.tally(0, "granted twice", is_granted)
    stage.step()
    # Whoever ends a connection that holds is ended: it goes as guests go.
    os._exit(0)


def _rival(pid: int) -> LibvirtClient:
    end = time.monotonic() + PATIENCE
    while True:
        client = LibvirtClient(LIBVIRT_SOCKET)
        # virtlockd has no socket for a moment, lockd's first answer may be cut off.
        if client.call(lc.REGISTER, lc.owner(pid, "a rival")) is not None:
            return client
        assert time.monotonic() < end


def compare(target: Target, board: Board, report: Report) -> None:
    """Kills both in turn; only lockd has to keep what was held."""
    report.title(f"kill -9 while {GUESTS} guests hold their disks, {KILLS} times each")
    machine = target.machine
    for name, units, others in (
        ("virtlockd", _VIRTLOCKD, _LOCKD),
        ("lockd", _LOCKD, (*_VIRTLOCKD, "virtlockd.service")),
    ):
        # lockd's socket is virtlockd's by name, too, while it is enabled.
        machine.run("systemctl", "stop", *others)
        machine.run("systemctl", "disable", others[0])
        machine.run("systemctl", "enable", "--now", units[0])
        machine.run("systemctl", "start", *units)
        lost = [0, 0, 0]
        for _ in range(KILLS):
            for index, count in enumerate(_kill(target, board, f"{name}.service")):
                lost[index] += count
        rows = ("connections lost", "disks not locked", "disks that have two guests")
        for row, count in zip(rows, lost, strict=True):
            what = f"{name}: {row}, of {GUESTS * KILLS}"
            if name == "lockd":
                report.must(what, count, 0)
            else:
                report.show(what, count)


def _kill(target: Target, board: Board, service: str) -> tuple[int, int, int]:
    board.clear()
    machine = target.machine
    actor = Actor(target.first_pid, partial(guests, board))
    assert actor.wait(PATIENCE), machine.journal(service)
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", service)
    board.note_fault()
    actor.go()
    actor.wait(PATIENCE)
    actor.end()
    return board.total("ended"), board.total("not locked"), board.total("granted twice")
