"""Processes of ours inside the booted machine, which share our memory."""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_SPACES: Final = ("mnt", "pid")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def enter(first_pid: int) -> None:
    """Has this process see the machine's files, and its children be its processes.

    Args:
        first_pid: the machine's PID 1, as it is called here.
    """
    spaces = [
        os.open(f"/proc/{first_pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in _SPACES
    ]
    for space in spaces:
        if _LIBC.setns(space, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(space)
    os.chdir("/")


def die_with_parent() -> None:
    """Has the kernel kill this process when the one ends that forked it.

    It forgets that when the process changes its user.
    """
    _LIBC.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def fork(task: Callable[[], object]) -> int:
    """Carries out a task in a child; returns its pid. It ends with us."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        die_with_parent()
        task()
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def call(first_pid: int, task: Callable[[], Any]) -> Any:
    """Carries out a task inside; returns its result, which must be plain data."""
    reader, writer = os.pipe()

    def inner() -> None:
        os.write(writer, json.dumps(task()).encode())

    def outer() -> None:
        enter(first_pid)
        _, status = os.waitpid(fork(inner), 0)
        if status:
            raise ChildProcessError(status)

    pid = fork(outer)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChildProcessError(f"what was done inside failed with {status}")
    return json.loads(text)


class Actor:
    """A process inside that acts when it is told to, step by step.

    Args:
        task: what it does; between steps it calls its `Stage.step`.
    """

    def __init__(self, first_pid: int, task: Callable[["Stage"], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours

        def outer() -> None:
            ours.close()
            enter(first_pid)
            _, status = os.waitpid(fork(lambda: task(Stage(theirs))), 0)
            os._exit(1 if status else 0)

        self._pid = fork(outer)
        theirs.close()

    def wait(self, seconds: float) -> bool:
        """Waits until it has come to the end of a step; tells if it has."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(1) == b"."
        except (TimeoutError, ConnectionResetError):
            return False

    def has_come(self) -> bool:
        """Tells whether there is nothing to wait for."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def go(self) -> None:
        """Has it take the next step."""
        with suppress(BrokenPipeError):
            self._socket.send(b".")

    def end(self) -> int:
        """Has it take no more steps, and waits for its end; returns its status."""
        self._socket.settimeout(30)
        try:
            self._socket.send(b"!")
            while self._socket.recv(1):
                self._socket.send(b"!")
        except TimeoutError:
            # It waits for what does not come. What is inside ends with this one.
            os.kill(self._pid, signal.SIGKILL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended
        self._socket.close()
        return os.waitpid(self._pid, 0)[1]


class Stage:
    """The actor's side: it goes on when it is told to."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def step(self) -> bool:
        """Says that a step is done, and waits for the word; False: it is the last."""
        self._socket.send(b".")
        if not (word := self._socket.recv(1)):
            raise SystemExit(1)
        return word == b"."
