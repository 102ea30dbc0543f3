"""The descriptor store of a daemon: sd_notify(3) with FDSTORE=1, from the other end."""

import array
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Final

CAPACITY: Final = 64
"""How many descriptors it takes. lockd needs 13, and one for each listening socket."""

_LONGEST: Final = 4_096
_MOST_AT_ONCE: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred (unix(7)): pid, uid, gid."""

Notice = dict[str, str]
"""A notification: its assignments."""


class DescriptorStore:
    """Hears the daemon, and keeps the descriptors that it sends.

    Args:
        path: of the socket for notifications. Without one, the kernel chooses a name
            that is no file.
    """

    def __init__(self, path: str = "") -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(path)
        #: The descriptors that the daemon has stored, by name.
        self.kept: dict[str, int] = {}
        self._files: dict[str, os.stat_result] = {}

    @property
    def address(self) -> str:
        """The address of the socket, as NOTIFY_SOCKET has it."""
        name: str | bytes = self.socket.getsockname()
        return name if isinstance(name, str) else f"@{name[1:].decode()}"

    def hear(self, daemon: int) -> Notice:
        """Receives a notification, and does what it asks.

        Raises:
            BlockingIOError, TimeoutError: there is none; by the mode of `socket`.

        Args:
            daemon: the pid of the process whose notifications count. Every process can
                send one.

        Returns:
            The notification; an empty one of another process.
        """
        size = array.array("i").itemsize
        room = socket.CMSG_SPACE(_MOST_AT_ONCE * size)
        room += socket.CMSG_SPACE(_CREDENTIALS.size)
        text, control, _, _ = self.socket.recvmsg(
            _LONGEST, room, socket.MSG_CMSG_CLOEXEC
        )
        sender, fds = 0, array.array("i")
        for _, kind, data in control:
            if kind == socket.SCM_CREDENTIALS:
                sender, _, _ = _CREDENTIALS.unpack(data)
            elif kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % size])
        try:
            if sender != daemon:
                return {}
            lines = text.decode("utf-8", "replace").splitlines()
            notice = dict(line.partition("=")[::2] for line in lines)
            if notice.get("FDSTORE") == "1" and notice.get("FDNAME") and fds:
                self._keep(notice["FDNAME"], fds.pop(0))
            elif notice.get("FDSTOREREMOVE") == "1":
                self._drop(notice.get("FDNAME", ""))
            return notice
        finally:
            for fd in fds:
                os.close(fd)

    def _keep(self, name: str, fd: int) -> None:
        if len(self.kept) == CAPACITY and name not in self.kept:
            os.close(fd)
            return
        self._drop(name)
        self.kept[name] = fd
        with suppress(OSError):
            if path := _path_of(fd):
                self._files[path] = os.lstat(path)

    def _drop(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))

    def close(self) -> None:
        """Drops everything: the kernel ends what nobody has open any longer.

        It removes the files of the listening sockets first. While they listen, no other
        daemon puts its own file there.
        """
        for path, status in self._files.items():
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), status):
                    os.unlink(path)
        for name in list(self.kept):
            self._drop(name)
        self.socket.close()


def _path_of(fd: int) -> str:
    """Returns the path of a listening UNIX socket; "" for another descriptor."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return ""
    with socket.socket(fileno=os.dup(fd)) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return ""
        name = sock.getsockname()
        return name if isinstance(name, str) else ""
