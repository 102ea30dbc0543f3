"""File systems that are full, read-only or mounted when needed, and block devices."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import lockd
from lockd.lockspaces.direct import DirectLockspace
from lockd.terms import EXCLUSIVE
from support.outside import Outside

_PRELUDE = """
import os, sys
from lockd.errors import RequestError
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.open_files import OpenFiles

place, open_files = sys.argv[1], OpenFiles()
descriptors = lambda: len(os.listdir("/proc/self/fd"))

def take(space, resource, mode="exclusive", in_use=False):
    try:
        space.open_anchor(resource, mode, create=None, in_use=in_use)
    except RequestError as error:
        return error.code + ": " + str(error)
    return "ok"
"""

InMount = Callable[[str, str], list[str]]


def _unshare() -> list[str] | None:
    """Returns the command that gives a process mounts of its own."""
    for options in ("-m", "-Urm"):
        command = ["unshare", options, "mount", "-t", "tmpfs", "none", "/mnt"]
        if (
            shutil.which("unshare")
            and not subprocess.run(command, capture_output=True, check=False).returncode
        ):
            return ["unshare", options]
    return None


@pytest.fixture
def in_mount(tmp_path: Path) -> InMount:
    """Runs a script after a mount that nobody else sees; returns what it printed."""
    unshare = _unshare()
    if unshare is None:
        pytest.skip("private mounts need root or user namespaces")
    place = tmp_path / "mounted"
    place.mkdir()

    def run(mount: str, script: str) -> list[str]:
        shell = f'{mount} && exec "$@"'
        command = [sys.executable, "-c", _PRELUDE + script, str(place)]
        done = subprocess.run(
            [*unshare, "sh", "-ec", shell, "sh", *command],
            env={"PATH": os.environ["PATH"], "PLACE": str(place)}
            | {"PYTHONPATH": str(Path(lockd.__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_full_disk_refuses_new_files_only(in_mount: InMount) -> None:
    # Two inodes: the directory's and one file's.
    said = in_mount(
        'mount -t tmpfs -o nr_inodes=2,mode=755 none "$PLACE"',
        """
space = DirectoryLockspace("vms", place, open_files)
print(take(space, "web1"))
before = descriptors()
print(take(space, "web2"))
print(descriptors() - before)
space.close_anchor("web1")
space.finish()
print(take(space, "web2"))
""",
    )
    assert said[0] == "ok"
    assert said[1].startswith("io: ")
    assert "(No space left on device): " in said[1]
    assert said[2:] == ["0", "ok"]


def test_spare_file_makes_room_on_a_full_disk(in_mount: InMount) -> None:
    said = in_mount(
        'mount -t tmpfs -o nr_inodes=2,mode=755 none "$PLACE"',
        """
space = DirectoryLockspace("vms", place, open_files)
print(take(space, "web1"), space.put_aside("web1"))
print(take(space, "web2"), os.listdir(place))
""",
    )
    assert said == ["ok True", "ok ['web2']"]


def test_spare_file_keeps_a_disk_busy_until_it_goes(in_mount: InMount) -> None:
    said = in_mount(
        'mount -t tmpfs -o mode=755 none "$PLACE"',
        """
import select, subprocess
def mount(*words):
    return subprocess.run(words, capture_output=True).returncode

space = DirectoryLockspace("vms", place, open_files)
print(take(space, "web1"), space.put_aside("web1"))
print(mount("umount", place) == 0, open_files.spares.remove_all())
print(mount("umount", place) == 0)

# It is unmounted although it is busy: the kernel tells, and the file is closed.
mount("mount", "-t", "tmpfs", "-o", "mode=755", "none", place)
open_files.look_at_mounts()
before = descriptors()
print(take(space, "web1"), space.put_aside("web1"))
poll = select.poll()
poll.register(open_files.mounts.fileno(), select.POLLPRI)
print(mount("umount", "-l", place) == 0, bool(poll.poll(10_000)))
open_files.look_at_mounts()
print(descriptors() - before)
print(take(space, "web1"), space.put_aside("web1"))

