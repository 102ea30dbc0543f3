"""`lockctl virtlockd-check`: the locks in virtlockd, as the kernel shows them.

virtlockd has no call for this. Its directory in /proc shows its locks, descriptor by
descriptor (proc_pid_fdinfo(5)). libvirtd's status files name the guests.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from lockd.ctl.exits import BUSY, OK
from lockd.ctl.line.clicks import as_json
from lockd.ctl.render import show_json
from lockd.ctl.streams import say
from lockd.ctl.table import Cells, show_table
from lockd.errors import DeniedError
from lockd.terms import EXCLUSIVE, SHARED, Mode

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

PROC: Final = Path("/proc")
GUESTS: Final = Path("/run/libvirt/qemu")

_MODES: Final[dict[str, Mode]] = {"WRITE": EXCLUSIVE, "READ": SHARED}


class Guest(NamedTuple):
    """A running guest of libvirt's QEMU driver, and the files that it may lock.

    Attributes:
        name, uuid, pid: those of the guest.
        paths: disk images, devices and leases, as canonical paths.
        hashes: the names of the same disks in a lockspace of hashed names.
    """

    name: str
    uuid: str
    pid: int
    paths: frozenset[str]
    hashes: frozenset[str]

    def may_hold(self, path: str) -> bool:
        """Returns whether a locked file may be this guest's."""
        return path in self.paths or os.path.basename(path) in self.hashes


class VirtlockdLock(NamedTuple):
    """A lock in a virtlockd, and the guests that may hold it.

    Attributes:
        path: the locked file.
        mode: None if only virtlockd believes in the lock. The kernel drops it when
            virtlockd closes the same file under another path (POSIX fcntl(2)).
        virtlockd: the pid of virtlockd.
        guests: the guests that may hold it.
    """

    path: str
    mode: Mode | None
    virtlockd: int
    guests: list[Guest]


@click.command(
    "virtlockd-check", short_help="Check whether you can stop virtlockd now."
)
@as_json
def virtlockd_check(as_json: bool) -> int:
    """Check whether you can stop virtlockd now, so that lockd can replace it.

    When virtlockd stops, it kills the guests that hold locks in it. So stop it only
    while it holds no lock. lockctl exits with 0 if virtlockd holds no lock, and with 75
    if it does. This needs root.

    lockctl asks the kernel, and the answer is true only at that moment: a guest that
    starts or resumes later takes its locks. A lock without a mode is one that virtlockd
    has on its list, but has lost in the kernel.

    In a pipe, tabs separate the columns: locked file, mode; name, uuid and pid of the
    guest, if known; pid of virtlockd.
    """
    daemons = list(find_virtlockds())
    guests = list(read_guests())
    locks = [lock for pid in daemons for lock in read_locks(pid, guests)]
    if as_json:
        show_json(**_as_plain_data(daemons, locks))
    else:
        show_table(
            ("LOCKED", "MODE", "GUEST", "UUID", "GUEST PID", "VIRTLOCKD"),
            [row for lock in locks for row in _rows(lock)],
            empty="",
        )
        say(_verdict(daemons, locks))
    return BUSY if locks else OK


