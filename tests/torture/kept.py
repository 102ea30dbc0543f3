"""The same daemon where systemd keeps nothing: its parent is `lockd keep`."""

import re
from typing import Final

from torture.target import SERVICE, Target

_SOCKETS: Final = {
    "--socket": "/run/lockd/lockd.sock",
    "--admin-socket": "/run/lockd/admin.sock",
    "--virtlockd-socket": "/run/libvirt/virtlockd-sock",
}

_DROPPED: Final = "Requires|Wants|After|Sockets|FileDescriptorStoreMax|WatchdogSec"
"""Of the unit: what a container has not."""


class KeptTarget(Target):
    """A booted machine in which `lockd keep` runs lockd, without sockets of systemd."""

    def start(self) -> None:
        """Has `lockd keep` be started, as a service that has no store."""
        run = self.machine.run
        unit = self.machine.say("cat", f"/usr/lib/systemd/system/{SERVICE}")
        unit = re.sub(rf"(?m)^({_DROPPED}|Environment|Also)=.*\n", "", unit)
        unit = unit.replace("Type=notify", "Type=exec")
        options = " ".join(f"{name} {path}" for name, path in _SOCKETS.items())
        unit = re.sub(r"(?m)^ExecStart=(\S+)", rf"ExecStart=\1 keep {options}", unit)
        unit = unit.replace("ReadOnlyPaths=/run\n", "ReadWritePaths=/run\n")
        self.machine.write(f"/etc/systemd/system/{SERVICE}", unit)
        run("systemctl", "daemon-reload")
        run("mkdir", "-p", "/run/libvirt")
        run("systemctl", "start", SERVICE)

    def keeper_pid(self) -> int | None:
        """Returns `lockd keep`, the main process of the service."""
        return self.child_of(self.first_pid)
