"""What is kept from others in what everybody may ask."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.processes import idle
from support.wire_client import NOBODY, WireClient, connected_as_nobody


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
    with idle("sh", "-c", "read x; echo; read x", *words) as process:
        yield process


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


def test_who_held_a_lock_last_is_hidden_from_those_who_may_not_list(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(
        "[lockspaces.blind]\nkind = 'memory'\n"
        "allow_users = {acquire = ['*'], share = ['*'], list = []}\n"
        "allow_groups.list = []\n"
    )
    ask = {"lockspace": "blind", "resource": "a"}
    with WireClient(daemon.socket) as admin:
        admin.call("acquire", **ask)
        admin.call("release", **ask, outcome="failed")
        with connected_as_nobody(daemon.socket) as nobody:
            previous = nobody.call("acquire", **ask)["grant"]["previous"]
    assert previous.pop("ago") >= 0
    assert previous == {
        "ended": "released",
        "outcome": "failed",
        **dict.fromkeys(("name", "pid", "fencing_token")),
    }
