"""The name of this daemon among all daemons, made with its state directory.

Two daemons may give out the same fencing token. So a program that names a lock from
outside the connection names the daemon too (protocol 6.2, `within`). The name is
random: no socket path is spelled in only one way.
"""

import os
import re
from contextlib import suppress
from typing import Final

_FILE: Final = "instance"
_NEW_FILE: Final = "instance.new"
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_LENGTH: Final = 32


def instance_of(directory: str) -> str:
    """Returns the name of the daemon with a state directory; makes it if missing.

    If the directory cannot be written, the name is that of this process alone.
    """
    with suppress(OSError, ValueError):
        found = _read(os.path.join(directory, _FILE))
        if _NAME.fullmatch(found):
            return found
    name = os.urandom(_LENGTH // 2).hex()
    with suppress(OSError):
        _write(directory, name)
    return name


def _read(path: str) -> str:
    with open(os.open(path, os.O_RDONLY | _FLAGS), encoding="ascii") as file:
        return file.read(_LENGTH + 1).strip()


def _write(directory: str, name: str) -> None:
    """Writes the file at once: nobody reads half a name, not even after a power cut."""
    new = os.path.join(directory, _NEW_FILE)
    with suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(fd)
    os.rename(new, os.path.join(directory, _FILE))
