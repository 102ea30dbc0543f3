"""Starts a command late: a child that waits, and execs when it is told to.

The child exists before the lock is asked for, so that it, and not lockctl, owns the
lock. If lockctl dies before the command is started, the child ends unseen.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NoReturn

from lockd.ctl.exits import INTERNAL
from lockd.ctl.run.signals import Inherited

#: More than the names of any request: protocol 3.1 allows a message 64 KiB.
_MESSAGE_BYTES: Final = 128 * 1024


class Command:
    """A command in a child process that waits to be started.

    Args:
        words: the program, looked up in PATH, and its arguments.
        inherited: the signal state that the command shall have.
    """

    def __init__(self, words: tuple[str, ...], inherited: Inherited) -> None:
        # Datagrams: never half a message, and EOF when the other side is gone.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _await_start(theirs, words, inherited)
        theirs.close()

    def start(self, environment: Mapping[str, str], bequeathed: list[int]) -> None:
        """Tells the child to exec.

        Args:
            environment: is added to that of the command.
            bequeathed: descriptors that the command inherits.
        """
        items = (os.fsencode(f"{name}={value}") for name, value in environment.items())
        # A child that was killed meanwhile has its own status, as a command has.
        with suppress(BrokenPipeError):
            socket.send_fds(self._ours, [b"\0".join(items)], bequeathed)

    def abandon(self) -> None:
        """Ends the child, which has not been started."""
        self._ours.close()
        os.waitpid(self.pid, 0)

    def exec_errno(self) -> int:
        """Returns why the ended command could not be executed; 0 if it could."""
        with suppress(ConnectionResetError):  # ended before it was told to start
            return int(self._ours.recv(_MESSAGE_BYTES) or 0)
        return 0


def execute(
    words: tuple[str, ...], environment: Mapping[str, str], inherited: Inherited
) -> NoReturn:
    """Becomes the command.

    Raises:
        OSError: it is not there, or cannot be executed.
    """
    os.environ.update(environment)
    inherited.restore()
    os.execvp(words[0], words)


def _await_start(
    lockctl: socket.socket, words: tuple[str, ...], inherited: Inherited
) -> NoReturn:
    try:
        # Empty: lockctl has given up, or is gone.
        message, bequeathed, _, _ = socket.recv_fds(lockctl, _MESSAGE_BYTES, 1)
        if message:
            for descriptor in bequeathed:
                os.set_inheritable(descriptor, True)
            items = (item.partition("=") for item in os.fsdecode(message).split("\0"))
            execute(words, {name: value for name, _, value in items}, inherited)
    except OSError as error:
        lockctl.send(b"%d" % (error.errno or 0))
    finally:
        os._exit(INTERNAL)
