"""What a client does while the daemon is killed at one system call after the other.

Each has three steps: prepare; act, which is when the kill comes; look whether all is
as it must be. However often and wherever the daemon dies in the second, the third
must find the same.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from support import libvirt_client as lc
from support.libvirt_client import LibvirtClient
from torture.board import EXCLUSIVE, SHARED, Board
from torture.inside import Stage, fork
from torture.keepers import LIBVIRT_SOCKET, why_free
from torture.line import (
    PATIENCE,
    Line,
    LostError,
    NeverServedError,
    Refused,
    UnansweredError,
)
from torture.places import DIRECTORY, DISKS, SHARED_DISKS

SLOT: Final = 40
"""Whose tallies the lines of actors add to."""


class Scene:
    """What scenarios are written with."""

    def __init__(self, board: Board, stage: Stage) -> None:
        self._board, self._stage = board, stage
        self.lines: list[Line] = []
        self.step = stage.step
        #: What the daemon calls itself.
        self.instance = ""

    def line(self, **more: object) -> Line:
        """Opens a session; one that ends before its first answer is opened again."""
        while True:
            line = Line(self._board, SLOT, f"actor's line {len(self.lines)}")
            try:
                told = line.call("hello", protocol=1, client="torture", **more)
            except NeverServedError:
                continue
            self.instance = told["instance"]
            self.lines.append(line)
            return line

    def acquire(self, line: Line, name: str, **params: object) -> int:
        """Acquires; returns the fencing token."""
        return int(
            line.call("acquire", resource=name, **params)["grant"]["fencing_token"]
        )

    def query(self, name: str, **params: object) -> tuple[list[int], int]:
        """Returns the tokens of the holders, and how many wait."""
        found = self.line().call("query", resource=name, **params)
        tokens = [holder["fencing_token"] for holder in found["holders"]]
        return tokens, found["waiter_count"]

    def must(self, found: object, wanted: object, what: str) -> None:
        if found != wanted:
            self._board.complain("wrong state", f"{what}: {found}, not {wanted}")

    def lost(self, what: str) -> LostError:
        """Complains of a connection that has ended; returns what is to be raised."""
        self._board.complain("lost connection", what)
        return LostError(what)

    def refused(self, what: str) -> LostError:
        """Complains of a refusal; returns what is to be raised."""
        self._board.complain("unexpected answer", what)
        return LostError(what)

    def first_answered(self, asked: dict[Line, int]) -> Line:
        """Waits until one of several requests is answered; returns whose it was.

        Raises:
            UnansweredError: none is; has been complained of.
        """
        end = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < end:
            for line, msgid in asked.items():
                line.look()
                if line.is_answered(msgid):
                    return line
            time.sleep(0.001)
        self._board.complain("unanswered", f"actor's lines: none of {len(asked)}")
        raise UnansweredError("none of several")

    def must_be_locked(
        self, lockspace: str, name: str, mode: str = "exclusive"
    ) -> None:
        """Asks the kernel."""
        if lockspace != "default":
            path = f"{DIRECTORY}/{name}" if lockspace == "files" else name
            wanted = SHARED if mode == "shared" else EXCLUSIVE
            self.must(why_free(path, wanted), "", "the file")

    def must_be_busy(self, name: str, **params: object) -> None:
        try:
            self.acquire(self.line(), name, timeout=0, **params)
        except Refused as refusal:
            self.must(refusal.code, "busy", f"a try for {name}")
        else:
            self._board.complain("overlap", f"a try was granted {name}, which is held")


def _acquire(scene: Scene, lockspace: str) -> None:
    line = scene.line()
    scene.step()
    token = scene.acquire(line, "a", lockspace=lockspace)
    scene.step()
    _must_be_held(scene, "a", token, lockspace)
    line.call("release", resource="a", lockspace=lockspace)


def _must_be_held(scene: Scene, name: str, token: int, lockspace: str) -> None:
    scene.must(scene.query(name, lockspace=lockspace), ([token], 0), "after acquire")
    scene.must_be_busy(name, lockspace=lockspace)
    scene.must_be_locked(lockspace, name)


def _try_refused(scene: Scene) -> None:
    holder, other = scene.line(), scene.line()
    token = scene.acquire(holder, "a", lockspace="files")
    scene.step()
    try:
        scene.acquire(other, "a", lockspace="files", timeout=0)
    except Refused as refusal:
        scene.must(refusal.code, "busy", "a try")
    scene.step()
    _must_be_held(scene, "a", token, "files")


def _wait(scene: Scene) -> None:
    holder, waiter = scene.line(), scene.line()
    token = scene.acquire(holder, "a", lockspace="files")
    scene.step()
    msgid, query = waiter.ask_all(
        [
            ("acquire", {"resource": "a", "lockspace": "files"}),
            ("query", {"resource": "a", "lockspace": "files"}),
        ]
    )
    waiter.wait(query)
    scene.step()
    scene.must(scene.query("a", lockspace="files"), ([token], 1), "while one waits")
    holder.call("release", resource="a", lockspace="files")
    waiter.wait(msgid)


def waits(scene: Scene, line: Line, name: str) -> int:
    """Has a session wait; returns the msgid when its place is sure."""
    names: dict[str, object] = {"resource": name, "lockspace": "files"}
    msgid, query = line.ask_all([("acquire", names), ("query", names)])
    line.wait(query)
    return msgid


def _grant_to_waiter(scene: Scene) -> None:
    holder, second, third = scene.line(), scene.line(), scene.line()
    first = scene.acquire(holder, "a", lockspace="files")
    of_second = waits(scene, second, "a")
    of_third = waits(scene, third, "a")
    scene.step()
    holder.call("release", resource="a", lockspace="files")
    token = second.wait(of_second)["grant"]["fencing_token"]
    scene.step()
    scene.must(token > first, True, "the token rises")
    scene.must(scene.query("a", lockspace="files"), ([token], 1), "after the grant")
    third.look()
    scene.must(third.is_answered(of_third), False, "the third is granted too early")
    second.call("release", fencing_token=token)
    third.wait(of_third)


def _hand_over(
    scene: Scene, lockspace: str, name: str, mode: str = "exclusive"
) -> None:
    """One releases and others ask, at once: who asks may be heard first.

    Whatever was done with the file for the first, the next holds one that is there
    and locked. In whichever order sessions are heard, one is heard before the first.
    """
    early, first, late = scene.line(), scene.line(), scene.line()
    names: dict[str, object] = {"resource": name, "lockspace": lockspace}
    token = scene.acquire(first, name, lockspace=lockspace, mode=mode)
    scene.step()
    released = first.ask("release", **names)
    # Where the release is what the kill comes to, these wait in their sockets.
    asked = {line: line.ask("acquire", **names, mode=mode) for line in (early, late)}
    first.wait(released)
    holder = scene.first_answered(asked)
    later = int(holder.wait(asked.pop(holder))["grant"]["fencing_token"])
    scene.step()
    scene.must(later > token, True, "the token rises")
    scene.must_be_locked(lockspace, name, mode)
    scene.must_be_busy(name, lockspace=lockspace)
    holder.call("release", **names)
    for line, msgid in asked.items():
        line.wait(msgid)
    scene.must_be_locked(lockspace, name, mode)


def _release(scene: Scene) -> None:
    line = scene.line()
    token = scene.acquire(line, "a", lockspace="files")
    scene.step()
    line.call("release", resource="a", lockspace="files")
    scene.step()
    scene.must(scene.query("a", lockspace="files"), ([], 0), "after release")
    later = scene.acquire(scene.line(), "a", lockspace="files", timeout=0)
    scene.must(later > token, True, "the token rises")


def _convert(scene: Scene) -> None:
    line = scene.line()
    names = {"resource": "a", "lockspace": "files"}
    token = scene.acquire(line, "a", lockspace="files", mode="shared")
    scene.step()
    line.call("convert", **names, mode="exclusive")
    line.call("convert", **names, mode="shared")
    line.call("convert", **names, mode="exclusive")
    scene.step()
    _must_be_held(scene, "a", token, "files")


def _strands(scene: Scene) -> None:
    """Two threads of a client: one holds and goes down, so that the other gets in."""
    line = scene.line()
    names: dict[str, object] = {"resource": "a", "lockspace": "files"}
    token = scene.acquire(line, "a", lockspace="files", strand=1)
    shared = names | {"strand": 2, "mode": "shared"}
    msgid, query = line.ask_all([("acquire", shared), ("query", names)])
    line.wait(query)
    scene.step()
    line.call("convert", fencing_token=token, mode="shared")
    other = int(line.wait(msgid)["grant"]["fencing_token"])
    scene.step()
    tokens, waiting = scene.query("a", lockspace="files")
    scene.must((tokens, waiting), ([token, other], 0), "after the convert")
    scene.must_be_locked("files", "a", "shared")
    for each in (token, other):
        line.call("release", fencing_token=each)


def _notices(scene: Scene) -> None:
    """A holder is late, is wanted and then not any more: it hears each once."""
    holder, waiter = scene.line(), scene.line()
    scene.step()
    wishes = {"wanted": True, "max_hold": 0.01}
    token = scene.acquire(holder, "a", lockspace="files", **wishes)
    msgid = waits(scene, waiter, "a")
    holder.hear(2)
    waiter.call("cancel", request=msgid)
    scene.step()
    holder.hear(3)
    holder.call("statistics")
    scene.must(sorted(holder.notices[:2]), ["overdue", "wanted"], "the first notices")
    scene.must(holder.notices[2:], ["unwanted"], "the other notices")
    try:
        waiter.wait(msgid)
    except Refused as refusal:
        scene.must(refusal.code, "cancelled", "what was cancelled")
    _must_be_held(scene, "a", token, "files")


def _slots(scene: Scene) -> None:
    """One of two slots is released and goes to who waits, and never to two."""
    holder, waiter = scene.line(), scene.line()
    slot: dict[str, object] = {"mode": "slot", "slots": 2}
    tokens = [scene.acquire(holder, "a", **slot, strand=x) for x in (1, 2)]
    name: dict[str, object] = {"resource": "a"}
    msgid, query = waiter.ask_all([("acquire", name | slot), ("query", name)])
    waiter.wait(query)
    scene.step()
    holder.call("release", fencing_token=tokens[0])
    grant = waiter.wait(msgid)["grant"]
    scene.step()
    scene.must((grant["slot"], grant["slots"]), (0, 2), "the slot that was released")
    found = scene.line().call("query", resource="a")
    held = {x["slot"]: x["fencing_token"] for x in found["holders"]}
    scene.must(held, {0: grant["fencing_token"], 1: tokens[1]}, "after the grant")
    scene.must_be_busy("a", **slot)
    scene.must_be_busy("a")
    waiter.call("release", resource="a")
    holder.call("release", fencing_token=tokens[1])


def _within(scene: Scene) -> None:
    """A child wants what its parent has, and waits for nobody for ever."""
    parent, stranger = scene.line(), scene.line()
    token = scene.acquire(parent, "a", lockspace="files")
    scene.acquire(stranger, "b")
    scene.step()
    child = scene.line(within=[f"{scene.instance}:{token}"])
    wanted: dict[str, object] = {"resource": "b"}
    # From here on the child waits, whoever is heard first after a kill.
    msgid, query = child.ask_all([("acquire", wanted), ("query", wanted)])
    child.wait(query)
    try:
        scene.acquire(stranger, "a", lockspace="files", timeout=3)
    except Refused as refusal:
        child.look()  # without the child there is nothing to refuse
        waiters = scene.line().call("query", resource="b")["waiters"]
        # A daemon that cannot read who the child is takes it for nobody.
        if [waiter["uid"] for waiter in waiters] == [os.getuid()]:
            scene.must(refusal.code, "deadlock", "who waits for a child's parent")
    else:
        scene.must("granted", "refused", "who waits for a child's parent")
    scene.step()
    scene.must(scene.query("b")[1], 1, "the child that waits")
    stranger.call("release", resource="b")
    child.wait(msgid)


def _tree(scene: Scene) -> None:
    """Two children take turns inside; the parent ends first, and a stranger waits.

    Nobody outside gets in before the last of the tree is done.
    """
    parent, stranger = scene.line(), scene.line()
    names: dict[str, object] = {"resource": "a", "lockspace": "files"}
    outer = scene.acquire(parent, "a", lockspace="files")
    late = waits(scene, stranger, "a")
    within = [f"{scene.instance}:{outer}"]
    first, second = scene.line(within=within), scene.line(within=within)
    scene.step()
    inner = scene.acquire(first, "a", lockspace="files")
    msgid, query = second.ask_all([("acquire", names), ("query", names)])
    second.wait(query)
    parent.call("release", **names)
    scene.step()
    tokens, waiting = scene.query("a", lockspace="files")
    scene.must((tokens, waiting), ([inner], 2), "after the end of the parent")
    scene.must_be_locked("files", "a")
    first.call("release", **names)
    turn = int(second.wait(msgid)["grant"]["fencing_token"])
    stranger.look()
    scene.must(stranger.is_answered(late), False, "a stranger beside the tree")
    tokens, waiting = scene.query("a", lockspace="files")
    scene.must((tokens, waiting), ([turn], 1), "the turn of the other child")
    second.call("release", **names)
    token = int(stranger.wait(late)["grant"]["fencing_token"])
    _must_be_held(scene, "a", token, "files")


def _cancel(scene: Scene) -> None:
    holder, waiter = scene.line(), scene.line()
    token = scene.acquire(holder, "a", lockspace="files")
    msgid = waits(scene, waiter, "a")
    scene.step()
    waiter.call("cancel", request=msgid)
    scene.step()
    try:
        waiter.wait(msgid)
    except Refused as refusal:
        scene.must(refusal.code, "cancelled", "what was cancelled")
    _must_be_held(scene, "a", token, "files")


def _several(scene: Scene) -> None:
    line = scene.line()
    scene.step()
    line.call("acquire", resources=["a", "b", "c"], lockspace="files")
    line.call("release", resources=["b", "c"], lockspace="files")
    scene.step()
    scene.must(len(scene.query("a", lockspace="files")[0]), 1, "holders of a")
    for name in ("b", "c"):
        scene.must(scene.query(name, lockspace="files"), ([], 0), name)


def _connect(scene: Scene) -> None:
    scene.step()
    line = scene.line()
    scene.step()
    token = scene.acquire(line, "a")
    scene.must(scene.query("a"), ([token], 0), "after connect")


def _disconnect(scene: Scene) -> None:
    holder, waiter = scene.line(), scene.line()
    scene.acquire(holder, "a", lockspace="files")
    scene.acquire(holder, "b")
    msgid = waits(scene, waiter, "a")
    scene.step()
    holder.close()
    scene.lines.remove(holder)
    token = waiter.wait(msgid)["grant"]["fencing_token"]
    scene.step()
    scene.must(scene.query("a", lockspace="files"), ([token], 0), "after disconnect")
    scene.must(scene.query("b"), ([], 0), "after disconnect")


class _Other:
    """Another process of a scene: it may be ended.

    Args:
        task: calls what it is given to say that it has come to the end of a step, and
            to wait for the word to go on.
    """

    def __init__(self, task: Callable[["_Other"], None]) -> None:
        self._reader, self._writer = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        self.pid = fork(lambda: self._run(task))
        os.close(self._writer)

    def _run(self, task: Callable[["_Other"], None]) -> None:
        os.close(self._reader)
        with suppress(LostError, NeverServedError, UnansweredError):
            task(self)

    def say(self) -> None:
        """Says, in the process itself, that it has come to the end of a step."""
        os.write(self._writer, b".")

    def wait_for_word(self) -> None:
        signal.sigwait({signal.SIGUSR1})

    def hears(self) -> bool:
        """Waits for the end of its step; tells if it comes, and not that of all."""
        return os.read(self._reader, 1) == b"."

    def go(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)


def _fence(scene: Scene) -> None:
    """Who closes with locks of `killed` is dead before anybody gets them."""
    names: dict[str, object] = {"resource": "a", "lockspace": "killed"}

    def first(process: _Other) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line = scene.line()
        line.call("acquire", **names)
        process.say()
        process.wait_for_word()
        line.socket.shutdown(socket.SHUT_RDWR)
        signal.pause()

    def second(process: _Other) -> None:
        line = scene.line()
        msgid, query = line.ask_all([("acquire", names), ("query", names)])
        line.wait(query)
        process.say()
        token = line.wait(msgid)["grant"]["fencing_token"]
        process.say()
        process.wait_for_word()
        line.call("release", fencing_token=token)
        line.finish()

    others = []
    for task in (first, second):
        others.append(other := _Other(task))
        if not other.hears():
            raise UnansweredError("a process that is to hold or to wait")
    doomed, waiter = others
    scene.step()
    doomed.go()
    if not waiter.hears():
        # Whoever loses its connection with such a lock is ended, too.
        raise scene.lost("actor's waiter: it was ended")
    dead, _ = os.waitpid(doomed.pid, os.WNOHANG)
    scene.must(dead, doomed.pid, "who had the lock is dead")
    scene.step()
    waiter.go()
    os.waitpid(waiter.pid, 0)


class _Guest:
    """A connection in libvirt's tongue, for a process that does nothing else.

    It is not the actor's own: whoever loses the connection may be ended.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._pid = fork(signal.pause)
        while True:
            self._client = LibvirtClient(LIBVIRT_SOCKET)
            registered = self._client.call(lc.REGISTER, lc.owner(self._pid))
            if registered is not None:
                break
            self._client.close()

    def must_be_done(self, procedure: int, args: bytes) -> None:
        """Complains of a refusal. Raises LostError if the connection has ended."""
        reply = self._client.call(procedure, args)
        if reply is None:
            raise self._scene.lost("actor's guest: EOF")
        if reply.status != lc.OK:
            raise self._scene.refused(f"actor's guest: {procedure}: {reply.error}")

    def close(self) -> None:
        self._client.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _libvirt(scene: Scene) -> None:
    disk = lc.resource("", f"{DISKS}/disk-0")
    guest = _Guest(scene)
    scene.step()
    guest.must_be_done(lc.ACQUIRE, disk)
    guest.must_be_done(lc.RELEASE, disk)
    guest.must_be_done(lc.ACQUIRE, disk)
    scene.step()
    scene.must(why_free(f"{DISKS}/disk-0", 1), "", "the disk")
    guest.must_be_done(lc.RELEASE, disk)
    guest.close()


