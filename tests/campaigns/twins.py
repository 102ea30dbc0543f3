"""Two lock daemons that are told the same, each about a directory of its own.

Arguments are templates: `@` in them is the root of the daemon's own directory. Both
roots are equally long, so that limits of length are met alike.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from campaigns.guests import Guest, Nursery
from support import libvirt_client as lc
from support.libvirt_client import LibvirtClient, Reply

SIDES: Final = (0, 1)
"""The model, and the one that is measured by it."""

DEATH_SECONDS: Final = 10.0
_NOBODY_ASKS: Final = lc.message(lc.RESTRICT, lc.flags(0x40), serial=0x70696E67)
_FLOCK: Final = struct.Struct("hhqqi4x")
_LOCKED: Final = {fcntl.F_RDLCK: " shared", fcntl.F_WRLCK: " exclusive"}

Pair = tuple[str, str]
Files = dict[str, str]


class Unexpected(Exception):  # noqa: N818 - a finding
    """Raised when the two differ in a way that nobody allowed."""


class Side(NamedTuple):
    """One daemon and what is its own."""

    name: str
    socket: Path
    root: Path


@dataclass(eq=False)
class Persona:
    """One process twice, once for each daemon; either may be killed."""

    number: int
    guests: tuple[Guest, Guest]
    is_dead: bool = False

    def __str__(self) -> str:
        return f"persona {self.number}" + " (dead)" * self.is_dead


Owner = Persona | int
"""A process of ours, or a number that is no process of ours."""


@dataclass(eq=False)
class Line:
    """One connection to each daemon, made by one persona."""

    persona: Persona
    clients: tuple[LibvirtClient, LibvirtClient]
    owner: Owner | None = None
    is_restricted: bool = False
    is_closed: bool = False


def pid_of(owner: Owner, side: int) -> int:
    return owner if isinstance(owner, int) else owner.guests[side].pid


def told(reply: Reply | None) -> str:
    """Says in one word or two what was answered; sentences may differ."""
    if reply is None:
        return "closed"
    if reply.error is None:
        return "ok"
    e = reply.error
    return f"{e.code}/{e.domain} level {e.level}"


def look(root: Path) -> Files:
    """Returns what there is below a directory, and how its files are locked."""
    found: Files = {}
    for base, directories, files in os.walk(os.fsencode(root)):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            with suppress(FileNotFoundError):  # it goes just now
                found[os.fsdecode(path[len(os.fsencode(root)) + 1 :])] = _say(path)
    return found


def _say(path: bytes) -> str:
    status = os.lstat(path)
    said = stat.filemode(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        return said + f" {status.st_size}{_lock_of(path)}"
    if stat.S_ISLNK(status.st_mode):
        return said + f" -> {os.readlink(path)!r}"
    return said


def is_locked(said: str) -> bool:
    """Whether what `look` says of a file says that it is locked."""
    return said.endswith(tuple(_LOCKED.values()))


def _lock_of(path: bytes) -> str:
    descriptor = os.open(path, os.O_RDWR)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    finally:
        os.close(descriptor)
    return _LOCKED.get(kind, "")


@dataclass
class Twins:
    """Says everything to both daemons, and tells what each of them answered."""

    sides: tuple[Side, Side]
    nursery: Nursery
    calls: int = 0
    sentences: list[str | None] = field(default_factory=list)
    _monitors: list[tuple[Guest, LibvirtClient]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for side in self.sides:
            guest = self.nursery.guest()
            self._monitors.append((guest, guest.connect(side.socket)))

    def move_to(self, name: str) -> None:
        """Goes on in new directories: a lockspace of virtlockd's is one for ever."""
        first, second = (
            side._replace(root=side.socket.parent / name) for side in self.sides
        )
        self.sides = (first, second)
        for side in self.sides:
            side.root.mkdir()

    def close(self) -> None:
        for guest, client in self._monitors:
            guest.close()
            client.close()

    def persona(self, number: int) -> Persona:
        return Persona(number, (self.nursery.guest(), self.nursery.guest()))

    def open(self, persona: Persona) -> Line:
        try:
            first, second = (
                guest.connect(side.socket)
                for guest, side in zip(persona.guests, self.sides, strict=True)
            )
        except (BrokenPipeError, ConnectionResetError, ValueError):
            raise Unexpected(
                f"{persona} is dead, nobody should have done that"
            ) from None
        return Line(persona, (first, second))

    def root(self, side: int) -> bytes:
        return os.fsencode(self.sides[side].root)

    def fill(self, template: bytes, side: int) -> bytes:
        return template.replace(b"@", self.root(side))

    def call(self, line: Line, procedure: int, payload: Callable[[int], bytes]) -> Pair:
        """Has both carry out one call."""
        self.calls += 1
        try:
            replies = [line.clients[n].call(procedure, payload(n)) for n in SIDES]
        except (lc.MalformedError, TimeoutError) as error:
            raise Unexpected(str(error)) from None
        self.sentences = [r.error.message if r and r.error else None for r in replies]
        return told(replies[0]), told(replies[1])

    def send(self, line: Line, message: bytes) -> Pair:
        """Sends any bytes to both; returns all they said before the next answer."""
        self.calls += 1
        first, second = (_answers(line.clients[side], message) for side in SIDES)
        return first, second

    def in_the_name_of(self, pid: int, procedure: int, payload: bytes) -> bool:
        """Says something to the model only, for an owner that is dead."""
        guest, side = self.nursery.guest(), self.sides[0]
        with guest.connect(side.socket) as client:
            client.register(pid)
            done = client.done(procedure, payload)
        guest.close()
        return done

    def settle(self) -> None:
        """Returns when both have seen all that happened to their connections.

        Two round trips: what was ready before the first is over before the second.
        """
        for _ in range(2):
            for _, client in self._monitors:
                client.send(_NOBODY_ASKS)
                assert client.receive() is not None

    def close_line(self, line: Line) -> None:
        line.is_closed = True
        for client in line.clients:
            client.close()

    def look(self) -> tuple[Files, Files]:
        first, second = (look(side.root) for side in self.sides)
        return first, second


def _answers(client: LibvirtClient, message: bytes) -> str:
    client.send(message)
    client.send(_NOBODY_ASKS)
    said: list[str] = []
    while (reply := client.receive()) is not None:
        if reply.serial == 0x70696E67:
            return "; ".join([*said, "goes on"])
        header = f"{reply.program:#x} {reply.version} {reply.procedure} {reply.type}"
        said.append(f"{header} {reply.serial} {told(reply)}")
    return "; ".join([*said, "closed"])
