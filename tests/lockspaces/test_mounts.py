"""Which directories lie on file systems that a network can hold up."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.mounts import MountTable
from lockd.lockspaces.open_files import OpenFiles

Table = Callable[..., MountTable]


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    return tmp_path / "mountinfo"


@pytest.fixture
def table(mountinfo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """Makes the table of given mounts, each a mount point and a type."""
    real_open, made = os.open, []

    def open_mountinfo(path: str, flags: int) -> int:
        assert path == "/proc/self/mountinfo"
        return real_open(mountinfo, flags)

    def new(*entries: tuple[str, str]) -> MountTable:
        write(mountinfo, *entries)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", open_mountinfo)
            made.append(MountTable())
        return made[-1]

    yield new
    for one in made:
        one.close()


def write(mountinfo: Path, *entries: tuple[str, str]) -> None:
    lines = [
        f"{n} 1 0:{n} /root {point} rw,noatime shared:{n} master:1 - {kind} source rw\n"
        for n, (point, kind) in enumerate(entries, start=20)
    ]
    mountinfo.write_bytes("".join(lines).encode())


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "ceph", "9p", "gfs2", "fuse", "fuseblk"),
        *("fuse.sshfs", "autofs", "made-tomorrow"),
    ],
)
def test_file_system_that_is_not_known_to_be_local_is_slow(
    table: Table, kind: str
) -> None:
    assert table(("/", "ext4"), ("/srv", kind)).is_slow("/srv/vms")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "nfsd"])
def test_local_file_systems_are_not_slow(table: Table, kind: str) -> None:
    assert not table(("/", "nfs"), ("/srv", kind)).is_slow("/srv/vms")


def test_every_mount_on_the_way_counts(table: Table) -> None:
    found = table(
        ("/", "ext4"), ("/srv", "nfs"), ("/srv/local", "xfs"), ("/home/a.img", "fuse")
    )
    assert not found.is_slow("/")
    assert not found.is_slow("/home")
    assert found.is_slow("/srv")
    assert found.is_slow("/srv/vms/a")
    assert found.is_slow("/srv/local")
    assert found.is_slow("/srv/local/a/b")
    assert found.is_slow_below("/srv/local")
    assert not found.is_slow_below("/")
    assert found.is_slow("/home/a.img")
    assert not found.is_slow("/home/b.img")


def test_root_directory_counts_only_where_nothing_else_is(table: Table) -> None:
    found = table(("/", "nfs"), ("/srv", "xfs"))
    assert found.is_slow("/etc/passwd")
    assert not found.is_slow("/srv/vms/a")


def test_mount_point_is_a_whole_path_not_a_prefix(table: Table) -> None:
    assert not table(("/", "ext4"), ("/srv", "nfs")).is_slow("/srv2/vms")


def test_later_mount_lies_on_top(table: Table) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"), ("/srv", "tmpfs"))
    assert not found.is_slow("/srv/vms")


def test_optional_fields_may_be_missing(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"))
    mountinfo.write_text("20 1 0:20 / /srv rw - nfs server:/srv rw\n")
    found.refresh()
    assert found.is_slow("/srv")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r"/a\040b", "/a b"),
        (r"/a\011b", "/a\tb"),
        (r"/a\012b", "/a\nb"),
        (r"/a\134b", "/a\\b"),
        (r"/a\134040b", "/a\\040b"),
        ("/a\rb", "/a\rb"),
        ("/a\u2028b", "/a\u2028b"),
        ("/ä", "/ä"),
    ],
)
def test_strange_mount_points_are_read_right(
    table: Table, written: str, path: str
) -> None:
    found = table(("/", "ext4"), (written, "nfs"), ("/srv", "nfs4"))
    assert found.is_slow(path)
    assert found.is_slow("/srv")


def test_bytes_that_are_not_utf_8_are_read_right(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"))
    mountinfo.write_bytes(b"20 1 0:20 / /a\xffb rw - nfs server:/ rw\n")
    found.refresh()
    assert found.is_slow(os.fsdecode(b"/a\xffb"))


def test_refresh_forgets_what_was_known(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"))
    assert found.is_slow("/srv/vms")
    write(mountinfo, ("/", "ext4"))
    found.refresh()
    assert not found.is_slow("/srv/vms")


def test_memory_for_directories_is_bounded(table: Table) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"))
    for n in range(3_000):
        assert found.is_slow(f"/srv/{n}")
    assert len(found._remembered) <= 1_024


def test_mounts_of_this_machine_can_be_read() -> None:
    found = MountTable()
    assert not found.is_slow("/proc/self")
    assert found.fileno() >= 0
    found.close()


def test_lockspaces_ask_for_the_directory_of_the_file(
    table: Table, open_files: OpenFiles, locks: Path
) -> None:
    open_files.mounts.close()
    open_files.mounts = table(("/", "ext4"), ("/srv", "nfs"), (str(locks), "nfs"))
    direct = DirectLockspace("direct", open_files)
    assert direct.anchor_is_slow("/srv/disk.img")
    assert not direct.anchor_is_slow("/disk.img")
    assert DirectoryLockspace("vms", str(locks), open_files).anchor_is_slow("web1")
    open_files.mounts = MountTable()


OWN = "systemd-private-0a1b2c3d-lockd.service-XyZ012/tmp"


@pytest.mark.parametrize("root", [f"/tmp/{OWN}", f"/{OWN}"])
def test_tmp_that_nobody_else_sees_is_known(
    table: Table, mountinfo: Path, root: str
) -> None:
    found = table(("/", "ext4"))
    assert not found.is_our_own("/tmp/a")
    mountinfo.write_text(
        f"20 1 0:20 / / rw - ext4 /dev/vda rw\n21 20 0:20 {root} /tmp rw - ext4 d rw\n"
    )
    found.refresh()
    assert found.is_our_own("/tmp/a")
    assert found.is_our_own("/tmp/a/b")
    assert not found.is_our_own("/tmpfile")
    assert not found.is_our_own("/srv/tmp/a")
