"""Lock files in a directory: what is made, what is refused, what is removed."""

import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lockd.errors import (
    AlreadyExistsError,
    AnchorError,
    BusyError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from lockd.lockspaces import files
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.terms import EXCLUSIVE, SHARED, Mode, OutsideHolder
from support.outside import Outside, flags_of, nobody
from support.rights import needs_root
from support.wire_client import NOBODY


def open_anchor(
    space: DirectoryLockspace,
    resource: str,
    mode: Mode = EXCLUSIVE,
    *,
    create: bool | None = None,
    in_use: bool = False,
) -> None:
    space.open_anchor(resource, mode, create=create, in_use=in_use)


# What an open anchor is.


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_anchor_is_seen_by_every_process(
    space: DirectoryLockspace, locks: Path, outside: Outside, mode: Mode
) -> None:
    open_anchor(space, "web1", mode)
    assert outside.probe(locks / "web1") == (mode, -1)
    assert not outside.lock(locks / "web1")
    assert outside.lock(locks / "web1", SHARED) == (mode == SHARED)


def test_anchor_is_the_first_byte_and_no_more(
    space: DirectoryLockspace, locks: Path
) -> None:
    open_anchor(space, "web1")
    inode = (locks / "web1").stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    (line,) = [line for line in lines if f":{inode} " in line]
    assert "OFDLCK" in line
    assert line.endswith(" 0 0")


def test_descriptor_is_not_passed_on_to_children(
    space: DirectoryLockspace, locks: Path
) -> None:
    open_anchor(space, "web1")
    (flags,) = flags_of(locks / "web1")
    assert flags & os.O_CLOEXEC


def test_new_file_is_private_and_empty(space: DirectoryLockspace, locks: Path) -> None:
    open_anchor(space, "web1")
    status = (locks / "web1").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 0


def test_content_of_a_file_stays_untouched(
    space: DirectoryLockspace, locks: Path
) -> None:
    file = locks / "web1"
    file.write_bytes(b"content")
    before = file.stat()
    for mode in (EXCLUSIVE, SHARED, EXCLUSIVE):
        open_anchor(space, "web1", mode)
    space.close_anchor("web1")
    space.finish()
    assert file.read_bytes() == b"content"
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_mode_changes_both_ways_on_the_same_descriptor(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    open_anchor(space, "web1", SHARED)
    open_anchor(space, "web1", EXCLUSIVE, in_use=True)
    assert outside.probe(locks / "web1", SHARED) == (EXCLUSIVE, -1)
    open_anchor(space, "web1", SHARED, in_use=True)
    assert outside.lock(locks / "web1", SHARED)


def test_refused_upgrade_leaves_the_shared_lock(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    open_anchor(space, "web1", SHARED)
    assert outside.lock(locks / "web1", SHARED)
    with pytest.raises(BusyError) as refusal:
        open_anchor(space, "web1", EXCLUSIVE, in_use=True)
    assert refusal.value.facts["outside"].pid == outside.pid
    outside.unlock(locks / "web1")
    assert outside.probe(locks / "web1") == (SHARED, -1)


def test_other_file_of_the_process_can_be_closed_without_dropping_the_lock(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    open_anchor(space, "web1")
    (locks / "web1").open("rb").close()
    assert not outside.lock(locks / "web1")


# Who is in the way.


def test_posix_lock_from_outside_is_named(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    (locks / "web1").touch()
    outside.lock(locks / "web1", SHARED)
    with pytest.raises(BusyError, match="locked from outside lockd") as refusal:
        open_anchor(space, "web1")
    holder = refusal.value.facts["outside"]
    assert (holder.mode, holder.pid) == (SHARED, outside.pid)
    assert holder.command == Path(f"/proc/{outside.pid}/comm").read_text().rstrip()


def test_ofd_lock_from_outside_has_no_name(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    (locks / "web1").touch()
    outside.lock(locks / "web1", kind="ofd")
    with pytest.raises(BusyError) as refusal:
        open_anchor(space, "web1")
    assert refusal.value.facts["outside"] == OutsideHolder(EXCLUSIVE, start=0, length=1)


def test_two_lockspaces_on_one_directory_exclude_and_do_not_name_each_other(
    space: DirectoryLockspace, locks: Path, open_files: OpenFiles
) -> None:
    other = DirectoryLockspace("others", str(locks), open_files)
    open_anchor(space, "web1")
    with pytest.raises(BusyError, match=r"another name, in another lockspace: "):
        open_anchor(other, "web1", SHARED)


# Which files are refused.


def test_symbolic_link_is_refused_and_not_followed(
    space: DirectoryLockspace, locks: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (locks / "web1").symlink_to(target)
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        open_anchor(space, "web1")
    target.touch()
    with pytest.raises(InvalidRequestError):
        open_anchor(space, "web1", create=False)


def test_fifo_is_refused_without_being_opened(
    space: DirectoryLockspace, locks: Path
) -> None:
    os.mkfifo(locks / "web1")
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        open_anchor(space, "web1")
    # Somebody who opened the other end, if only for a moment, would be noticed here.
    with pytest.raises(OSError, match="No such device or address"):
        os.open(locks / "web1", os.O_WRONLY | os.O_NONBLOCK)


def test_socket_is_refused(space: DirectoryLockspace, locks: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(locks / "web1"))
        with pytest.raises(InvalidRequestError, match="not a regular file"):
            open_anchor(space, "web1")


def test_directory_is_refused(space: DirectoryLockspace, locks: Path) -> None:
    (locks / "web1").mkdir()
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        open_anchor(space, "web1")


@needs_root
@pytest.mark.parametrize("create", [None, False])
def test_device_is_refused_without_being_opened(
    space: DirectoryLockspace,
    locks: Path,
    monkeypatch: pytest.MonkeyPatch,
    create: bool | None,
) -> None:
    try:
        os.mknod(locks / "web1", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this root may not make devices")
    opened: list[int] = []
    real_open = os.open

    def watched_open(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        opened.append(fd)
        return fd

    monkeypatch.setattr(os, "open", watched_open)
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        open_anchor(space, "web1", create=create)
    assert not opened


def test_hard_link_is_refused(
    space: DirectoryLockspace, locks: Path, image: Path
) -> None:
    os.link(image, locks / "web1")
    with pytest.raises(InvalidRequestError, match="hard link"):
        open_anchor(space, "web1")


@needs_root
def test_file_of_another_user_is_refused(
    space: DirectoryLockspace, locks: Path
) -> None:
    (locks / "web1").touch()
    os.chown(locks / "web1", NOBODY, NOBODY)
    with pytest.raises(InvalidRequestError, match=f"another user, uid {NOBODY}"):
        open_anchor(space, "web1")


@needs_root
def test_file_of_root_is_trusted_by_the_daemon_of_another_user(
    public_path: Path, open_files: OpenFiles
) -> None:
    (public_path / "web1").touch(mode=0o666)
    (public_path / "web1").chmod(0o666)
    with nobody():
        space = DirectoryLockspace("vms", str(public_path), open_files)
        open_anchor(space, "web1")
        space.close_anchor("web1")
        space.finish()


@needs_root
def test_file_without_permission_is_denied(
    public_path: Path, open_files: OpenFiles
) -> None:
    (public_path / "web1").touch(mode=0o600)
    with nobody():
        space = DirectoryLockspace("vms", str(public_path), open_files)
        with pytest.raises(DeniedError, match="Permission denied"):
            open_anchor(space, "web1")
        with pytest.raises(DeniedError, match="Permission denied"):
            open_anchor(space, "new")


@pytest.mark.parametrize(
    ("name", "error"),
    [("n" * 256, InvalidRequestError), ("missing", NotFoundError)],
)
def test_refusal_makes_no_file(
    space: DirectoryLockspace, locks: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_anchor(space, name, create=False)
    assert not list(locks.iterdir())


@pytest.mark.parametrize("create", [None, True, False])
@pytest.mark.parametrize("left", ["nothing", "a file"])
def test_vanished_directory_is_unavailable_until_it_is_back(
    space: DirectoryLockspace, locks: Path, create: bool | None, left: str
) -> None:
    locks.rmdir()
    if left == "a file":
        locks.touch()
    with pytest.raises(UnavailableError, match="lockspace 'vms' is gone"):
        open_anchor(space, "web1", create=create)
    with pytest.raises(UnavailableError, match="lockspace 'vms' is gone"):
        space.create_resource("web1")
    with pytest.raises(UnavailableError, match="lockspace 'vms' is gone"):
        space.delete_resource("web1")
    locks.unlink(missing_ok=True)
    locks.mkdir()
    open_anchor(space, "web1")
    assert (locks / "web1").exists()


def test_directory_may_go_while_a_lock_is_held(
    space: DirectoryLockspace, locks: Path
) -> None:
    open_anchor(space, "web1")
    locks.rename(locks.with_name("moved"))
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(space, "web1", SHARED, in_use=True)
    locks.mkdir()
    open_anchor(space, "web1")
    assert (locks / "web1").exists()


def test_file_that_a_predecessor_removed_is_being_let_go(
    space: DirectoryLockspace, locks: Path
) -> None:
    open_anchor(space, "web1", SHARED)
    fd, made = space.dump_file("web1")
    kept = os.dup(fd)
    space.close_anchor("web1")
    space.finish()
    assert not (locks / "web1").exists()
    space.adopt_file("web1", kept, made=made, mode=SHARED)
    with pytest.raises(BusyError, match="no longer exists"):
        open_anchor(space, "web1", SHARED, in_use=True)
    space.close_anchor("web1")
    space.finish()
    open_anchor(space, "web1", SHARED)
    assert (locks / "web1").exists()


def test_file_that_was_there_when_it_was_taken_over_is_missed(
    space: DirectoryLockspace, locks: Path
) -> None:
    open_anchor(space, "web1", SHARED)
    fd, made = space.dump_file("web1")
    kept = os.dup(fd)
    space.disown_file("web1")
    os.close(fd)
    space.adopt_file("web1", kept, made=made, mode=SHARED)
    open_anchor(space, "web1", SHARED, in_use=True)
    (locks / "web1").unlink()
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(space, "web1", SHARED, in_use=True)


def adopt_without_its_file(space: DirectoryLockspace, locks: Path, mode: Mode) -> None:
    """Adopts the anchor of web1, whose file somebody has removed."""
    open_anchor(space, "web1", mode)
    fd, made, *_ = space.dump_file("web1")
    kept = os.dup(fd)
    space.disown_file("web1")
    os.close(fd)
    (locks / "web1").unlink()
    space.adopt_file("web1", kept, made=made, mode=mode)


@pytest.mark.parametrize(("held", "wanted"), [(EXCLUSIVE, SHARED), (SHARED, EXCLUSIVE)])
def test_holder_that_converts_after_an_adoption_hears_at_once_of_a_missing_file(
    space: DirectoryLockspace, locks: Path, held: Mode, wanted: Mode
) -> None:
    adopt_without_its_file(space, locks, held)
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(space, "web1", wanted, in_use=True)
    (locks / "web1").touch()
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(space, "web1", wanted, in_use=True)
    space.close_anchor("web1")
    space.finish()
    assert (locks / "web1").exists()
    open_anchor(space, "web1", wanted)


@pytest.mark.interpreted
def test_missing_file_that_nobody_releases_is_no_longer_waited_for(
    space: DirectoryLockspace, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    adopt_without_its_file(space, locks, SHARED)
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(space, "web1", SHARED, in_use=True)


# Making and removing files.


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_file_that_was_made_goes_with_its_last_holder(
    space: DirectoryLockspace, locks: Path, mode: Mode
) -> None:
    open_anchor(space, "web1", mode)
    space.close_anchor("web1")
    assert not (locks / "web1").exists()


def test_file_that_was_there_before_stays(
    space: DirectoryLockspace, locks: Path
) -> None:
    (locks / "web1").touch()
    open_anchor(space, "web1", create=True)
    space.close_anchor("web1")
    assert (locks / "web1").exists()


def test_file_that_was_made_stays_while_somebody_outside_shares_it(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    open_anchor(space, "web1", SHARED)
    outside.lock(locks / "web1", SHARED)
    space.close_anchor("web1")
    assert outside.probe(locks / "web1") is None
    assert (locks / "web1").exists()


def test_file_that_took_the_place_of_ours_is_not_removed(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    open_anchor(space, "web1")
    outside.exchange(locks / "web1")
    space.close_anchor("web1")
    assert (locks / "web1").exists()


def test_unlocked_file_is_free_before_the_descriptor_is_closed(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    (locks / "web1").touch()
    open_anchor(space, "web1")
    space.close_anchor("web1")
    assert outside.lock(locks / "web1")
    space.finish()
    assert not outside.probe(locks / "web1")
    assert not flags_of(locks / "web1")


def test_created_resource_stays_after_its_holder(
    space: DirectoryLockspace, locks: Path
) -> None:
    space.create_resource("web1")
    open_anchor(space, "web1", create=False)
    space.close_anchor("web1")
    assert (locks / "web1").exists()
    with pytest.raises(AlreadyExistsError):
        space.create_resource("web1")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, partial(os.symlink, "web2")])
def test_what_could_not_be_locked_is_no_resource_that_exists(
    space: DirectoryLockspace, locks: Path, make: Callable[[Path], None]
) -> None:
    make(locks / "web1")
    with pytest.raises(InvalidRequestError, match="is not a regular file"):
        space.create_resource("web1")


def test_deleted_resource_is_gone(space: DirectoryLockspace, locks: Path) -> None:
    space.create_resource("web1")
    space.delete_resource("web1")
    assert not (locks / "web1").exists()
    with pytest.raises(NotFoundError):
        space.delete_resource("web1")


def test_resource_that_is_locked_from_outside_is_not_deleted(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    space.create_resource("web1")
    outside.lock(locks / "web1", SHARED)
    with pytest.raises(BusyError):
        space.delete_resource("web1")
    assert (locks / "web1").exists()


@needs_root
def test_resource_that_cannot_be_deleted_is_said_to_be_there(
    public_path: Path, open_files: OpenFiles
) -> None:
    file = public_path / "web1"
    file.touch()
    os.chown(file, NOBODY, NOBODY)
    with nobody():
        space = DirectoryLockspace("vms", str(public_path), open_files)
        with pytest.raises(DeniedError, match="Permission denied"):
            space.delete_resource("web1")
    assert file.exists()
