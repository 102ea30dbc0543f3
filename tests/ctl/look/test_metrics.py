"""`lockctl metrics`, for admins and their scripts."""

from ctl.processes import Lockctl
from exposition import read
from lockd import Client


def test_metrics_are_printed_as_they_are(lockctl: Lockctl, client: Client) -> None:
    client.acquire("a")
    found = read(lockctl("metrics").stdout)
    assert found("lockd_held", lockspace="default") == 1
    assert read(client.metrics())("lockd_sessions", socket="client") == 1
