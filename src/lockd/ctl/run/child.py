"""Starts a command late: a child that waits, and executes the command on request.

The child exists before the lock is requested, so that the child and not lockctl owns
the lock. If lockctl dies before starting the command, the child just ends.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from struct import Struct

from lockd.ctl.exits import INTERNAL
from lockd.ctl.run.signals import Inherited
from lockd.hints import Final, NoReturn
from lockd.lean import socket

#: More than the names of any request: protocol 3.1 allows messages of 64 KiB.
_MESSAGE_BYTES: Final = 128 * 1024

_DESCRIPTOR: Final = Struct("i")


class Command:
    """A command in a child process that waits to be started.

    Args:
        words: the program, which is searched in PATH, and its arguments.
        inherited: the signal state for the command.
    """

    def __init__(self, words: tuple[str, ...], inherited: Inherited) -> None:
        # Packets: no message is split, and the end of the other side is EOF.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _await_start(theirs, words, inherited)
        theirs.close()

    def start(self, environment: Mapping[str, str], bequeathed: list[int]) -> None:
        """Starts the command.

        Args:
            environment: variables to add to the environment of the command.
            bequeathed: descriptors that the command inherits.
        """
        items = (os.fsencode(f"{name}={value}") for name, value in environment.items())
        # If the child was killed meanwhile, its wait status reports it.
        with suppress(BrokenPipeError):
            self._ours.sendmsg([b"\0".join(items)], _rights(bequeathed))

    def abandon(self) -> None:
        """Ends a child that was not started."""
        self._ours.close()
        os.waitpid(self.pid, 0)

    def exec_errno(self) -> int:
        """Returns why the ended command could not be executed: errno, or 0."""
        with suppress(ConnectionResetError):  # it ended before it was started
            return int(self._ours.recv(_MESSAGE_BYTES) or 0)
        return 0


def _rights(descriptors: list[int]) -> list[tuple[int, int, bytes]]:
    """Returns what sends descriptors along with a message (unix(7))."""
    return [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))
        for descriptor in descriptors[:1]
    ]


def execute(
    words: tuple[str, ...], environment: Mapping[str, str], inherited: Inherited
) -> NoReturn:
    """Replaces this process by the command.

    Raises:
        OSError: the command does not exist or cannot be executed.
    """
    os.environ.update(environment)
    inherited.restore()
    failures = []
    for program in _places(words[0]):
        try:
            os.execv(program, words)
        except OSError as error:
            failures.append(error)
    missing = FileNotFoundError | NotADirectoryError
    found = [error for error in failures if not isinstance(error, missing)]
    raise (found or failures)[0]


def _places(program: str) -> list[str]:
    """Returns where a program may be, in the order of PATH.

    `os.execvp` does the same, and loads a module for it in each new process.
    """
    if "/" in program:
        return [program]
    path = os.environ.get("PATH", os.defpath)
    return [os.path.join(place, program) for place in path.split(os.pathsep)]


def _await_start(
    lockctl: socket.socket, words: tuple[str, ...], inherited: Inherited
) -> NoReturn:
    try:
        # An empty message: lockctl has given up or died.
        room = socket.CMSG_LEN(_DESCRIPTOR.size)
        message, rights, _, _ = lockctl.recvmsg(_MESSAGE_BYTES, room)
        if message:
            for _, _, data in rights:
                os.set_inheritable(_DESCRIPTOR.unpack(data)[0], True)
            items = (item.partition("=") for item in os.fsdecode(message).split("\0"))
            execute(words, {name: value for name, _, value in items}, inherited)
    except OSError as error:
        lockctl.send(b"%d" % (error.errno or 0))
    finally:
        os._exit(INTERNAL)
