"""Where a daemon is looked for, and what is said if it cannot be reached."""

import grp
import os
import pwd
import re
from pathlib import Path

import pytest

from ctl.processes import Lockctl, open_to_all
from daemon_process import DaemonProcess
from lockd import ConnectionLostError, connect
from lockd.client.paths import SYSTEM_SOCKET, unreachable, user_socket

GROUP = grp.getgrall()[1]

takes_root = pytest.mark.skipif(os.getuid() != 0, reason="acts as another user")


@takes_root
def test_who_is_not_in_the_group_of_the_socket_hears_which_to_join(
    daemon: DaemonProcess,
) -> None:
    open_to_all(daemon.socket)
    daemon.socket.chmod(0o660)
    os.chown(daemon.socket, 0, GROUP.gr_gid)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == (
        f"lockctl: lockd cannot be reached at {daemon.socket} (Permission denied): "
        f"join the group '{GROUP.gr_name}', which owns the socket, or ask root\n"
    )


@takes_root
def test_directory_that_may_not_be_passed_is_named(daemon: DaemonProcess) -> None:
    open_to_all(daemon.socket)
    daemon.directory.chmod(0o750)
    os.chown(daemon.directory, 0, GROUP.gr_gid)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert done.returncode == 77
    assert f"'{GROUP.gr_name}', which owns {daemon.directory}, or" in done.stderr


@takes_root
def test_socket_of_one_user_is_that_users_to_open(daemon: DaemonProcess) -> None:
    open_to_all(daemon.socket)
    daemon.socket.chmod(0o600)
    done = Lockctl(str(daemon.socket)).as_nobody("test", "job")
    assert done.returncode == 77
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert (
        f"the socket is open to user '{owner}' alone, so ask that user" in done.stderr
    )


def test_daemon_is_not_to_be_started_where_it_could_not_listen(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path, plain):
        with pytest.raises(ConnectionLostError, match="name the socket that it"):
            connect(path)
    with pytest.raises(ConnectionLostError, match="name the socket that it"):
        connect("/" + "x" * 200)


def test_daemon_that_is_away_is_to_be_started(daemon: DaemonProcess) -> None:
    daemon.kill()
    start = re.escape(f"start it with `lockd --socket {daemon.socket}`")
    with pytest.raises(ConnectionLostError, match=start):
        connect(daemon.socket)
    gone = FileNotFoundError(2, "No such file or directory")
    assert str(unreachable(SYSTEM_SOCKET, gone)).endswith("`systemctl start lockd`")
    assert str(unreachable(user_socket(), gone)).endswith("start it with `lockd`")


def test_empty_path_of_the_socket_is_wrong_usage() -> None:
    for command in (("run", "-n", "job", "--", "true"), ("list",)):
        done = Lockctl("")("--socket", "", *command)
        assert (done.returncode, done.stdout) == (64, "")
        assert "the path of the socket is empty" in done.stderr