# Something else is mounted over it.
mount("mount", "-t", "tmpfs", "-o", "mode=755", "none", place)
print(take(space, "web1"), os.listdir(place))
space.close_anchor("web1")
space.finish()
mount("umount", place)
print(os.listdir(place))
""",
    )
    assert said == [
        "ok True",
        "False True",
        "True",
        "ok True",
        "True True",
        "0",
        "ok True",
        "ok ['web1']",
        "['web1']",
    ]


def test_file_on_a_read_only_disk_can_be_locked_but_none_be_made_there(
    in_mount: InMount,
) -> None:
    said = in_mount(
        'mount -t tmpfs -o mode=755 none "$PLACE"; touch "$PLACE/golden.img"; '
        'mount -o remount,bind,ro "$PLACE"',
        """
direct, image = DirectLockspace("direct", open_files), place + "/golden.img"
print(take(direct, image))
print(take(direct, image, "shared"))
print(take(direct, image, "exclusive", in_use=True))
space = DirectoryLockspace("vms", place, open_files)
print(take(space, "web1"))
""",
    )
    assert said[:3] == ["ok", "ok", "ok"]
    assert said[3].startswith("denied: ")
    assert "(Read-only file system): " in said[3]


_AUTOMOUNT: Final = """
import ctypes, fcntl, struct, threading
from lockd.errors import ConfigError
from lockd.lockspaces.places import check_directory, make_directory

DONE, FAILED = 0x9360, 0x9361
libc = ctypes.CDLL(None, use_errno=True)
asked, ask = os.pipe()
options = f"fd={ask},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
if libc.mount(b"test", place.encode(), b"autofs", 0, options.encode()):
    print(os.strerror(ctypes.get_errno()))
    sys.exit()
print("mounted", flush=True)
mount_point = os.open(place, os.O_RDONLY)

def serve():
    while packet := os.read(asked, 4096):
        (token,) = struct.unpack_from("I", packet, 8)
        if MODE:
            libc.mount(b"test", place.encode(), b"tmpfs", 0, b"mode=" + MODE)
            os.mkdir(place + "/locks", 0o700)
        fcntl.ioctl(mount_point, DONE if MODE else FAILED, token)

child = os.fork()
if child == 0:
    os.setsid()  # the kernel shows its own processes what is below
    os.close(ask)
    try:
        print(LOOK(place + BELOW).removeprefix(place))
    except ConfigError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
threading.Thread(target=serve, daemon=True).start()
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    ("mode", "below", "told"),
    [
        ("755", "/locks", "/locks"),
        ("755", "/locks/new", "/locks/new"),
        ("755", "", ""),
        ("777", "/locks", "(mode 0777), who could exchange "),
        ("777", "", "(mode 0777): run chmod go-w on it"),
        ("", "", "No such file or directory"),
        ("", "/locks", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("look", ["make_directory", "check_directory"])
def test_directory_that_is_mounted_when_needed_is_looked_at_once_it_is(
    in_mount: InMount, look: str, mode: str, below: str, told: str
) -> None:
    asked = f"MODE, BELOW, LOOK = {mode.encode()!r}, {below!r}, {look}"
    said = in_mount("true", _AUTOMOUNT.replace("\nDONE,", f"\n{asked}\nDONE,"))
    if said[0] != "mounted":
        pytest.skip(f"autofs cannot be mounted here: {said[0]}")
    assert told == said[1] or (" " in told and told in said[1])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(1 << 20))
    losetup = shutil.which("losetup", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("a loop device needs losetup (Debian: mount) and root")
    made = subprocess.run(
        [losetup, "--show", "-f", str(backing)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"there is no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield Path(device)
    subprocess.run([losetup, "-d", device], check=True)


def test_block_device_can_be_locked(
    direct: DirectLockspace, disk: Path, outside: Outside
) -> None:
    direct.open_anchor(str(disk), EXCLUSIVE, create=None, in_use=False)
    assert outside.probe(disk) == (EXCLUSIVE, -1)
    assert not outside.lock(disk)
    direct.close_anchor(str(disk))
    assert outside.lock(disk)
