"""What the service uses in each phase of the soak: memory, descriptors, processor."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torture.board import now
from torture.target import SERVICE, Target

FACTOR: Final = 1.5
SLACK_MIB: Final = 32.0
"""So much memory may be in use after the load: so many times that before, and more."""

MORE_DESCRIPTORS: Final = 4
MORE_IN_FLIGHT: Final = 512
"""Copies that were given up, and wait for the next compaction."""

SAMPLE_SECONDS: Final = 1.0
_GROUPS: Final = Path("/sys/fs/cgroup/memory")
_MIB: Final = 2**20


@dataclass(frozen=True)
class Sample:
    """What is used at one moment.

    Attributes:
        unit: MiB that the kernel counts for the control group of the unit, unread bytes
            in sockets included; None where it counts no memory for it.
        resident: MiB of the process; shared memory that it has touched is part of it.
        shared: MiB of the files without a name that outlive the process.
        descriptors: of the daemon.
        manager: descriptors of the service manager, where some are stored.
        in_flight: descriptors that wait in sockets, where they outlive the daemon.
    """

    unit: float | None
    resident: float
    shared: float
    descriptors: int
    manager: int
    in_flight: int

    def is_back(self, before: "Sample") -> bool:
        """Tells whether what was used is given back."""
        return not self.grown(before)

    def grown(self, before: "Sample") -> list[str]:
        """Returns what is used more than it may be."""
        bounds = self.bounds(before)
        return [
            name for name, most in bounds.items() if (getattr(self, name) or 0) > most
        ]

    @staticmethod
    def bounds(before: "Sample") -> dict[str, float]:
        """Returns how much of each may be used in the end."""
        found: dict[str, float] = {}
        for name in ("unit", "resident", "shared"):
            if (memory := getattr(before, name)) is not None:
                found[name] = FACTOR * memory + SLACK_MIB
        return found | {
            "descriptors": before.descriptors + MORE_DESCRIPTORS,
            "manager": before.manager + MORE_DESCRIPTORS,
            "in_flight": before.in_flight + MORE_IN_FLIGHT,
        }


@dataclass(frozen=True)
class Phase:
    """A stretch of time, from one moment of CLOCK_MONOTONIC to another.

    Attributes:
        last: what was used at its end.
        most: the most that was used of each.
        cpu: how much of one processor the daemon used.
        busy: how much of all processors was used by anybody.
    """

    name: str
    begin: int
    end: int
    last: Sample
    most: Sample
    cpu: float
    busy: float


class Meter:
    """Measures the service of a booted machine."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._group = _own_group(target)
        # What an earlier process had allocated is counted elsewhere.
        target.machine.run(
            "systemctl", "kill", "--kill-whom=main", "-s", "USR1", SERVICE
        )
        time.sleep(1)
        target.defects()

    def watch(self, name: str, seconds: float) -> Phase:
        """Measures for so long."""
        begin, samples = now(), [self._sample()]
        cpu, busy = self._cpu(), _busy()
        while (left := seconds - (now() - begin) / 1e9) > 0:
            time.sleep(min(left, SAMPLE_SECONDS))
            samples.append(self._sample())
        end = now()
        took = (end - begin) / 1e9
        most = {
            field: max(getattr(sample, field) or 0 for sample in samples)
            for field in Sample.__dataclass_fields__
        }
        cpu, busy = self._cpu() - cpu, _busy() - busy
        share = busy / took / (os.cpu_count() or 1)
        return Phase(name, begin, end, samples[-1], Sample(**most), cpu / took, share)

    def wait_back(self, before: Phase, seconds: float) -> None:
        """Waits until what was used is given back, but not for ever."""
        end = time.monotonic() + seconds
        while not self._sample().is_back(before.most) and time.monotonic() < end:
            time.sleep(SAMPLE_SECONDS)

    def _sample(self) -> Sample:
        use = self._target.use()
        return Sample(
            unit=self._unit(),
            resident=use.daemon_kib / 1024,
            shared=self._target.shared_bytes() / _MIB,
            descriptors=use.daemon_fds,
            manager=use.keeper_fds,
            in_flight=use.in_flight,
        )

    def _unit(self) -> float | None:
        if self._group is not None:
            return int((self._group / "memory.usage_in_bytes").read_text()) / _MIB
        said = self._target.machine.show(SERVICE, "MemoryCurrent")
        return int(said) / _MIB if said.isdecimal() else None

    def _cpu(self) -> float:
        """Returns the seconds of processor time that the daemon has used."""
        stat = Path(f"/proc/{self._target.wait_pid()}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _busy() -> float:
    """Returns the seconds that all processors together were not idle."""
    _, *fields = Path("/proc/stat").read_text().splitlines()[0].split()
    used = sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])
    return used / os.sysconf("SC_CLK_TCK")


def _own_group(target: Target) -> Path | None:
    """Puts the daemon into a control group that counts its memory.

    For hosts where the first version of control groups has the memory: the machine's
    systemd cannot count there. It is below the machine's group, and is removed with it.
    """
    pid = target.wait_pid()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            group = _GROUPS / path.lstrip("/") / "soak"
            with suppress(OSError):
                group.mkdir()
                (group / "cgroup.procs").write_text(str(pid))
                return group
    return None
