"""The method `reload`."""

from contextlib import ExitStack

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
