"""The daemon under test: where it is, how it is faulted, what it and PID 1 use."""

import json
import os
import re
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from system.booted.machine import Machine
from torture import inside
from torture.board import Board
from torture.line import Line, NeverServedError, UnansweredError
from torture.places import (
    CONFIGURED,
    DIRECTORY,
    DISKS,
    GUEST_DISKS,
    HURRIED,
    HURRIED_SECONDS,
    SHARED_DISKS,
)

SERVICE: Final = "lockd.service"

CONFIG: Final = f"""
kill_grace = 0.2
[limits]
locks_per_session = 100000
locks_per_user = 1000000
sessions_per_user = 4000
[lockspaces.files]
kind = "directory"
path = "{DIRECTORY}"
[lockspaces.killed]
kind = "memory"
on_disconnect = "kill"
[lockspaces.default.slots]
"{CONFIGURED[0].name}" = {len(CONFIGURED)}
[lockspaces.{HURRIED}]
kind = "memory"
max_hold = {HURRIED_SECONDS}
on_overdue = "break"
"""

_VIRTLOCKD: Final = ("virtlockd.service", "virtlockd.socket", "virtlockd-admin.socket")


_CURSOR: Final = "/run/torture-journal-cursor"

_STORY: Final = 600
"""How many characters are told of a defect, its last ones."""

_DEFECTS: Final = (
    "defect of lockd",
    # As PID 1 and `lockd keep` say it, for an exit status that is no success.
    "Main process exited, code=exited",
    ") ended with status",
)


@dataclass(frozen=True)
class Use:
    """What the daemon and its keeper use at a quiet moment.

    Attributes:
        daemon_kib: with `daemon_shared_kib`, which is the memory of its records.
    """

    daemon_fds: int
    daemon_kib: int
    daemon_shared_kib: int
    keeper_fds: int
    keeper_kib: int
    in_flight: int


