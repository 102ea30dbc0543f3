"""Clients that misbehave, one kind each: for the soak, the torture and the floods.

A misdeed is a generator. It connects, and yields after each thing that it does, so that
whoever runs it decides how often it acts and when it ends. Its connections are closed
when it ends. The daemon may close them earlier: that ends the misdeed with an OSError,
and `misbehave` begins it anew.

A `Crowd` is many of them, each in a process of its own. It kills some, and stops some
for seconds.
"""

import grp
import math
import os
import random
import signal
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final

import msgpack

from campaigns import mischief
from torture.inside import die_with_parent, fork

Misdeed = Callable[[str, random.Random, int], Iterator[None]]
"""Takes the path of the daemon's socket, and how many connections it may have."""

CONNECT_SECONDS: Final = 2.0
MOST_WATCHERS: Final = 10
MOST_DESCRIPTORS: Final = 253
"""The kernel takes no more in one message (SCM_MAX_FD)."""

NICE: Final = 10
"""Of the processes of a crowd: what they cost others is to be what the daemon makes of
it, and not what they take of the processors."""

CONNECTED_AT_ONCE: Final = 10
"""Connections that one opens without a pause. More would keep everybody who connects
waiting, on a machine that is busy: the kernel queues them in their order."""

STOPPED_SECONDS: Final = (0.5, 4.0)


def become(uid: int) -> None:
    """Gives this process the rights of another user of the group lockd; takes root."""
    os.setgroups([grp.getgrnam("lockd").gr_gid])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The kernel has forgotten it with the change.
    die_with_parent()


def misbehave(
    misdeed: Misdeed,
    path: str,
    chance: random.Random,
    connections: int,
    pause: Callable[[], bool],
) -> None:
    """Repeats a misdeed, also after the daemon has ended its connections.

    Args:
        pause: is called after each thing that is done; returns whether to do more.
    """
    while True:
        with suppress(OSError):
            for _ in misdeed(path, chance, connections):
                if not pause():
                    return
        if not pause():
            return


# What is sent.


def _request(method: str, /, **params: object) -> bytes:
    return bytes(msgpack.packb([0, 1, method, [params]]))


def _own_name(chance: random.Random) -> str:
    """A lock that only those who misbehave want."""
    return f"misused-{chance.randrange(8)}"


def _any_request(chance: random.Random) -> bytes:
    name = _own_name(chance)
    return chance.choice(
        (
            _request("hello", protocol=1, client="misbehaving"),
            _request("acquire", resource=name),
            _request("acquire", resource=name, mode="shared", timeout=0),
            _request("release", resource=name),
            _request("query", resource=name),
            _request("list"),
            _request("list_sessions"),
            _request("statistics"),
            _request("watch"),
        )
    )


def _nonsense(chance: random.Random) -> bytes:
    """Bytes that are no request, or hardly one."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.choice((1, 7, 300, 4_096)))
    if kind == 1:
        return mischief.malformed(chance)
    damaged = bytearray(_any_request(chance))
    if kind == 2:
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    # Well formed, and far more than anybody needs.
    return _request(
        "statistics", **{"x" * 20: [b"x" * 16_000] * chance.randrange(1, 8)}
    )


# How it is sent.


def _connected(stack: ExitStack, path: str) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.settimeout(CONNECT_SECONDS)
    sock.connect(path)
    sock.setblocking(False)
    return sock


def _send_some(sock: socket.socket, data: bytes, flags: int = 0) -> None:
    """Sends what the socket takes at once, be it the half of a message."""
    with suppress(BlockingIOError):
        sock.send(data, flags)


def never_reads(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Watches over many connections, asks for more, and reads nothing."""
    with ExitStack() as stack:
        socks = []
        for _ in range(min(connections, MOST_WATCHERS)):
            socks.append(_connected(stack, path))
            _send_some(socks[-1], _request("watch"))
            yield
        for _ in range(chance.choice((100, 1_000))):
            if chance.random() < 0.2:
                asked = _request("list_sessions") * chance.randrange(1, 30)
                _send_some(chance.choice(socks), asked)
            yield


