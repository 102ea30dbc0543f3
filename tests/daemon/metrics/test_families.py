"""What the daemon says of itself is true, well-formed, and harms nobody who locks."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import StartDaemon
from daemon.metrics.conftest import (
    fetched,
    metrics,
    needs_promtool,
    promtool,
)
from lockd import connect
from lockd.daemon.clients.limits import open_descriptors
from lockd.daemon.metrics.families import process_age
from lockd.protocol.codec import MAX_TEXT_BYTES
from lockd.protocol.methods import METHODS
from support.daemon_process import DaemonProcess
from support.exposition import Metrics
from support.places import DOCS
from support.service_manager import ServiceManager
from support.wire_client import (
    NOBODY,
    WireClient,
    connected_as_nobody,
    wait_for_waiters,
)

# What is said.


def test_client_takes_the_text_however_long_it_is(lockd: DaemonProcess) -> None:
    with connect(lockd.socket) as client:
        for number in range(20):
            client.create_lockspace(f"space{number}", "memory")
        text = client.metrics()
    assert len(text) > 2 * MAX_TEXT_BYTES
    assert text.endswith("# EOF\n")


def test_locks_and_queues_are_counted(lockd: DaemonProcess) -> None:
    with (
        WireClient(lockd.socket) as one,
        WireClient(lockd.socket) as two,
        WireClient(lockd.socket) as three,
    ):
        one.acquire("a")
        one.acquire("b", mode="shared")
        one.acquire("b", mode="shared")
        two.acquire("b", mode="shared")
        waiting = two.send("acquire", resource="a")
        leaving = three.send("acquire", resources=["a", "c"])
        wait_for_waiters(one, "a", 2)
        assert two.refusal("acquire", resource="a", timeout=0).code == "already_held"
        found = metrics(one)
        here = {"lockspace": "default"}
        assert found("lockd_held", **here) == 3
        assert found("lockd_grants_total", **here) == 3
        assert found("lockd_wait_seconds_bucket", **here, le="0.001") == 3
        assert found("lockd_waiting", **here) == 2
        assert found("lockd_longest_wait_seconds", **here) > 0
        assert found("lockd_refusals_total", code="already_held") == 1
        assert found("lockd_requests_total", method="acquire") == 7
        assert found("lockd_requests_total", method="metrics") == 1
        assert found("lockd_sessions", socket="client") == 3
        assert found("lockd_limit", limit="sessions") == 4096
        assert found("lockd_limit_used", limit="sessions") == 3
        # Who waits for several is counted with all of them.
        assert found("lockd_limit_used", limit="locks_per_user") == 3 + 2
        assert found("lockd_limit_used", limit="record_bytes") == 0
        one.call("release", resource="a")
        two.result(waiting)
        two.call("convert", resource="a", mode="shared")
        three.call("cancel", request=leaving)
        three.refused(leaving)
        two.close()
        while (found := metrics(one))("lockd_sessions", socket="client") != 2:
            pass
        assert found("lockd_held", **here) == 1
        assert found("lockd_waiting", **here) == 0
        assert found("lockd_longest_wait_seconds", **here) == 0
        assert found("lockd_conversions_total", **here) == 1
        assert found("lockd_ends_total", **here, cause="released") == 1
        assert found("lockd_ends_total", **here, cause="disconnected") == 2
        assert found("lockd_hold_seconds_count", **here) == 3
        assert found("lockd_refusals_total", code="cancelled") == 1
        assert found("lockd_wait_seconds_sum", **here) > 0
        assert found("lockd_turn_seconds_count") > 10


def test_every_kind_of_error_is_counted_wherever_it_arises(
    lockd: DaemonProcess,
) -> None:
    with WireClient(lockd.socket) as client:
        client.send_message([0, 1, "no such method", []])
        client.send_message([0, 2, "acquire", [{"colour": 1}]])
        client.send_message("nonsense")
        for number in (1, 2, None):
            client.refused(number)
        client.refusal("acquire", resource="x", lockspace="nowhere")
        client.refusal("release", resource="x")
        with WireClient(lockd.socket) as broken:
            broken.send_bytes(b"\xc1")
            assert broken.refused(None).code == "protocol"
        found = metrics(client).labelled("lockd_refusals_total", "code")
        assert {code: n for code, n in found.items() if n} == {
            "unknown_method": 1,
            "invalid": 2,
            "not_found": 1,
            "not_held": 1,
            "protocol": 1,
        }


def test_labels_are_the_same_whatever_clients_do(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        before = metrics(client)
        for number in range(300):
            client.acquire(f"a{number}", label=f"l{number}", reason=f"r{number}")
            client.refusal(f"m{number}")
        assert metrics(client).values.keys() == before.values.keys()
        assert set(before.labelled("lockd_requests_total", "method")) == set(METHODS)


def test_lock_files_and_descriptors_are_counted(start_daemon: StartDaemon) -> None:
    lockd = start_daemon()
    directory = lockd.directory / "locks"
    directory.mkdir(mode=0o755)
    with WireClient(lockd.socket) as client:
        client.call(
            *("create_lockspace",),
            name='d"x',
            kind="directory",
            path=str(directory),
        )
        before = metrics(client)
        for number in range(20):
            client.acquire(f"{number}", lockspace='d"x')
        after = metrics(client)
        fds = Path(f"/proc/{lockd.pid}/fd")
        assert after("process_open_fds") == len(list(fds.iterdir()))
        assert after("process_open_fds") - before("process_open_fds") == 20
        assert after("lockd_anchors", lockspace='d"x') == 20
        assert after("lockd_held", lockspace='d"x') == 20


def test_descriptors_are_counted_or_bounded_by_the_lowest_free_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pytest itself needs the real one to tell of a failure.
    with monkeypatch.context() as patch:
        unknown = os.stat_result([0] * 10)
        patch.setattr("lockd.daemon.clients.limits.os.stat", lambda path: unknown)
        lowest = open_descriptors()
    with socket.socket() as sock:
        assert sock.fileno() == lowest


@pytest.mark.skipif(not shutil.which("ps"), reason="takes ps (Debian: procps)")
def test_start_of_the_process_is_the_kernels() -> None:
    ps = ["ps", "-o", "etimes=", "-p", str(os.getpid())]
    before = process_age()
    said = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    assert before - 2 <= int(said) <= process_age() + 2


def test_only_admins_are_told(lockd: DaemonProcess) -> None:
    with connected_as_nobody(lockd.socket) as nobody:
        refusal = nobody.refusal("metrics")
        assert refusal.code == "denied"
        assert str(NOBODY) in refusal.sentence


def test_ended_processes_are_counted(start_daemon: StartDaemon) -> None:
    lockd = start_daemon(
        'kill_grace = 0.01\n[lockspaces.default]\non_disconnect="kill"'
    )
    script = "trap '' TERM; echo ready; while :; do read x || sleep 0.01; done"
    with (
        subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE) as stubborn,
        WireClient(lockd.socket) as admin,
        WireClient(lockd.socket) as client,
    ):
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        owner = {"name": "stubborn", "pid": stubborn.pid}
        client.call("register", owner=owner)
        token = client.acquire("a")["fencing_token"]
        admin.call("break", fencing_token=token, reason="test")
        stubborn.wait(20)
        while metrics(admin)("lockd_fencings_outstanding"):
            pass
        found = metrics(admin)
        assert found("lockd_fencings_total") == 1
        assert found("lockd_fencing_kills_total") == 1
        assert found("lockd_ends_total", lockspace="default", cause="broken") == 1


# What goes on, and what begins anew.


def test_upgrade_begins_counting_anew_and_says_since_when(
    start_daemon: StartDaemon,
) -> None:
    lockd = start_daemon("[lockspaces.default]\nslow_wait = 0.001")
    with WireClient(lockd.socket) as one, WireClient(lockd.socket) as two:
        one.acquire("a")
        two.send("acquire", resource="a")
        lockd.wait_for_line("has waited")
        before = metrics(one)
        assert before("lockd_slow_waits_total", lockspace="default") == 1
        lockd.upgrade()
        after = metrics(one)
        assert after("lockd_held", lockspace="default") == 1
        assert after("lockd_waiting", lockspace="default") == 1
        assert after("lockd_grants_total", lockspace="default") == 0
        assert after("lockd_handovers_total", kind="upgrade") == 1
        assert 0 < after("lockd_handover_seconds") < 20
        started = "process_start_time_seconds"
        assert after(started) == pytest.approx(before(started), abs=1)
        since = "lockd_start_time_seconds"
        assert after(since) > before(since)
        assert after("lockd_epoch") == before("lockd_epoch")
        # It was told of before; its end is told by the one that sees it.
        one.call("release", resource="a")
        line = lockd.wait_for_line("long wait")
        assert "granted" in line
        assert not [x for x in lockd.said[-4:] if "has waited" in x]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path)
    yield manager
    manager.close()


def test_revivals_are_counted_over_all_of_them(manager: ServiceManager) -> None:
    manager.start()
    with WireClient(manager.socket) as client:
        client.acquire("a")
        for count in (1, 2):
            manager.kill()
            manager.start()
            found = metrics(client)
            assert found("lockd_handovers_total", kind="revival") == count
        assert found("lockd_handovers_total", kind="upgrade") == 0
        assert 0 < found("lockd_handover_seconds") < 20
        assert found("lockd_survives_crash") == 1
        assert found("lockd_kept_bytes") > 0
        used = found("lockd_limit_used", limit="record_bytes")
        assert found("lockd_kept_bytes") < used < 2**24
        assert found("lockd_kept_descriptors") > 0
        assert found("lockd_held", lockspace="default") == 1
        client.call("release", resource="a")
        assert metrics(client)("lockd_held", lockspace="default") == 0


def test_socket_of_the_manager_gives_metrics_and_survives(
    manager: ServiceManager, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}/metrics"
        manager.listeners["metrics"] = door
        manager.start()
        with WireClient(manager.socket) as client:
            client.acquire("a")
            for _ in range(2):
                assert fetched(url)("lockd_held", lockspace="default") == 1
                manager.kill()
                manager.start()
        manager.upgrade()
        assert fetched(url)("lockd_handovers_total", kind="upgrade") == 1


# The page and what is beside it.


def families(found: Metrics) -> set[str]:
    return {name for name, _ in found.values}


def documented() -> set[str]:
    rows = re.findall(r"^\| (`lockd_.*?|`process_.*?) \|", PAGE, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


PAGE = (DOCS / "reference/metrics.md").read_text()


def test_page_has_every_metric_and_no_other(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        found = metrics(client)
    names = {
        name + {"counter": "_total", "info": "_info"}.get(kind, "")
        for name, kind in found.kinds.items()
    }
    assert documented() == names
    # The only one that is not always there.
    missing = "lockd_handover_seconds"
    for name in (
        DOCS / "how-to/lockd-dashboard.json",
        DOCS / "how-to/lockd-alerts.yml",
    ):
        used = set(re.findall(r"\b((?:lockd|process)_\w+)\b", name.read_text()))
        assert used <= families(found) | {missing}, used - families(found)


def test_dashboard_is_one_and_its_panels_do_not_overlap() -> None:
    dashboard = json.loads((DOCS / "how-to/lockd-dashboard.json").read_text())
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], sum_of(panel, "x", "w"))
        for y in range(panel["gridPos"]["y"], sum_of(panel, "y", "h"))
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(
        dashboard["panels"]
    )


def sum_of(panel: dict[str, dict[str, int]], place: str, size: str) -> int:
    return panel["gridPos"][place] + panel["gridPos"][size]


def expressions() -> list[str]:
    dashboard = json.loads((DOCS / "how-to/lockd-dashboard.json").read_text())
    found = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    return [x.replace("$__rate_interval", "1m") for x in found]


@needs_promtool
def test_rules_and_queries_please_promtool(tmp_path: Path) -> None:
    promtool("check", "rules", str(DOCS / "how-to/lockd-alerts.yml"))
    # It knows no dashboards: each query is written as a rule.
    rules = [
        {"record": f"q:{number}", "expr": query}
        for number, query in enumerate(expressions())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(path))


ALERT_TESTS = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'lockd_longest_wait_seconds{{lockspace="d",instance="h"}}', values: '0 0 900+60x20'}}
      - {{series: 'lockd_epoch{{instance="h"}}', values: '1x15 2x15'}}
      - {{series: 'lockd_limit_used{{limit="sessions",instance="h"}}', values: '10x10 95x20'}}
      - {{series: 'lockd_limit{{limit="sessions",instance="h"}}', values: '100x30'}}
    alert_rule_test:
      - {{alertname: LockdWaitIsLong, eval_time: 2m, exp_alerts: []}}
      - alertname: LockdWaitIsLong
        eval_time: 5m
        exp_alerts:
          - exp_labels: {{severity: warning, lockspace: d, instance: h}}
            exp_annotations:
              summary: somebody has waited 18m 0s for a lock in d on h
              description: "`journalctl -u lockd LOCKD_EVENT=wait` shows the waiter, the lock and the holder."
      - {{alertname: LockdLocksWereLost, eval_time: 10m, exp_alerts: []}}
      - alertname: LockdLocksWereLost
        eval_time: 17m
        exp_alerts:
          - exp_labels: {{severity: critical, instance: h}}
            exp_annotations:
              summary: lockd on h has restarted and lost all locks
              description: "The cause is a stop, a reboot, or a crash without a service manager that keeps the locks."
      - {{alertname: LockdLimitIsNear, eval_time: 10m, exp_alerts: []}}
      - alertname: LockdLimitIsNear
        eval_time: 20m
        exp_alerts:
          - exp_labels: {{severity: warning, limit: sessions, instance: h}}
            exp_annotations:
              summary: limits.sessions of lockd on h is 95% full
              description: "lockd rejects requests at a limit: see `lockctl sessions`; raise the key in lockd.toml and reload."
"""  # noqa: E501 - sentences


@needs_promtool
def test_alerts_come_when_they_should(tmp_path: Path) -> None:
    path = tmp_path / "test.yml"
    path.write_text(ALERT_TESTS.format(rules=DOCS / "how-to/lockd-alerts.yml"))
    promtool("test", "rules", str(path))
