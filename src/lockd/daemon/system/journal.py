"""The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

A field is `NAME=value` and a newline. If the value has newlines, the field is the name,
a newline, the length as 64 bits little-endian, the value, and a newline. All fields of
a line are one datagram, or a sealed memfd if they are too long for one.
"""

import array
import errno
import fcntl
import os
import re
import socket
from collections.abc import Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

_SEALS: Final = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
)


def encode(fields: Mapping[str, str]) -> bytes:
    """Returns fields in the format of the journal.

    Args:
        fields: the names are those of systemd.journal-fields(7), in capitals.
    """
    found = bytearray()
    for name, text in fields.items():
        assert _NAME.fullmatch(name), name
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            size = len(value).to_bytes(8, "little")
            found += name.encode() + b"\n" + size + value + b"\n"
        else:
            found += name.encode() + b"=" + value + b"\n"
    return bytes(found)


class Journal:
    """A connection to journald.

    It blocks while journald is slow, so use it in a thread.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, fields: Mapping[str, str]) -> None:
        """Sends a line.

        Raises:
            OSError: journald does not accept it.
        """
        data = encode(fields)
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            # ENOBUFS: the kernel has no room for this size, now or ever.
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        fd = os.memfd_create("lockd-journal", flags)
        try:
            while data:
                data = data[os.write(fd, data) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            passed = array.array("i", [fd])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
            self._socket.sendmsg([], ancillary, 0, self._path)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