def half_closes(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Watches over many connections; while events come, it ends one half of each.

    Nothing is read. So events fill all of them at about the same time, which may be
    while the daemon is still closing them.
    """
    with ExitStack() as stack:
        socks = []
        for number in range(connections):
            if number % CONNECTED_AT_ONCE == 0:
                yield
            socks.append(_connected(stack, path))
            _send_some(socks[-1], _request("watch"))
            if chance.random() < 0.1:
                _send_some(socks[-1], _request("acquire", resource=_own_name(chance)))
        for _ in range(chance.randrange(60)):
            yield
        how = chance.choice((socket.SHUT_WR, socket.SHUT_WR, socket.SHUT_RD))
        for sock in socks:
            sock.shutdown(how)
        for _ in range(chance.randrange(20)):
            yield


def half_messages(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Begins messages, and leaves them at any byte."""
    with ExitStack() as stack:
        for _ in range(connections):
            whole = _any_request(chance)
            sock = _connected(stack, path)
            _send_some(sock, whole * chance.randrange(3))
            _send_some(sock, whole[: chance.randrange(len(whole))])
            yield
            if chance.random() < 0.3:
                sock.close()


def garbage(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Sends bytes that mean nothing until the daemon ends the connection."""
    with ExitStack() as stack:
        sock = _connected(stack, path)
        while True:
            _send_some(sock, _nonsense(chance))
            yield


def floods(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Takes and gives back a lock, 32 times in one piece; reads the answers late."""
    name = _own_name(chance)
    acquire, release = (
        _request(method, resource=name) for method in ("acquire", "release")
    )
    with ExitStack() as stack:
        sock = _connected(stack, path)
        for _ in range(200):
            _send_some(sock, (acquire + release) * 32)
            yield
            with suppress(BlockingIOError):
                while sock.recv(65_536):
                    pass


def passes_descriptors(
    path: str, chance: random.Random, connections: int
) -> Iterator[None]:
    """Passes descriptors with its messages, as many as the kernel takes."""
    with ExitStack() as stack:
        spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, spare)
        sock = _connected(stack, path)
        for _ in range(20):
            count = chance.choice((1, 2, MOST_DESCRIPTORS))
            passed = array("i", [spare] * count)
            data = chance.choice((_any_request(chance), b"\x94"))
            about = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
            with suppress(BlockingIOError):
                sock.sendmsg([data], about)
            yield


def out_of_band(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Sends bytes out of band, alone and between messages."""
    with ExitStack() as stack:
        sock = _connected(stack, path)
        for _ in range(20):
            _send_some(sock, _any_request(chance) * chance.randrange(2))
            urgent = chance.choice((b"!", _any_request(chance)))
            _send_some(sock, urgent, socket.MSG_OOB)
            yield


def comes_and_goes(
    path: str, chance: random.Random, connections: int
) -> Iterator[None]:
    """Connects, asks for something or for nothing, and closes at once."""
    for _ in range(10):
        with ExitStack() as stack:
            for _ in range(chance.randrange(1, 4)):
                sock = _connected(stack, path)
                _send_some(sock, _any_request(chance) * chance.randrange(3))
        yield


def hoards(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Opens all the connections that it gets, says nothing, and closes all at once."""
    with ExitStack() as stack:
        for _ in range(connections):
            _connected(stack, path)
            yield


MISDEEDS: Final[dict[str, Misdeed]] = {
    "watches and never reads": never_reads,
    "half-closes while events come": half_closes,
    "sends halves of messages": half_messages,
    "sends garbage": garbage,
    "floods": floods,
    "passes descriptors": passes_descriptors,
    "sends out of band": out_of_band,
    "comes and goes": comes_and_goes,
    "hoards connections": hoards,
}
"""How each is called in what is printed."""


class Crowd:
    """Clients that misbehave, each in a process of its own: all kinds in turn.

    Args:
        path: of the daemon's socket.
        uids: whose processes they are; each must be allowed to connect.
        count: how many there are.
        connections: how many each of them has at most.
        pause: seconds between two things that one of them does, on average.
        is_over: tells the clients to end.
        note: is told the number of a client and what happened, in the process in which
            it did: it "acted" or "failed", or was "killed" or "stopped".
    """

    def __init__(
        self,
        path: str,
        uids: Sequence[int],
        *,
        count: int,
        connections: int,
        pause: float,
        is_over: Callable[[], bool],
        note: Callable[[int, str], None],
        seed: int,
    ) -> None:
        self._path = path
        self._uids = uids
        self._connections = connections
        self._pause = pause
        self._is_over = is_over
        self._note = note
        self._chance = random.Random(seed)
        self._numbers: dict[int, int] = {}  # by pid
        self._stopped: dict[int, float] = {}  # until when, by pid
        for number in range(count):
            self._start(number)

    def disturb(self) -> None:
        """Kills or stops one, and lets those go on whose time has come.

        To be called again and again.
        """
        if self._numbers:
            harm = self._chance.choice((self._kill, self._stop))
            harm(self._chance.choice(list(self._numbers)))
        self._continue(time.monotonic())

    def end(self) -> None:
        """Kills all of them at once."""
        self._continue(math.inf)
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._numbers:
            os.waitpid(pid, 0)
        self._numbers.clear()

    def _start(self, number: int) -> None:
        seed = self._chance.randrange(2**32)
        pid = fork(lambda: self._misbehave(number, random.Random(seed)))
        self._numbers[pid] = number

    def _misbehave(self, number: int, chance: random.Random) -> None:
        os.nice(NICE)
        become(self._uids[number % len(self._uids)])

        def pause() -> bool:
            self._note(number, "acted")
            time.sleep(chance.expovariate(1 / self._pause))
            return not self._is_over()

        misdeed = list(MISDEEDS.values())[number % len(MISDEEDS)]
        try:
            misbehave(misdeed, self._path, chance, self._connections, pause)
        except Exception:
            self._note(number, "failed")
            raise

    def _kill(self, pid: int) -> None:
        """Kills one, whatever it does; another one takes its place."""
        number = self._numbers.pop(pid)
        self._stopped.pop(pid, None)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._note(number, "killed")
        self._start(number)

    def _stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._stopped[pid] = time.monotonic() + self._chance.uniform(*STOPPED_SECONDS)
        self._note(self._numbers[pid], "stopped")

    def _continue(self, now: float) -> None:
        for pid, until in list(self._stopped.items()):
            if until <= now:
                del self._stopped[pid]
                os.kill(pid, signal.SIGCONT)
