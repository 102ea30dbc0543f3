import os
from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.wire_client import NOBODY, WireClient, connected_as_nobody

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can connect as another user"
)


def test_user_who_reaches_the_socket_locks_in_memory(
    nobody: WireClient, client: WireClient
) -> None:
    nobody.acquire("a")
    (holder,) = client.call("query", resource="a")["holders"]
    assert holder["uid"] == NOBODY
    nobody.call("convert", resource="a", mode="shared")
    nobody.call("release", resource="a")


def test_user_who_may_not_write_to_the_socket_does_not_get_in(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    mode = daemon.socket.stat().st_mode & 0o777
    with pytest.raises(PermissionError), connected_as_nobody(daemon.socket, mode):
        pass


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("create_lockspace", {"name": "x", "kind": "memory"}),
        ("create_resource", {"lockspace": "default", "resource": "x"}),
        ("delete_resource", {"lockspace": "default", "resource": "x"}),
        ("disconnect", {"session": 1, "reason": "x"}),
    ],
)
def test_methods_of_admins_are_denied(
    method: str, params: dict[str, Any], nobody: WireClient
) -> None:
    refusal = nobody.refusal(method, **params)
    assert refusal.code == "denied"
    assert "uid 65534" in refusal.sentence


def test_lock_of_another_cannot_be_broken_or_released(
    nobody: WireClient, client: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    assert nobody.refusal("break", fencing_token=token, reason="x").code == "denied"
    assert nobody.refusal("release", fencing_token=token).code == "not_held"
    assert client.call("query", resource="a")["holder_count"] == 1


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("acquire", {}),
        ("convert", {"mode": "shared"}),
        ("release", {}),
        ("query", {}),
        ("check", {"fencing_token": 1}),
    ],
)
def test_direct_lockspace_is_not_there_for_others(
    method: str, params: dict[str, Any], nobody: WireClient, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    path.touch(mode=0o666)
    refusal = nobody.refusal(method, lockspace="direct", resource=str(path), **params)
    assert refusal.code == "denied"
    what = "see locks on" if method in ("query", "check") else "lock"
    assert refusal.sentence.startswith(
        f"uid 65534 may not {what} files by their path here: "
    )
    keys = {"query": "list", "check": "list", "convert": "share"}
    key = keys.get(method, "acquire")
    assert refusal.sentence.endswith(
        f"lockd.toml, under [lockspaces.direct], with allow_users.{key} = [65534]"
    )


def test_listing_and_watching_a_direct_lockspace_is_refused(nobody: WireClient) -> None:
    assert nobody.refusal("list", lockspace="direct").code == "denied"
    assert nobody.refusal("watch", lockspace="direct").code == "denied"


def test_paths_that_others_lock_are_not_shown(
    nobody: WireClient, client: WireClient, tmp_path: Path
) -> None:
    (tmp_path / "secret").touch()
    nobody.call("watch")
    client.acquire(str(tmp_path / "secret"), lockspace="direct")
    client.acquire("a")
    listed = nobody.call("list")["resources"]
    assert [found["resource"] for found in listed] == ["a"]
    assert nobody.notification("event")["resource"] == "a"
    assert nobody.kept == []


def test_other_user_may_see_what_is_for_all(nobody: WireClient) -> None:
    for method in ("statistics", "list", "list_sessions", "list_lockspaces", "watch"):
        nobody.call(method)


def test_daemon_of_a_user_obeys_that_user(tmp_path: Path) -> None:
    """Its own user is its admin, though not root."""
    daemon = DaemonProcess(tmp_path)
    directories = [tmp_path, *tmp_path.parents]
    for directory in directories[: directories.index(Path("/tmp"))]:
        directory.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    daemon.start(prefix=["setpriv", f"--reuid={NOBODY}", "--clear-groups"])
    try:
        with connected_as_nobody(daemon.socket) as owner:
            token = owner.acquire("a")["fencing_token"]
            owner.call("break", fencing_token=token, reason="x")
            own_file = tmp_path / "disk"
            own_file.touch()
            os.chown(own_file, NOBODY, NOBODY)
            owner.acquire(str(own_file), lockspace="direct")
            refusal = owner.refusal(
                "acquire", lockspace="direct", resource="/etc/shadow"
            )
            assert refusal.code == "denied"
    finally:
        daemon.close()
