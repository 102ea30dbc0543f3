"""`lockctl status` and `lockctl stop`, with daemons that systemd does not run.

What systemd stops is tried in `system/booted/test_stop`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from pwd import getpwuid

import pytest

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client, __version__, connect
from lockd.daemon.main import MANNER
from support.daemon_process import DaemonProcess
from support.exposition import read
from support.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path)
    manager.start()
    yield manager
    manager.close()


def facts_of(lockctl: Lockctl) -> dict[str, str]:
    lines = lockctl("status").stdout.splitlines()
    return dict(line.split("\t") for line in lines)


def test_status_says_how_the_daemon_is(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    client.acquire("a")
    facts = facts_of(lockctl)
    assert list(facts)[:12] == [
        *("socket", "version", "pid", "unit", "uptime", "epoch", "live upgrades"),
        *("sessions", "held", "holders", "waiting", "survives a crash"),
    ]
    assert facts["socket"] == str(lockd.socket)
    assert facts["version"] == f"{__version__} ({MANNER})"
    assert facts["pid"] == str(lockd.pid)
    assert facts["epoch"] == "1"
    assert facts["live upgrades"] == "0 so far; ready for another"
    assert facts["limit: sessions"] == "2 of 4096 (< 1 %)"
    user = getpwuid(os.getuid()).pw_name
    assert facts["limit: locks of one user"] == f"1 of 65536 (< 1 %, {user})"
    assert facts["limit: bytes of text of one user"] == "0 of 16777216 (0 %)"
    assert facts["limit: bytes of records"] == "0 of 536870912 (0 %)"
    assert facts["lockspace default"] == "memory, 1 held"
    assert facts["lockspace direct"] == "direct, 0 held"
    assert (facts["sessions"], facts["held"], facts["waiting"]) == ("2", "1", "0")
    assert facts["survives a crash"].startswith("nothing: neither `lockd keep` nor")


def test_status_says_that_everything_survives(manager: ServiceManager) -> None:
    lockctl = Lockctl(str(manager.socket))
    with connect(manager.socket) as client:
        client.acquire("a")
        used, _, rest = facts_of(lockctl)["limit: bytes of records"].partition(" ")
        assert int(used) > 0
        assert rest == "of 536870912 (< 1 %)"
        said = facts_of(lockctl)["survives a crash"]
        assert said == (
            "everything: the service manager keeps 1 lock and 2 connections"
        )
        manager.kill_and_start()
        assert facts_of(lockctl)["survives a crash"] == said
        assert facts_of(lockctl)["pid"] == str(manager.pid)


def test_status_fits_a_terminal(lockctl: Lockctl) -> None:
    terminal = Terminal((*LOCKCTL, "status"), lockctl.env | {"COLUMNS": "80"})
    assert terminal.wait() == 0
    lines = terminal.shown.split("\r\n")
    assert lines[1].split() == ["version", __version__, f"({MANNER})"]
    assert "\t" not in terminal.shown


def test_status_as_json_is_the_answer_of_statistics(
    lockctl: Lockctl, client: Client
) -> None:
    shown = json.loads(lockctl("status", "--json").stdout)
    assert shown["status"].keys() == client.statistics().keys()
    assert shown["status"]["kept"]["by"] is None
    assert [x["name"] for x in shown["lockspaces"]] == ["default", "direct"]


def test_status_without_a_daemon_is_69(tmp_path: Path) -> None:
    done = Lockctl(str(tmp_path / "nobody"))("status")
    assert (done.returncode, done.stdout) == (69, "")


def test_held_means_the_same_on_every_line(lockctl: Lockctl, sock: str) -> None:
    with connect(sock) as one, connect(sock) as other:
        one.acquire("alone")
        for client in (one, other):
            client.acquire("shared", mode="shared")
        lines = lockctl("status").stdout.splitlines()
    facts = dict(line.split("\t") for line in lines)
    assert (facts["held"], facts["holders"]) == ("2", "3")
    assert facts["lockspace default"] == "memory, 2 held"


def test_metrics_are_printed_as_they_are(lockctl: Lockctl, client: Client) -> None:
    client.acquire("a")
    found = read(lockctl("metrics").stdout)
    assert found("lockd_held", lockspace="default") == 1
    # A session of lockctl may end in the turn that answers this.
    assert read(client.metrics())("lockd_held", lockspace="default") == 1
