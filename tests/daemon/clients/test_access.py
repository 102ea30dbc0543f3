import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from conftest import StartDaemon
from daemon_process import DaemonProcess
from wire_client import NOBODY, WireClient, connected_as_nobody

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can connect as another user"
)


@pytest.fixture(scope="module")
def nobodys(common: DaemonProcess) -> Path:
    return common.socket


@pytest.fixture
def nobody(nobodys: Path, connect: Callable[[], WireClient]) -> Iterator[WireClient]:
    """A client of uid 65534."""
    connect()
    with connected_as_nobody(nobodys) as client:
        yield client


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
    assert refusal.code == "not_found"
    assert refusal.sentence.startswith(
        "uid 65534 may not lock files by their path here: "
    )


def test_listing_and_watching_a_direct_lockspace_is_refused(nobody: WireClient) -> None:
    assert nobody.refusal("list", lockspace="direct").code == "not_found"
    assert nobody.refusal("watch", lockspace="direct").code == "not_found"


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


# What is kept from others in what everybody may ask.


@pytest.fixture
def guarded(start_daemon: StartDaemon) -> DaemonProcess:
    """A daemon with a lockspace that is hidden, and one whose details are."""
    return start_daemon(
        "[lockspaces.secret]\nkind = 'memory'\n"
        "allow_users = {acquire = [], share = [], list = []}\n"
        "[lockspaces.open]\nkind = 'memory'\n"
        "[lockspaces.told]\nkind = 'memory'\nallow_users.details = ['*']\n"
        f"[lockspaces.ward]\nkind = 'memory'\nallow_users.break = [{NOBODY}]\n"
        "allow_groups = {acquire = [], share = [], list = []}\n"
    )


@pytest.fixture
def talkative(guarded: DaemonProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose arguments tell a reason, and the name of a hidden lockspace."""
    words = ["sleep", "1000.0", "--", "--reason=nightly", "--lockspace=secret"]
    with subprocess.Popen(["sh", "-c", "read x", *words], stdin=PIPE) as process:
        yield process
        process.kill()


def commands_in(answer: Any) -> list[str]:
    """Returns each `command` in an answer."""
    if isinstance(answer, list):
        return [x for each in answer for x in commands_in(each)]
    if not isinstance(answer, dict):
        return []
    own = [answer["command"]] if isinstance(answer.get("command"), str) else []
    return own + [x for each in answer.values() for x in commands_in(each)]


def test_arguments_of_others_are_details(
    guarded: DaemonProcess, talkative: subprocess.Popen[bytes]
) -> None:
    with WireClient(guarded.socket) as admin:
        admin.call("register", owner={"name": "x", "pid": talkative.pid})
        for space in ("open", "told", "ward"):
            admin.acquire("a", lockspace=space)
        with connected_as_nobody(guarded.socket) as nobody:
            asked: list[tuple[str, dict[str, Any]]] = [
                ("list", {"lockspace": "open"}),
                ("query", {"lockspace": "open", "resource": "a"}),
                ("list", {"lockspace": "ward"}),
                ("list_sessions", {}),
            ]
            for method, params in asked:
                answer = nobody.call(method, **params)
                assert "sh" in commands_in(answer), method
                assert not [x for x in commands_in(answer) if "nightly" in x], method
                whole = admin.call(method, **params)
                assert [x for x in commands_in(whole) if "nightly" in x], method
            nobody.call("hello", protocol=1, client="test")
            refused = nobody.refusal(
                "acquire", lockspace="open", resource="a", timeout=0
            )
            assert commands_in(refused.facts) == ["sh"]
            told = nobody.call("list", lockspace="told")
            assert "--reason=nightly" in commands_in(told)[0]


def test_who_may_break_sees_whose_lock_it_is(guarded: DaemonProcess) -> None:
    with WireClient(guarded.socket) as admin:
        token = admin.acquire("a", lockspace="ward")["fencing_token"]
        with connected_as_nobody(guarded.socket) as nobody:
            (found,) = nobody.call("list", fencing_token=token)["resources"]
            assert found["holders"][0]["fencing_token"] == token
            assert nobody.refusal("acquire", lockspace="ward", resource="b").code == (
                "denied"
            )
            nobody.call("break", fencing_token=token, reason="it hangs")
        assert admin.notification("lost")["cause"] == "broken"


def test_lock_under_a_name_that_is_hidden_is_not_named(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "a").touch()
    daemon = start_daemon(
        f"[lockspaces.files]\nkind = 'directory'\npath = '{directory}'\n"
        "allow_users.acquire = ['*']\n"
    )
    with WireClient(daemon.socket) as admin:
        admin.call("hello", protocol=1, client="test")
        admin.acquire(str(directory / "a"), lockspace="direct")
        ask = {"lockspace": "files", "resource": "a"}
        whole = admin.refusal("acquire", **ask, timeout=0)
        assert whole.facts is not None
        assert whole.facts["outside"]["resource"] == str(directory / "a")
        assert f"under the name '{directory / 'a'}'" in whole.sentence
        with connected_as_nobody(daemon.socket) as nobody:
            nobody.call("hello", protocol=1, client="test")
            for timeout in (0, 0.01):
                refused = nobody.refusal("acquire", **ask, timeout=timeout)
                assert "outside" not in (refused.facts or {})
                assert f"the name '{directory}" not in refused.sentence
                assert "outside lockd" not in refused.sentence
