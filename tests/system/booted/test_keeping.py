"""What a real systemd keeps of a service that is killed: the ends, and all in them."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from system.booted.machine import INTERPRETER, LIBDIR, Machine

UNIT: Final = "keeping.service"
PLACE: Final = "/srv/keeping"
REPORT: Final = "/srv/keeping.fifo"
LOCKS: Final = 10_000

# A service that only keeps. At its first start it locks files; at every other it says
# how many are not locked by what is in flight, and what it found.
SERVICE: Final = f"""
import fcntl, json, os, struct, sys, time
sys.path.insert(0, {LIBDIR!r})
from lockd.daemon.system import fdstore
from lockd.daemon.system import systemd
from lockd.daemon.stores.in_flight import InFlight
from lockd.notify import notify

def whole(kind):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0)

def is_free(path):
    with open(path, "r+b") as file:
        said = fcntl.fcntl(file, fcntl.F_OFD_GETLK, whole(fcntl.F_WRLCK))
    return struct.unpack_from("h", said)[0] == fcntl.F_UNLCK

kept = dict(systemd.take_passed().kept)
report = dict(offered=fdstore.is_offered(), names=sorted(kept))
if kept:
    report["free"] = sum(is_free(f"{PLACE}/{{i}}") for i in range({LOCKS}))
    begun = time.perf_counter()
    keeper = InFlight([kept[f"kept-{{i}}"] for i in range(len(kept))])
    found = keeper.recover()
    report["seconds"] = time.perf_counter() - begun
    report["found"] = len({{label for label, fd in found
        if os.readlink(f"/proc/self/fd/{{fd}}") == f"{PLACE}/{{label.decode()}}"}})
else:
    keeper = InFlight()
    for i, end in enumerate(keeper.ends):
        assert fdstore.store(f"kept-{{i}}", end)
    for i in range({LOCKS}):
        fd = os.open(f"{PLACE}/{{i}}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole(fcntl.F_WRLCK))
        keeper.keep(b"%d" % i, fd)
notify("READY=1")
with open("{REPORT}", "w") as file:
    json.dump(report, file)
time.sleep(100_000)
"""

TEXT: Final = f"""
[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
ExecStart={INTERPRETER} -I /srv/keeping.py
Restart=always
RestartSec=0
FileDescriptorStoreMax=16
Environment=LOCKD_KEEP=16
LimitNOFILE=262144
"""


@pytest.fixture
def keeping(machine: Machine) -> Iterator[Machine]:
    """A machine with the service."""
    machine.write("/srv/keeping.py", SERVICE)
    machine.write(f"/run/systemd/system/{UNIT}", TEXT)
    machine.run("mkdir", "-p", PLACE)
    machine.run("mkfifo", REPORT)
    machine.run("systemctl", "daemon-reload")
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.run("rm", "-r", PLACE, REPORT, f"/run/systemd/system/{UNIT}")


def report(machine: Machine) -> Any:
    """Waits until the service has started; returns what it says."""
    return json.loads(machine.say("cat", REPORT))


def seconds_of_manager(machine: Machine) -> float:
    """Returns how much of a processor PID 1 has used (proc(5), schedstat)."""
    return int(machine.say("cat", "/proc/1/schedstat").split()[0]) / 1e9


def test_ten_thousand_locks_outlive_kills(keeping: Machine) -> None:
    machine = keeping
    names = [f"kept-{i}" for i in range(8)]
    begun = seconds_of_manager(machine)
    machine.run("systemctl", "start", "--no-block", UNIT)
    assert report(machine) == {"offered": 16, "names": []}
    storing = seconds_of_manager(machine) - begun
    for between in ("true", "daemon-reload", "daemon-reexec", "daemon-reload"):
        begun = seconds_of_manager(machine)
        if between != "true":
            machine.run("systemctl", between)
        reloading = seconds_of_manager(machine) - begun
        machine.run("systemctl", "kill", "--signal=KILL", UNIT)
        found = report(machine)
        seconds = found.pop("seconds")
        killing = seconds_of_manager(machine) - begun - reloading
        print(
            f"{between}: {reloading:.3f} s of PID 1, kill and restart: {killing:.3f} s"
        )
        print(f"recovered in {seconds:.3f} s")
        assert found == {"offered": 16, "names": names, "free": 0, "found": LOCKS}
        assert killing < 0.1
    print(f"start, and {LOCKS} locks kept: {storing:.3f} s of PID 1")
    assert storing < 0.1
    # A stop empties the store, and with it all that is in flight.
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "start", "--no-block", UNIT)
    assert report(machine) == {"offered": 16, "names": []}
