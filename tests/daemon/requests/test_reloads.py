"""The method `reload`, and what is in its way."""

import resource
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockd.daemon.requests import reloads
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


def test_reload_is_answered_when_the_configuration_counts(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.acquire("held")
        for name in "abcdefg":
            lockd.config.write_text(f"[lockspaces.{name}]\nkind = 'memory'\n")
            assert client.call("reload") is None
            client.acquire("a", lockspace=name)
        assert client.call("statistics")["upgrades"] == 7
        assert client.call("query", resource="held")["holder_count"] == 1


def test_reload_of_a_bad_configuration_says_what_is_wrong(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        lockd.config.write_text("kill_grace = 'soon'\n")
        refusal = client.refusal("reload")
        assert refusal.code == "unavailable"
        assert "kill_grace" in refusal.sentence
        assert client.call("statistics")["upgrades"] == 0
        (problem,) = client.call("statistics")["problems"]
        assert "kill_grace" in problem
        lockd.config.write_text("")
        assert client.call("reload") is None
        assert client.call("statistics")["problems"] == []


def test_each_of_many_who_ask_for_a_reload_is_answered_once(
    lockd: DaemonProcess,
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(WireClient(lockd.socket)) for _ in range(5)]
        asked = [(x, x.send("reload")) for x in clients for _ in range(2)]
        assert [x.result(msgid) for x, msgid in asked] == [None] * 10
        assert [x.kept for x in clients] == [[]] * 5


SCRIPT = """#!{interpreter}
from lockd.daemon.main import main
main()
"""


def test_script_is_replaced_by_what_its_first_line_names_by_then(
    tmp_path: Path,
) -> None:
    script, other = tmp_path / "lockd", tmp_path / "python-next"
    script.write_text(SCRIPT.format(interpreter=sys.executable))
    script.chmod(0o755)
    daemon = DaemonProcess(tmp_path, executed=True, program=[str(script)])
    daemon.start()
    try:
        with WireClient(daemon.socket) as client:
            client.acquire("a")
            pid = client.call("statistics")["pid"]
            process = Path(f"/proc/{pid}")
            other.write_text(f'#!/bin/sh\nexec {sys.executable} -X dev "$@"\n')
            other.chmod(0o755)
            for interpreter, options in (
                (sys.executable, b""),
                (f"{other}", b"-X\0dev\0"),
            ):
                script.write_text(SCRIPT.format(interpreter=interpreter))
                assert client.call("reload") is None
                command = (process / "cmdline").read_bytes()
                before, _, _ = command.partition(b"%s\0" % bytes(script))
                assert before == b"%s\0%s" % (sys.executable.encode(), options)
                # It is found by its name (pgrep).
                assert options or (process / "comm").read_text() == "lockd\n"
            script.write_text(SCRIPT.format(interpreter="/no/python"))
            assert "lockd" in client.refusal("reload").sentence
            assert client.call("query", resource="a")["holder_count"] == 1
    finally:
        daemon.close()


@pytest.mark.parametrize(
    ("changes", "is_stuck", "argv", "free", "why"),
    [
        (0, False, ["python", "x"], 36, None),
        (0, False, [sys.executable], 36, None),
        (1, False, [sys.executable], 36, "a file is being made or removed"),
        (0, True, [sys.executable], 36, "there is no memory to record"),
        (0, False, ["/no/python"], 36, "/no/python cannot be executed"),
        (0, False, [sys.executable], 35, "fewer than 36 descriptors are free"),
    ],
)
def test_what_is_in_the_way_of_another_program(
    changes: int,
    is_stuck: bool,
    argv: list[str],
    free: int,
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", argv)
    most = 1_000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    monkeypatch.setattr(reloads, "open_descriptors", lambda: most - free)
    found = reloads.hindrance(changes, is_stuck=is_stuck)
    assert found is None if why is None else found is not None and why in found
