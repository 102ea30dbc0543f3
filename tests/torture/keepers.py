"""Those who hold for the whole round, those who must never get it, and the prober."""

import fcntl
import os
import random
import select
import signal
import socket
import struct
import time
from functools import partial
from typing import Final

from support import libvirt_client as lc
from support.libvirt_client import LibvirtClient, MalformedError
from torture.board import EXCLUSIVE, HOLDS, SHARED, SLOTS, Board, now
from torture.inside import fork
from torture.line import (
    PATIENCE,
    Line,
    LostError,
    NeverServedError,
    Refused,
    UnansweredError,
)
from torture.places import FENCED, GUEST_DISKS, KEPT, PLACES, SHARED_DISKS, Place
from torture.worker import MODES, Hold

LIBVIRT_SOCKET: Final = "/run/libvirt/virtlockd-sock"

_FLOCK: Final = "hhqqi4x"
_BYTE: Final = (0, 1)
"""Which byte of a file is locked: the first, as virtlockd does."""


def keep(board: Board, slot: int, *, is_quiet: bool = False) -> None:
    """Holds a share of `KEPT` all the time; unless quiet asks whether it does."""
    mine = KEPT[slot % 2 :: 2]
    try:
        line = Line(board, slot, f"keeper {slot}")
        holds = []
        for place in mine:
            mode = EXCLUSIVE if place.number % 3 else SHARED
            asked = now()
            grant = line.call(
                "acquire",
                lockspace=place.lockspace,
                resource=place.name,
                mode=MODES[mode],
            )["grant"]
            times = (asked, 0, now())
            holds.append(Hold(board, slot, place, mode, times, grant["fencing_token"]))
            board.set_kept(place.number, times[2])
        while not board.is_over:
            time.sleep(0.05)
            line.look()
            hold = random.choice(holds)
            if (
                not is_quiet
                and not line.call(
                    "check",
                    lockspace=hold.place.lockspace,
                    resource=hold.place.name,
                    fencing_token=hold.token,
                )["current"]
            ):
                board.complain("lost lock", f"keeper {slot}: {hold.place.name}")
        for hold in holds:
            board.set_kept(hold.place.number, 0)
            hold.end()
            line.call(
                "release", lockspace=hold.place.lockspace, resource=hold.place.name
            )
        line.finish()
    except NeverServedError:
        keep(board, slot, is_quiet=is_quiet)
    except (LostError, UnansweredError, Refused) as error:
        for place in mine:
            board.set_kept(place.number, 0)
        board.end_all(slot)
        board.complain("lost lock", f"keeper {slot} lost all that it held: {error!r}")


def rival(board: Board, slot: int) -> None:
    """Tries to get what keepers and guests hold; must be refused each time."""
    chance = random.Random(slot)
    line: Line | None = None
    while not board.is_over:
        time.sleep(0.002)
        try:
            line = line or Line(board, slot, f"rival {slot}")
            _try_to_get(board, line, chance.choice(KEPT + GUEST_DISKS))
        except Refused as refusal:
            board.tally(slot, "refused")
            if refusal.code != "busy":
                board.complain("unexpected answer", f"rival: {refusal}")
        except (LostError, UnansweredError, NeverServedError):
            line = None
        board.tally(slot, "cycles")
    if line is not None:
        line.close()


def _try_to_get(board: Board, line: Line, place: Place) -> None:
    """Raises Refused, as it should: only what is no longer held may be had."""
    before = board.kept_since(place.number)
    if not before:
        return  # whoever is to hold it must find it free
    names = {"lockspace": place.lockspace, "resource": place.name}
    result = line.call("acquire", **names, timeout=0)
    if board.kept_since(place.number) == before:
        board.complain("lost lock", f"{place.name} was given to a rival: {result}")
    line.call("release", **names)


def libvirt(board: Board, slot: int) -> None:
    """Locks and unlocks disks in libvirt's tongue, as often as it can."""
    chance = random.Random(slot)
    while not board.is_over:
        try:
            with LibvirtClient(LIBVIRT_SOCKET) as client:
                if client.call(lc.REGISTER, lc.owner(os.getpid())) is None:
                    board.tally(slot, "repeated connections")
                    continue
                _lock_disks(board, slot, client, chance)
        except TimeoutError as error:
            board.complain("unanswered", f"libvirt worker {slot}: {error}")
        except (OSError, MalformedError) as error:
            board.complain("lost connection", f"libvirt worker {slot}: {error!r}")
            time.sleep(0.1)


def _lock_disks(
    board: Board, slot: int, client: LibvirtClient, chance: random.Random
) -> None:
    while not board.is_over and not board.is_full(slot):
        place = chance.choice(SHARED_DISKS)
        asked = now()
        reply = client.call(lc.ACQUIRE, lc.resource("", place.name))
        if reply is None:
            board.complain("lost connection", f"libvirt worker {slot}: EOF")
            return
        if reply.status == lc.OK:
            board.tally(slot, "libvirt grants")
            hold = Hold(board, slot, place, EXCLUSIVE, (asked, 0, now()), 0)
            hold.count(0)
            hold.end()
            reply = client.call(lc.RELEASE, lc.resource("", place.name))
            if reply is None:
                board.complain("lost connection", f"libvirt worker {slot}: EOF")
                return
            if reply.status != lc.OK:
                board.complain("lost lock", f"libvirt worker {slot}: {reply.error}")
        else:
            board.tally(slot, "refused")
        time.sleep(0.001)


