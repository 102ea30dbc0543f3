"""The real virtlockd for tests: private, on a socket that it gets as from systemd."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Final

VIRTLOCKD: Final = "/usr/sbin/virtlockd"

_STOP_SECONDS: Final = 10.0
# sd_listen_fds(3): descriptor 3, and LISTEN_PID is the process after exec.
_TAKE_SOCKET: Final = 'exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@"'


def why_not() -> str | None:
    """Returns what is missing to run it here; None if nothing is."""
    if not os.access(VIRTLOCKD, os.X_OK):
        return "virtlockd is not installed (Debian: libvirt-daemon)"
    if os.geteuid() != 0:
        return "virtlockd needs root here"
    return None


class VirtlockdProcess:
    """Starts and ends one virtlockd. It serves as soon as it is made.

    It kills clients that close with locks of their own: close them afterwards, or let
    them be processes that may be killed.
    """

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "virtlockd.sock"
        self.log = directory / "virtlockd.log"
        config = directory / "virtlockd.conf"
        config.write_text('log_outputs = "3:stderr"\nmax_clients = 4096\n')
        command = [VIRTLOCKD, "-f", str(config), "-p", str(directory / "pid")]
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("wb") as log:
            listener.bind(str(self.socket))
            listener.listen(4096)
            self._process = subprocess.Popen(
                ["sh", "-c", _TAKE_SOCKET, "sh", *command],
                cwd=directory,  # where relative paths lead
                stdin=listener.fileno(),
                stdout=log,
                stderr=log,
                env=os.environ
                | {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
                | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "virtlockd.socket"},
                start_new_session=True,  # Ctrl-C is the caller's to handle
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