def find_virtlockds() -> Iterator[int]:
    """Yields the pid of each process called virtlockd."""
    for comm in PROC.glob("[0-9]*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # has just ended
            if comm.read_text() == "virtlockd\n":
                yield int(comm.parent.name)


def read_locks(pid: int, guests: Iterable[Guest]) -> list[VirtlockdLock]:
    """Returns the locks that a virtlockd holds.

    Args:
        pid: its process. If it has ended it holds none.
        guests: the guests that may hold them.

    Raises:
        DeniedError: we may not read its descriptors.
    """
    try:
        modes = dict(_lock_files(PROC / str(pid)))
    except FileNotFoundError:
        return []
    except PermissionError:
        raise DeniedError(
            f"only root may see the locks of virtlockd (pid {pid}): run this as root"
        ) from None
    return [
        VirtlockdLock(
            path, mode, pid, [guest for guest in guests if guest.may_hold(path)]
        )
        for path, mode in sorted(modes.items())
    ]


def read_guests(directory: Path = GUESTS) -> Iterator[Guest]:
    """Yields the running guests from libvirtd's status files.

    It omits paused guests, because libvirt releases their locks. It yields nothing if
    there are no files or we may not read them.
    """
    for path in sorted(directory.glob("*.xml")):
        with suppress(OSError):
            guest = _read_guest(path.read_text())
            if guest is not None:
                yield guest


def _lock_files(process: Path) -> Iterator[tuple[str, Mode | None]]:
    """Yields the lock files that a virtlockd has open, and their modes."""
    for fdinfo in (process / "fdinfo").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # closed meanwhile
            fields = [line.split() for line in fdinfo.read_text().splitlines()]
            link = process / "fd" / fdinfo.name
            if _is_lock_file(link, fields) and not _is_pid_file(link, process.name):
                yield os.readlink(link).removesuffix(" (deleted)"), _lock_mode(fields)


def _is_lock_file(link: Path, fields: list[list[str]]) -> bool:
    """Returns whether it is a lock file: others are not open for read and write."""
    if link.name in ("0", "1", "2"):
        return False
    (flags,) = (int(field[1], 8) for field in fields if field[0] == "flags:")
    is_disk = link.is_file() or link.is_block_device()
    return is_disk and flags & os.O_ACCMODE == os.O_RDWR


def _is_pid_file(link: Path, pid: str) -> bool:
    """Returns whether a file is virtlockd's pid file."""
    if not link.is_file():
        return False
    with link.open("rb") as file:
        return file.read(len(pid) + 2).strip() == pid.encode()


def _lock_mode(fields: list[list[str]]) -> Mode | None:
    for field in fields:
        # lock: 1: POSIX  ADVISORY  WRITE 214 00:29:2146 0 0
        if field[0] == "lock:":
            return _MODES.get(field[4])
    return None


def _read_guest(status: str) -> Guest | None:
    from xml.etree import ElementTree  # slow to load

    try:
        root = ElementTree.fromstring(status)
    except ElementTree.ParseError:  # incomplete
        return None
    domain = root.find("domain")
    if domain is None or root.get("state") == "paused":
        return None
    disks = [
        path
        for source in domain.iterfind("devices/disk/source")
        if (path := source.get("file") or source.get("dev"))
    ]
    leases = [_lease_path(lease) for lease in domain.iterfind("devices/lease")]
    return Guest(
        domain.findtext("name", ""),
        domain.findtext("uuid", ""),
        int(root.get("pid", "0")),
        frozenset(map(os.path.realpath, disks + leases)),
        # libvirt hashes its own spelling of the path, which need not be canonical.
        frozenset(hashlib.sha256(os.fsencode(path)).hexdigest() for path in disks),
    )


def _lease_path(lease: "Element") -> str:
    """Returns the file that libvirt's lock driver uses for a lease."""
    target = lease.find("target")
    path = "" if target is None else target.get("path", "")
    return "/".join((path, lease.findtext("lockspace", ""), lease.findtext("key", "")))


def _rows(lock: VirtlockdLock) -> Iterator[Cells]:
    about = {"LOCKED": lock.path, "MODE": lock.mode, "VIRTLOCKD": lock.virtlockd}
    if not lock.guests:
        yield about
    for guest in lock.guests:
        of_guest = {"GUEST": guest.name, "UUID": guest.uuid, "GUEST PID": guest.pid}
        yield about | of_guest


def _as_plain_data(daemons: list[int], locks: list[VirtlockdLock]) -> dict[str, Any]:
    return {
        "safe": not locks,
        "virtlockd": daemons,
        "locks": [
            {
                "path": lock.path,
                "mode": lock.mode,
                "virtlockd": lock.virtlockd,
                "guests": [
                    {"name": guest.name, "uuid": guest.uuid, "pid": guest.pid}
                    for guest in lock.guests
                ],
            }
            for lock in locks
        ],
    }


def _verdict(daemons: list[int], locks: list[VirtlockdLock]) -> str:
    if not daemons:
        return "virtlockd does not run, so it holds no lock"
    if not locks:
        return "virtlockd holds no lock: you can stop it"
    count = "1 lock" if len(locks) == 1 else f"{len(locks)} locks"
    return (
        f"virtlockd holds {count}. When it stops, it kills the guests that hold them: "
        "suspend, save or shut them down first"
    )