def guest(board: Board, slot: int) -> None:
    """As a QEMU process: it has the socket by which its disk is locked, and sleeps."""
    place = GUEST_DISKS[slot % len(GUEST_DISKS)]
    while True:
        client = LibvirtClient(LIBVIRT_SOCKET)
        if client.call(lc.REGISTER, lc.owner(os.getpid(), f"guest {slot}")) is not None:
            break
        board.tally(slot, "repeated connections")
        client.close()
    asked = now()
    reply = client.call(lc.ACQUIRE, lc.resource("", place.name))
    if reply is None or reply.status != lc.OK:
        board.complain("unexpected answer", f"guest {slot}: {reply}")
        return
    hold = Hold(board, slot, place, EXCLUSIVE, (asked, 0, now()), 0)
    board.set_kept(place.number, now())
    poll = select.poll()
    poll.register(client.socket, select.POLLIN)
    while not board.is_over:
        if poll.poll(100):
            board.set_kept(place.number, 0)
            hold.end()
            board.complain("lost connection", f"guest {slot}: its socket has ended")
            return
    board.set_kept(place.number, 0)
    hold.end()
    # Whoever ends its connection with locks held is ended: it goes as guests go.
    os._exit(0)


def fenced(board: Board, slot: int) -> None:
    """Has one process after the other hold what nobody has whose process lives on."""
    chance = random.Random(slot)
    while not board.is_over and not board.is_full(slot):
        place, is_stubborn = chance.choice(FENCED), chance.random() < 0.7
        doomed = partial(_doomed, board, slot, place, is_stubborn=is_stubborn)
        os.waitpid(fork(doomed), 0)


def _doomed(board: Board, slot: int, place: Place, *, is_stubborn: bool) -> None:
    """Holds, ends its connection, and says until its end that it still lives.

    So the end of its hold is never later than its own: whoever was granted the lock
    before that end was granted it while this process lived.
    """
    if is_stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        line = Line(board, slot, f"doomed {slot}")
        names: dict[str, object] = {
            "lockspace": place.lockspace,
            "resource": place.name,
        }
        calls = [("acquire", names), ("query", names)]
        asked = now()
        msgid, query = line.ask_all(calls)
        _, queued = line.wait_timed(query)
        result, at = line.wait_timed(msgid)
    except (LostError, NeverServedError, UnansweredError):
        return  # has been complained of, if it must not be
    token = result["grant"]["fencing_token"]
    index = board.begin(slot, place.number, EXCLUSIVE, (asked, queued, at), token)
    board.tally(slot, "grants")
    board.tally(slot, "fenced")
    if board.is_over:
        board.end(slot, index)
        line.call("release", **names)
        line.finish()
        return
    board.end(slot, index)
    line.socket.shutdown(socket.SHUT_RDWR)
    while (now() - max(at, board.last_fault)) / 1e9 < PATIENCE:
        board.end(slot, index)
        time.sleep(0.001)
    board.complain("unanswered", f"doomed {slot} was not ended")


def probe(board: Board, slot: int) -> None:
    """Asks the kernel each millisecond whether a lock that is held is free."""
    told: set[tuple[int, int, int]] = set()
    while not board.is_over:
        time.sleep(0.001)
        for held_by in range(SLOTS):
            for number in range(HOLDS):
                turn, resource, mode = board.look(held_by, number)
                path = PLACES[resource].path
                if turn % 2 and path is not None:
                    why = why_free(path, mode)
                    board.tally(slot, "cycles")
                    hold = held_by, number, turn
                    # Only what was held before and after was held meanwhile.
                    if why and board.look(held_by, number)[0] == turn:
                        if hold not in told:
                            what = f"{path}, held by {held_by}, is {why}"
                            board.complain("free moment", what)
                        told.add(hold)


def why_free(path: str, mode: int) -> str:
    """Returns how the kernel says that a file is not locked; nothing if it is."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "not there"
    try:
        # A shared lock is in the way of an exclusive one only.
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *_BYTE, 0)
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    finally:
        os.close(descriptor)
    kind = struct.unpack(_FLOCK, found)[0]
    if kind == fcntl.F_UNLCK:
        return "not locked"
    if mode == EXCLUSIVE and kind == fcntl.F_RDLCK:
        return "locked shared only"
    return ""


def wait_free(place: Place, seconds: float = PATIENCE) -> bool:
    """Waits until nobody has the file of a resource locked."""
    assert place.path is not None
    end = now() + int(seconds * 1e9)
    while now() < end:
        if why_free(place.path, EXCLUSIVE) in ("not there", "not locked"):
            return True
        time.sleep(0.01)
    return False
