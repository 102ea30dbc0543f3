import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.processes import Lockctl
from lockd import Client
from support.daemon_process import DaemonProcess
from support.service_manager import ServiceManager


def test_configuration_counts_when_reload_has_ended(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    client.acquire("held")
    lockd.config.write_text("[lockspaces.new]\nkind = 'memory'\n")
    done = lockctl("reload")
    assert done.returncode == 0
    assert "has reloaded" in done.stderr
    assert "new" in lockctl("spaces").stdout
    assert client.query("held")["holder_count"] == 1


def test_bad_configuration_fails_the_reload_with_what_is_wrong(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    lockd.config.write_text("kill_grace = 'soon'\n")
    done = lockctl("reload")
    assert done.returncode == 69
    assert "kill_grace" in done.stderr
    assert "\nproblem\t" in lockctl("status").stdout


def test_reload_ends_with_a_daemon_whose_connections_outlive_it(
    tmp_path: Path, lockctl: Lockctl
) -> None:
    """Else the service manager, which waits for it, starts no other daemon."""
    manager = ServiceManager(tmp_path)
    try:
        manager.start()
        # It does not answer any more, nor is the connection closed when it dies.
        os.kill(manager.pid, signal.SIGSTOP)
        with subprocess.Popen(
            [sys.executable, "-m", "lockd.ctl.main", "reload"],
            env=lockctl.env
            | {"MAINPID": str(manager.pid), "LOCKD_SOCKET": str(manager.admin_socket)},
            stderr=subprocess.PIPE,
            text=True,
        ) as reload:
            manager.kill()
            _, said = reload.communicate(timeout=30)
        assert reload.returncode == 69
        assert "exited during the reload" in said
    finally:
        manager.close()


@pytest.mark.parametrize("command", ["", "-F"])
def test_empty_command_is_refused_in_words(lockctl: Lockctl, command: str) -> None:
    done = lockctl("run", *filter(None, [command]), "job", "--", "")
    assert done.returncode == 64
    assert "the command is empty" in done.stderr


@pytest.mark.parametrize("option", [[], ["--yes"]])
def test_stop_of_a_daemon_that_systemd_does_not_run_says_how(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client, option: list[str]
) -> None:
    grant = client.acquire("a")
    done = lockctl("stop", *option)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"`kill {lockd.pid}` stops it" in done.stderr
    assert client.check("a", grant.fencing_token)
