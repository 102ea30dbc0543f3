"""What a process is called is what it was called a moment ago."""

from daemon.conftest import StartChild
from daemon.replies.conftest import listed
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient


def test_command_of_a_listed_process_is_not_older_than_two_seconds(
    lockd: DaemonProcess, start_child: StartChild
) -> None:
    """`query` says what runs now, `list` what ran a moment ago."""
    child = start_child(
        lockd,
        "c = connect(); c.acquire('a'); c.socket.set_inheritable(True); ready()\n"
        "sys.stdin.readline(); os.execvp('sleep', ['sleep', '1000'])",
    )
    with WireClient(lockd.socket) as client:
        (found,) = listed(client)
        assert "python" in found["holders"][0]["command"]
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        while client.call("query", resource="a")["holders"][0]["command"] != (
            "sleep 1000"
        ):
            pass
        while listed(client)[0]["holders"][0]["command"] != "sleep 1000":
            pass
