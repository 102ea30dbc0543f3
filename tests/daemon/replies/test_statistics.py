import os

from lockd import __version__, compilation
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_waiters


def test_statistics_count_what_is_and_what_was(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client, WireClient(lockd.socket) as other:
        client.acquire("a")
        token = client.acquire("b")
        client.call("release", resource="b")
        other.refusal("acquire", resource="a", timeout=0)
        other.send("acquire", resource="a")
        wait_for_waiters(client, "a", 1)
        found = client.call("statistics")
        assert found.pop("uptime") > 0
        assert found.pop("unit") == client.call("list_sessions")["sessions"][0]["unit"]
        limits = found.pop("limits")
        assert limits["sessions"] == {"used": 2, "most": 4096, "uid": None}
        mine = {"used": 1, "most": 65536, "uid": os.getuid()}
        assert limits["locks_per_user"] == mine
        assert limits["descriptors"]["used"] > 0
        nothing = {"used": 0, "most": 536_870_912, "uid": None}
        assert limits["record_bytes"] == nothing
        assert found == {
            "version": __version__,
            "compiled": compilation.is_compiled(),
            "pid": lockd.pid,
            "kept": {
                "by": None,
                "locks": 0,
                "connections": 0,
                "in_flight": 0,
                "bytes": 0,
            },
            "epoch": 1,
            "upgrades": 0,
            "problems": [],
            "upgrade": {"ready": True, "why": None},
            "sessions": 2,
            "owners": 2,
            "resources": 1,
            "held": 1,
            "waiting": 1,
            "granted": 2,
            "refused": 1,
            "released": 1,
            "last_fencing_token": token["fencing_token"],
        }
