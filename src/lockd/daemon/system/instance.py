"""The name of this daemon among all daemons, made with its state directory.

Two daemons may give out the same fencing token. So a program that names a lock from
outside the connection names the daemon too (protocol 6.2, `within`). The name is
random: no socket path is spelled in only one way.
"""

import os
import re
from contextlib import suppress
from typing import Final

from lockd.daemon.system.state_files import READ_FLAGS, replace_file

_FILE: Final = "instance"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_LENGTH: Final = 32


def instance_of(directory: str, known: str = "") -> str:
    """Returns the name of the daemon with a state directory; makes it if missing.

    If the directory cannot be written, the name is that of this process alone.

    Args:
        directory: the path of the state directory.
        known: the name that programs already know; empty if there is none. The
            directory may have lost it.
    """
    name = known if _NAME.fullmatch(known) else os.urandom(_LENGTH // 2).hex()
    with suppress(OSError):
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = _read(directory_fd)
            if found == name or (name != known and _NAME.fullmatch(found)):
                return found
            replace_file(directory_fd, _FILE, f"{name}\n".encode())
        finally:
            os.close(directory_fd)
    return name


def _read(directory_fd: int) -> str:
    """Returns the content of the file; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        fd = os.open(_FILE, READ_FLAGS, dir_fd=directory_fd)
        with open(fd, encoding="ascii") as file:
            return file.read(_LENGTH + 1).strip()
    return ""
