import os
from collections.abc import Iterator

import pytest

from system.booted.machine import Machine

CONFIG = """
kill_grace = 0.2
[lockspaces.files]
kind = "directory"
path = "/var/lib/locks"
[lockspaces.killed]
kind = "memory"
on_disconnect = "kill"
"""


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with lockd installed, its sockets not yet started."""
    assert os.geteuid() == 0, "booting a machine takes root: run `make test` instead"
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.run("systemd-sysusers")
        machine.run("systemd-tmpfiles", "--create")
        machine.run("mkdir", "-m", "755", "/var/lib/locks")
        machine.run("useradd", "--create-home", "stranger")
        machine.run("useradd", "--create-home", "--groups", "lockd", "member")
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine with lockd's sockets listening and a configuration; clean later."""
    booted.write("/etc/lockd/conf.d/test.toml", CONFIG)
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "start", "lockd.socket", "lockd-admin.socket")
    yield booted
    units = ("lockd.socket", "lockd-admin.socket", "lockd.service")
    booted.run("systemctl", "stop", *units)
    booted.run("systemctl", "reset-failed")
    for place in ("/run/systemd/system", "/etc/lockd/conf.d"):
        booted.run("find", place, "-mindepth", "1", "-path", "*lockd*", "-delete")
    booted.run("systemctl", "daemon-reload")
