"""Metrics through the socket of systemd, and slow locks in the real journal."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from support.exposition import Metrics, read
from system.booted.machine import Machine
from system.booted.test_service import HOLD, drop_in, held, main_pid, released

SLOW = """
[lockspaces.default]
slow_wait = 0.01
[lockspaces.jobs]
kind = "memory"
slow_hold = 0.01
"""

FETCH = """
import sys, urllib.request
with urllib.request.urlopen("http://127.0.0.1:9469/metrics", timeout=30) as answer:
    sys.stdout.write(answer.read().decode())
"""

FETCH_FROM_PATH = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: lockd\\r\\n\\r\\n")
    while data := sock.recv(65536):
        sys.stdout.write(data.decode())
"""

REASON = "two\nlines: PRIORITY=0"

HOLD_WITH_REASON = """
import lockd, sys
with lockd.connect() as client:
    client.acquire("job", lockspace="jobs", reason=sys.argv[1])
    print("held", flush=True)
    sys.stdin.readline()
    client.release("job", lockspace="jobs")
    print("released", flush=True)
"""


@pytest.fixture
def served(machine: Machine) -> Iterator[Machine]:
    """The machine with the metrics socket enabled, as the page has it."""
    machine.run("systemctl", "enable", "--now", "lockd-metrics.socket")
    yield machine
    machine.run("systemctl", "stop", "lockd.service")
    machine.run("systemctl", "disable", "--now", "lockd-metrics.socket")


def fetched(machine: Machine) -> Metrics:
    return read(machine.python(FETCH, user="stranger"))


def test_who_asks_for_metrics_starts_the_daemon_and_anybody_may(
    served: Machine,
) -> None:
    assert served.show("lockd.service", "ActiveState") == "inactive"
    found = fetched(served)
    assert found("lockd_survives_crash") == 1
    assert found("lockd_kept_descriptors") >= 0
    # The daemon itself has no network.
    assert served.show("lockd.service", "PrivateNetwork") == "yes"
    assert served.show("lockd.service", "RestrictAddressFamilies") == "AF_UNIX"


def test_restart_gives_a_running_daemon_the_socket_and_loses_nothing(
    machine: Machine,
) -> None:
    with held(machine, "default", "a") as client:
        before = main_pid(machine)
        machine.run("systemctl", "enable", "lockd-metrics.socket")
        try:
            machine.run("systemctl", "restart", "lockd.service")
            assert main_pid(machine) != before
            assert fetched(machine)("lockd_held", lockspace="default") == 1
            machine.run("systemctl", "kill", "--signal=KILL", "lockd.service")
            found = fetched(machine)
            assert found("lockd_held", lockspace="default") == 1
            assert found("lockd_handovers_total", kind="revival") == 2
            assert released(client)
        finally:
            machine.run("systemctl", "disable", "--now", "lockd-metrics.socket")


def test_path_in_place_of_the_address_is_for_those_who_may_write_to_it(
    machine: Machine,
) -> None:
    drop_in(
        machine,
        "lockd-metrics.socket",
        "[Socket]\nListenStream=\nListenStream=/run/lockd/metrics.sock\n"
        "SocketMode=0660\nSocketGroup=lockd\n",
    )
    machine.run("systemctl", "start", "lockd-metrics.socket")
    try:
        path = "/run/lockd/metrics.sock"
        said = machine.python(FETCH_FROM_PATH, path, user="member")
        head, _, text = said.partition("\n\n")
        assert head.startswith("HTTP/1.1 200 OK\n")
        assert read(text)("lockd_sessions", socket="client") == 0
        stranger = machine.script(FETCH_FROM_PATH, path)
        done = machine.run(*stranger, user="stranger", check=False)
        assert "PermissionError" in done.stderr
    finally:
        machine.run("systemctl", "stop", "lockd.service", "lockd-metrics.socket")


def test_own_listener_is_refused_by_the_sandbox_and_costs_nothing(
    machine: Machine,
) -> None:
    machine.write(
        "/etc/lockd/conf.d/test.toml", '[metrics]\nlisten = "127.0.0.1:9470"\n'
    )
    with held(machine, "default", "a") as client:
        while "no metrics at" not in (said := machine.journal("lockd.service")):
            pass
        assert "Address family not supported" in said
        while "lockd-metrics" not in machine.show("lockd.service", "StatusText"):
            pass
        assert released(client)


def test_file_for_node_exporter_can_be_read_by_others(machine: Machine) -> None:
    path = "/var/lib/node/lockd.prom"
    machine.run("mkdir", "-p", "/var/lib/node")
    machine.write("/etc/lockd/conf.d/test.toml", f'[metrics]\ntextfile = "{path}"\n')
    with held(machine, "default", "a"):
        while machine.run("test", "-e", path, check=False).returncode:
            pass
        assert "lockd_held" in machine.run("cat", path, user="stranger").stdout


def entries(machine: Machine, *matches: str) -> list[dict[str, str]]:
    """Returns the entries of the journal with certain fields."""
    machine.run("journalctl", "--sync")
    said = machine.say("journalctl", "-u", "lockd", "-o", "json", "--all", *matches)
    return [json.loads(line) for line in said.splitlines()]


def wait_for_entry(machine: Machine, *matches: str) -> dict[str, str]:
    while not (found := entries(machine, *matches)):
        pass
    return found[-1]


def test_slow_wait_is_in_the_journal_with_its_fields(machine: Machine) -> None:
    machine.write("/etc/lockd/conf.d/test.toml", SLOW)
    with held(machine, "default", "slow") as holder:
        waiter = subprocess.Popen(
            machine.command(*machine.script(HOLD, "default", "slow")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with waiter:
            entry = wait_for_entry(machine, "LOCKD_EVENT=wait", "LOCKD_RESOURCE=slow")
            assert entry["_SYSTEMD_UNIT"] == "lockd.service"
            assert entry["_PID"] == main_pid(machine)
            assert entry["SYSLOG_IDENTIFIER"] == "lockd"
            assert entry["PRIORITY"] == "4"
            assert entry["LOCKD_LOCKSPACE"] == "default"
            assert entry["LOCKD_OWNER_UID"] == "0"
            command = machine.say("cat", f"/proc/{entry['LOCKD_OWNER_PID']}/cmdline")
            assert "default" in command
            assert entry["LOCKD_OWNER_PID"] != entry["LOCKD_HOLDER_PID"]
            assert int(entry["LOCKD_WAITED_USEC"]) >= 10_000
            assert "has waited" in entry["MESSAGE"]
            assert released(holder)
            ended = wait_for_entry(machine, "LOCKD_EVENT=wait ended")
            assert ended["LOCKD_OUTCOME"] == "granted"
            assert ended["LOCKD_OWNER_PID"] == entry["LOCKD_OWNER_PID"]
            assert len(entries(machine, "LOCKD_EVENT=wait")) == 1
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == "held\n"
            assert released(waiter)


def test_value_with_newlines_is_one_field(machine: Machine) -> None:
    machine.write("/etc/lockd/conf.d/test.toml", SLOW)
    with subprocess.Popen(
        machine.command(*machine.script(HOLD_WITH_REASON, REASON)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        entry = wait_for_entry(machine, "LOCKD_EVENT=hold", "LOCKD_RESOURCE=job")
        assert entry["LOCKD_REASON"] == REASON
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert entry["PRIORITY"] == "4"
        assert released(holder)