class Target:
    """A booted machine with lockd installed in it, its sockets listening."""

    def __init__(self, machine: Machine, scratch: Path, config: str) -> None:
        self.machine = machine
        self.scratch = scratch
        self.first_pid = machine.first_pid
        root = Path(f"/proc/{self.first_pid}/root/sys/fs/cgroup")
        self._groups = [
            root / hierarchy / f"system.slice/{SERVICE}/cgroup.procs"
            for hierarchy in ("systemd", "unified")
        ]
        self.prepare(config)

    def prepare(self, config: str) -> None:
        """Makes users, directories and disks, and has lockd be started."""
        run = self.machine.run
        run("systemd-sysusers")
        run("systemd-tmpfiles", "--create")
        run("mkdir", "-p", "-m", "755", DIRECTORY, DISKS)
        for place in SHARED_DISKS + GUEST_DISKS:
            run("truncate", "-s", "1M", place.name)
        self.machine.write("/etc/lockd/conf.d/torture.toml", config)
        run("systemctl", "stop", "libvirtd.service", *_VIRTLOCKD, check=False)
        run("systemctl", "disable", *_VIRTLOCKD, check=False)
        self.start()

    def start(self) -> None:
        """Has lockd be started, with all its sockets."""
        run = self.machine.run
        run("systemctl", "enable", "--now", "lockd-virtlockd.socket")
        run("systemctl", "start", "lockd.socket", "lockd-admin.socket", SERVICE)

    def file(self, path: str) -> Path:
        """Returns where a file of the machine is found from here."""
        return Path(f"/proc/{self.first_pid}/root{path}")

    def drop_in(self, text: str) -> None:
        """Changes the unit of lockd from its next start on; an empty text undoes it."""
        path = f"/run/systemd/system/{SERVICE}.d/torture.conf"
        self.machine.write(path, text)
        self.machine.run("systemctl", "daemon-reload")

    # The process.

    def keeper_pid(self) -> int | None:
        """Returns the process that keeps what outlives the daemon, its parent."""
        return self.first_pid

    def pid(self) -> int | None:
        """Returns the daemon as it is called here; None if there is none."""
        keeper = self.keeper_pid()
        return None if keeper is None else self.child_of(keeper)

    def child_of(self, parent: int) -> int | None:
        """Returns the process of the service that has that parent."""
        for group in self._groups:
            with suppress(OSError):
                for word in group.read_text().split():
                    if self._is_child(int(word), parent):
                        return int(word)
                return None
        return None

    @staticmethod
    def _is_child(pid: int, parent: int) -> bool:
        """A tracer that was started with it has the same parent."""
        comm = Path(f"/proc/{pid}/comm").read_text()
        return _parent(pid) == parent and comm != "strace\n"

    def wait_pid(self, other_than: int | None = None, seconds: float = 30.0) -> int:
        """Waits until there is a main process (other than one)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (pid := self.pid()) is not None and pid != other_than:
                return pid
            time.sleep(0.001)
        raise AssertionError((self.states(), self.machine.journal(SERVICE)[-3_000:]))

    def kill(self, number: int = signal.SIGKILL) -> int | None:
        """Signals the main process; returns its pid, None if there is none."""
        if (pid := self.pid()) is None:
            return None
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        try:
            if _parent(pid) != self.keeper_pid():
                return None
            signal.pidfd_send_signal(handle, number)
            if number == signal.SIGKILL:
                select.select([handle], [], [], 10)
        except ProcessLookupError:
            return None
        finally:
            os.close(handle)
        return pid

    def is_serving(self) -> bool:
        return self.machine.show(SERVICE, "SubState") == "running"

    def states(self) -> str:
        names = "ActiveState,SubState,Result,NRestarts,MainPID,NFileDescriptorStore"
        return self.machine.say("systemctl", "show", f"--property={names}", SERVICE)

    # What it says.

    def defects(self) -> list[str]:
        """Returns what the journal has of defects since this was last asked.

        A daemon that ends by itself counts as one: no lock is lost by it, so nobody
        else would notice.
        """
        options = ("-o", "json", "--all", f"--cursor-file={_CURSOR}")
        entries = self.machine.journal(SERVICE, *options).splitlines()
        found: list[str] = []
        level = None
        for entry in map(json.loads, entries):
            text = str(entry["MESSAGE"])
            if any(x in text for x in _DEFECTS):
                level = entry["PRIORITY"]
                found.append(text)
            elif entry["PRIORITY"] == level:
                found[-1] += f"\n{text}"  # the story of an exception
            else:
                level = None
        return [text[-_STORY:] for text in found]

    def story(self) -> str:
        """Tells what the daemon and its sockets do at this moment, and said last."""
        pid = self.wait_pid()
        process = Path(f"/proc/{pid}")
        # The first number of a listening socket is of those who wait to be accepted.
        sockets = self.machine.say("ss", "-xl", "src", "unix:/run/l*")
        stack = "unknown"
        with suppress(OSError):
            stack = (process / "stack").read_text()
        return "\n".join((
            self.states(),
            (process / "status").read_text().partition("Pid:")[0],
            f"on the stack of the kernel:\n{stack}",
            sockets,
            self.machine.journal(SERVICE)[-_STORY:],
        ))  # fmt: skip

    def statistics(self, board: Board) -> dict[str, Any]:
        """Returns what the daemon counts; waits until it serves.

        Raises:
            UnansweredError: it does not; has been complained of.
        """
        found = inside.call(self.first_pid, partial(_statistics, board))
        assert isinstance(found, dict)
        if not found:
            raise UnansweredError(SERVICE)
        return found

    # What is used.

    def use(self, pid: int | None = None) -> Use:
        """Counts what is used."""
        pid = pid or self.wait_pid()
        keeper = self.keeper_pid()
        assert keeper is not None, self.states()
        return Use(
            daemon_fds=_descriptors(pid),
            daemon_kib=_resident(pid),
            daemon_shared_kib=_resident(pid, "RssShmem"),
            keeper_fds=_descriptors(keeper),
            keeper_kib=_resident(keeper),
            in_flight=_in_flight(keeper),
        )

    def quiet_use(self) -> Use:
        """Counts when what is put off is done: when two counts are the same."""
        before = self.use()
        for _ in range(40):
            time.sleep(0.25)
            after = self.use()
            if (after.daemon_fds, after.in_flight, after.keeper_fds) == (
                before.daemon_fds, before.in_flight, before.keeper_fds,
            ):  # fmt: skip
                return after
            before = after
        return before

    def shared_bytes(self) -> int:
        """Returns how much memory the files take that outlive the daemon (memfd)."""
        keeper = self.keeper_pid()
        return 0 if keeper is None else _shared(keeper)

    def first_cpu(self) -> float:
        """Returns the seconds of processor time that PID 1 has used."""
        fields = Path(f"/proc/{self.first_pid}/stat").read_text().rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def booted(
    config: str = CONFIG, make: Callable[[Machine, Path, str], Target] = Target
) -> Iterator[Target]:
    """Boots a machine, with lockd as it is in this tree, and a configuration for it."""
    # Not below /dev/shm: what lockd's user has there is removed with RemoveIPC=.
    with (
        tempfile.TemporaryDirectory(prefix="lockd-torture-") as place,
        Machine(Path(place)) as machine,
    ):
        print(machine.manner, flush=True)
        yield make(machine, Path(place), config)


def _statistics(board: Board) -> dict[str, Any]:
    while True:
        try:
            line = Line(board, 0, "the campaign")
            found = line.call("statistics")
        except NeverServedError:
            time.sleep(0.05)
        except UnansweredError:
            return {}
        else:
            line.close()
            assert isinstance(found, dict)
            return found


def _parent(pid: int) -> int:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return int(text.rpartition(")")[2].split()[1])
    return 0


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _resident(pid: int, what: str = "VmRSS") -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _shared(pid: int) -> int:
    """Returns how much memory the memfds of a process take; each counts once."""
    found: dict[int, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry).startswith("/memfd:"):
                about = entry.stat()
                found[about.st_ino] = about.st_blocks * 512
    return sum(found.values())


def _in_flight(pid: int) -> int:
    """Counts the descriptors that wait in sockets that a process has."""
    total = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            found = re.search(r"^scm_fds:\s+(\d+)", entry.read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total
