"""Which directories lie on file systems that a network can hold up."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.files import OpenFiles
from lockd.lockspaces.mounts import MountTable

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
    "kind", ["nfs", "nfs4", "cifs", "ceph", "9p", "fuse", "fuse.sshfs", "gfs2"]
)
def test_network_file_systems_are_known(table: Table, kind: str) -> None:
    assert table(("/", "ext4"), ("/srv", kind)).is_network("/srv/vms")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "nfsd"])
def test_local_file_systems_are_not_slow(table: Table, kind: str) -> None:
    assert not table(("/", "nfs"), ("/srv", kind)).is_network("/srv/vms")


def test_innermost_mount_counts(table: Table) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"), ("/srv/local", "xfs"))
    assert not found.is_network("/")
    assert not found.is_network("/home")
    assert found.is_network("/srv")
    assert found.is_network("/srv/vms/a")
    assert not found.is_network("/srv/local")
    assert not found.is_network("/srv/local/a/b")


def test_mount_point_is_a_whole_path_not_a_prefix(table: Table) -> None:
    assert not table(("/", "ext4"), ("/srv", "nfs")).is_network("/srv2/vms")


def test_later_mount_lies_on_top(table: Table) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"), ("/srv", "tmpfs"))
    assert not found.is_network("/srv/vms")


def test_optional_fields_may_be_missing(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"))
    mountinfo.write_text("20 1 0:20 / /srv rw - nfs server:/srv rw\n")
    found.refresh()
    assert found.is_network("/srv")


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
    assert found.is_network(path)
    assert found.is_network("/srv")


def test_bytes_that_are_not_utf_8_are_read_right(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"))
    mountinfo.write_bytes(b"20 1 0:20 / /a\xffb rw - nfs server:/ rw\n")
    found.refresh()
    assert found.is_network(os.fsdecode(b"/a\xffb"))


def test_refresh_forgets_what_was_known(table: Table, mountinfo: Path) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"))
    assert found.is_network("/srv/vms")
    write(mountinfo, ("/", "ext4"))
    found.refresh()
    assert not found.is_network("/srv/vms")


def test_memory_for_directories_is_bounded(table: Table) -> None:
    found = table(("/", "ext4"), ("/srv", "nfs"))
    for n in range(3_000):
        assert found.is_network(f"/srv/{n}")
    assert len(found._remembered) <= 1_024


def test_mounts_of_this_machine_can_be_read() -> None:
    found = MountTable()
    assert not found.is_network("/proc/self")
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