def _libvirt_connect(scene: Scene) -> None:
    scene.step()
    guest = _Guest(scene)
    scene.step()
    guest.close()


def _upgrade(scene: Scene) -> None:
    """The upgrade itself is asked for from outside, as it is by `kill -USR1`."""
    holder, waiter = scene.line(), scene.line()
    token = scene.acquire(holder, "a", lockspace="files")
    msgid = waits(scene, waiter, "a")
    scene.step()
    other = scene.acquire(holder, "b")
    scene.step()
    scene.must(scene.query("a", lockspace="files"), ([token], 1), "after upgrade")
    scene.must(scene.query("b"), ([other], 0), "after upgrade")
    holder.call("release", fencing_token=token)
    waiter.wait(msgid)


Scenario = Callable[[Scene], None]

SCENARIOS: Final[dict[str, Scenario]] = {
    "acquire (memory)": partial(_acquire, lockspace="default"),
    "acquire (directory)": partial(_acquire, lockspace="files"),
    "acquire, refused": _try_refused,
    "acquire several": _several,
    "wait": _wait,
    "grant to waiter": _grant_to_waiter,
    "release": _release,
    "hand over (directory)": partial(_hand_over, lockspace="files", name="a"),
    "hand over (shared)": partial(
        _hand_over, lockspace="files", name="a", mode="shared"
    ),
    "hand over (disk)": partial(
        _hand_over, lockspace="direct", name=SHARED_DISKS[1].name
    ),
    "convert": _convert,
    "strands": _strands,
    "overdue and wanted": _notices,
    "slots": _slots,
    "within": _within,
    "tree": _tree,
    "cancel": _cancel,
    "connect": _connect,
    "disconnect": _disconnect,
    "fence": _fence,
    "libvirt: connect": _libvirt_connect,
    "libvirt: acquire, release": _libvirt,
}

#: Begun by a signal of whoever runs it, when it has taken its first step.
UPGRADE: Final = _upgrade


def play(board: Board, scenario: Scenario, stage: Stage) -> None:
    """Carries out a scenario; complains of what is wrong."""
    scene = Scene(board, stage)
    try:
        scenario(scene)
        for line in scene.lines:
            line.finish()
    except (LostError, NeverServedError, UnansweredError):
        pass  # has been complained of
    except Refused as refusal:
        board.complain("unexpected answer", f"actor: {refusal}")
    except Exception as error:
        board.complain("scenario", repr(error))
