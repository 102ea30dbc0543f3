"""What lockctl asks systemd: the main process of a unit, and who runs the daemon."""

import os
import subprocess
from pathlib import Path

from ctl.processes import Lockctl
from lockd import Client
from support.daemon_process import DaemonProcess


def test_acquire_for_a_unit_is_for_its_main_process(
    lockctl: Lockctl,
    client: Client,
    process: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'"show --value --property=MainPID -- db.service") echo {process.pid};;\n'
        "*) echo 0;;\nesac\n"
    )
    systemctl.chmod(0o755)
    lockctl.env["PATH"] = f"{tmp_path}:{lockctl.env['PATH']}"
    done = lockctl("acquire", "job", "--owner-unit", "db.service")
    assert done.returncode == 0, done.stderr
    (holder,) = client.query("job")["holders"]
    assert (holder["name"], holder["pid"]) == ("db.service", process.pid)
    done = lockctl("acquire", "other", "--owner-unit", "idle.service")
    assert done.returncode == 64
    assert "unit 'idle.service' has no main process" in done.stderr
    lockctl.env["PATH"] = "/nowhere"
    done = lockctl("acquire", "other", "--owner-unit", "db.service")
    assert done.returncode == 64
    assert "systemctl is not installed" in done.stderr


def test_stop_works_without_systemctl(lockctl: Lockctl, lockd: DaemonProcess) -> None:
    lockctl.env["PATH"] = os.devnull
    assert f"`kill {lockd.pid}` stops it" in lockctl("stop").stderr
