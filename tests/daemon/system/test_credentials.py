import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from lockd import procs
from lockd.daemon.system import credentials as c
from support.processes import idle
from support.rights import needs_root

NO_PROCESS = 2**22 + 1
"""Beyond the greatest pid_max (proc(5))."""


def is_dead(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def test_peer_is_the_process_that_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert c.peer_credentials(ours) == (os.getpid(), os.getuid(), os.getgid())
        pidfd = c.open_peer_pidfd(ours, os.getpid())
    assert pidfd is not None
    assert not is_dead(pidfd)
    os.close(pidfd)


@needs_root
def test_peer_may_have_very_many_groups() -> None:
    groups = frozenset(range(1_000_000, 1_003_000))
    before = os.getgroups()
    os.setgroups(list(groups))
    try:
        ours, theirs = socket.socketpair()
    finally:
        os.setgroups(before)
    with ours, theirs, idle(extra_groups=groups) as many:
        # More than getsockopt(2) gives us: what /proc says of the process.
        assert frozenset(c._peer_groups(ours, many.pid)) == groups


@pytest.mark.interpreted
def test_peer_is_found_by_its_pid_on_an_older_kernel(
    monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(c, "SO_PEERPIDFD", 9999)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pidfd = c.open_peer_pidfd(ours, process.pid)
        assert c.open_peer_pidfd(ours, NO_PROCESS) is None
    assert pidfd is not None
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    process.wait()
    assert is_dead(pidfd)
    os.close(pidfd)


def test_process_is_described(process: subprocess.Popen[bytes]) -> None:
    assert procs.command_of(process.pid) == "cat"
    assert procs.name_of(process.pid) == "cat"
    assert procs.uid_of(process.pid) == os.getuid()
    assert not c.is_in_other_namespace(process.pid)


@pytest.mark.parametrize("pid", [0, NO_PROCESS])
def test_nothing_is_known_of_a_process_that_is_not_there(pid: int) -> None:
    assert procs.name_of(pid) == "unknown"
    assert procs.command_of(pid) is None
    assert procs.uid_of(pid) is None
    assert procs.unit_of(pid) is None
    assert c.is_in_other_namespace(pid)
    assert c.open_pidfd(pid) is None


def test_command_line_cannot_forge_a_line() -> None:
    forged = "\n\x1b[2Jroot: all is well"
    script = "print(input(), flush=True); input()"
    with idle(sys.executable, "-c", script, forged + "x" * 5000) as process:
        shown = procs.command_of(process.pid)
    assert shown is not None
    assert "all is well" in shown
    assert shown.isprintable()
    assert len(shown) <= 256


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/cron.service\n", "cron.service"),
        ("0::/user.slice/user@0.service/app.slice/x.scope/deep\n", "x.scope"),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("4:memory:/system.slice/a.service\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_unit_is_the_innermost_one(
    cgroup: str, unit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procs, "read", lambda path: cgroup)
    assert procs.unit_of(1) == unit
