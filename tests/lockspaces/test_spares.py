"""Lock files that stay for a moment for the next holder of their lock."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from lockd.lockspaces.base import LockFile
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.spares import AT_ONCE, MOST, SHARE, STAYS
from lockd.terms import EXCLUSIVE, SHARED, TEMPORARY, Create, Mode, ResourceKey
from lockspaces.conftest import close_all, until_closed
from lockspaces.test_files import Failing
from support.outside import Outside, flags_of
from support.processes import descriptors

EITHER = pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
KINDS = pytest.mark.parametrize("kind", ["posix", "ofd"])


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Forgotten(list[ResourceKey]):
    """The resources of the files that went, each while its file was still open."""

    def __call__(self, key: ResourceKey) -> None:
        self.append(key)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forgotten() -> Forgotten:
    return Forgotten()


@pytest.fixture
def open_files(
    clock: Clock, forgotten: Forgotten, _no_descriptor_is_leaked: None
) -> Iterator[OpenFiles]:
    yield from until_closed(OpenFiles(forget=forgotten, clock=clock))


@pytest.fixture
def other(locks: Path, open_files: OpenFiles) -> Iterator[DirectoryLockspace]:
    """Another lockspace on the same directory."""
    other = DirectoryLockspace("others", str(locks), open_files)
    yield other
    close_all(other)


def take(
    space: DirectoryLockspace,
    resource: str = "web1",
    mode: Mode = EXCLUSIVE,
    *,
    create: Create = None,
) -> LockFile:
    return space.open_anchor(resource, mode, create=create, in_use=False)


def spare(
    space: DirectoryLockspace, resource: str = "web1", mode: Mode = EXCLUSIVE
) -> int:
    """Takes a lock and puts its file aside. Returns the descriptor."""
    file = take(space, resource, mode)
    assert space.put_aside(resource)
    return file.fd


def grow_old(open_files: OpenFiles, clock: Clock) -> None:
    clock.now += STAYS
    while open_files.spares.remove_old():
        pass


def test_file_that_is_tried_in_vain_stays_no_longer(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    clock: Clock,
    outside: Outside,
) -> None:
    spare(space, "web1")
    outside.lock(locks / "web1")
    clock.now += 1
    spare(space, "web2")
    with pytest.raises(BusyError):
        take(space, "web1")
    clock.now += STAYS - 1
    assert not open_files.spares.remove_old()
    assert len(open_files.spares) == 1


# Where nobody else looks.


@EITHER
def test_next_holder_gets_the_same_open_file(
    space: DirectoryLockspace, locks: Path, outside: Outside, mode: Mode
) -> None:
    fd = spare(space)
    assert outside.probe(locks / "web1") is None
    assert space.open_resources() == []
    assert space.anchor_count == 0
    file = take(space, mode=mode)
    assert file.fd == fd
    assert outside.probe(locks / "web1") == (mode, -1)
    assert space.open_resources() == ["web1"]
    status = (locks / "web1").stat()
    assert space.resource_of_file((status.st_dev, status.st_ino)) == "web1"


def test_pair_takes_three_system_calls(
    space: DirectoryLockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare(space)
    for name in ("open", "fstat", "stat", "unlink", "close"):
        monkeypatch.setattr(os, name, Failing(getattr(os, name), errno.EIO))
    look = Failing(os.lstat, errno.EIO, after=3)
    monkeypatch.setattr(os, "lstat", look)
    for _ in range(3):
        take(space)
        assert space.put_aside("web1")
    assert next(look._calls) == 3
    monkeypatch.undo()


def test_new_file_is_looked_at_once_after_the_lock(
    space: DirectoryLockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat"):
            patch.setattr(os, name, Failing(getattr(os, name), errno.EIO))
        patch.setattr(os, "fstat", Failing(os.fstat, errno.EIO, after=1))
        take(space)


def test_spare_file_is_private_and_not_for_children(
    space: DirectoryLockspace, locks: Path
) -> None:
    spare(space)
    assert (locks / "web1").stat().st_mode & 0o777 == 0o600
    (flags,) = flags_of(locks / "web1")
    assert flags & os.O_CLOEXEC


def test_resource_whose_file_is_spare_is_locked_by_nobody(
    space: DirectoryLockspace, locks: Path
) -> None:
    spare(space)
    status = (locks / "web1").stat()
    assert space.resource_of_file((status.st_dev, status.st_ino)) is None


# How long it stays, and how many.


@EITHER
def test_spare_file_goes_when_it_is_old(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    forgotten: Forgotten,
    locks: Path,
    clock: Clock,
    mode: Mode,
) -> None:
    before = descriptors()
    spare(space, mode=mode)
    clock.now += STAYS - 0.1
    assert not open_files.spares.remove_old()
    assert (locks / "web1").exists()
    assert forgotten == []
    clock.now += 0.1
    assert not open_files.spares.remove_old()
    assert not (locks / "web1").exists()
    assert descriptors() == before
    assert forgotten == [("vms", "web1")]


def test_file_that_is_taken_again_begins_anew(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path, clock: Clock
) -> None:
    for _ in range(3):
        spare(space)
        clock.now += STAYS - 0.1
        assert not open_files.spares.remove_old()
    assert (locks / "web1").exists()


def test_file_that_is_held_does_not_grow_old(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path, clock: Clock
) -> None:
    spare(space)
    take(space)
    grow_old(open_files, clock)
    assert (locks / "web1").exists()


def test_old_files_go_in_small_steps(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path, clock: Clock
) -> None:
    for number in range(AT_ONCE + 1):
        spare(space, f"{number}")
    clock.now += STAYS
    assert open_files.spares.remove_old()
    assert os.listdir(locks) == [f"{AT_ONCE}"]
    assert not open_files.spares.remove_old()
    assert os.listdir(locks) == []


def test_further_files_go_at_once(space: DirectoryLockspace) -> None:
    for number in range(MOST):
        spare(space, f"{number}")
    take(space, "one more")
    assert not space.put_aside("one more")
    assert space.open_resources() == ["one more"]
    take(space, "0")
    assert space.put_aside("0")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_spare_files_take_a_small_share_of_the_descriptors(
    locks: Path, most: int
) -> None:
    files = OpenFiles(max_fd=max(most * SHARE, SHARE - 1) + 0.0)
    assert files.spares.has_room(f"{locks}/web1") == (most > 0)
    files.max_fd = 1_000
    space = DirectoryLockspace("vms", str(locks), files)
    for number in range(most):
        spare(space, f"{number}")
    assert not files.spares.has_room(f"{locks}/web1")
    close_all(space)
    files.mounts.close()


# Other programs.


@KINDS
@EITHER
def test_lock_of_another_program_is_in_the_way_until_it_ends(
    space: DirectoryLockspace, locks: Path, outside: Outside, kind: str, mode: Mode
) -> None:
    fd = spare(space)
    assert outside.lock(locks / "web1", mode, kind)
    for _ in range(2):
        with pytest.raises(BusyError, match="locked from outside") as refusal:
            take(space)
        assert refusal.value.facts["outside"].mode == mode
    outside.unlock(locks / "web1", kind)
    assert take(space).fd == fd
    space.close_anchor("web1")
    assert not (locks / "web1").exists()


def test_shared_lock_of_another_program_lets_a_shared_holder_in(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    spare(space, mode=SHARED)
    assert outside.lock(locks / "web1", SHARED)
    take(space, mode=SHARED)
    assert outside.probe(locks / "web1") == (SHARED, -1)


@KINDS
@EITHER
def test_file_that_another_program_has_locked_is_left_to_it(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    clock: Clock,
    kind: str,
    mode: Mode,
) -> None:
    before = descriptors()
    spare(space)
    assert outside.lock(locks / "web1", mode, kind)
    grow_old(open_files, clock)
    assert (locks / "web1").exists()
    assert descriptors() == before
    outside.unlock(locks / "web1", kind)
    assert outside.probe(locks / "web1") is None


@pytest.mark.parametrize("at", ["once", "its time"])
def test_file_that_another_program_only_has_open_goes(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    clock: Clock,
    at: str,
) -> None:
    # Whoever locks it later looks at the path, too.
    spare(space)
    assert outside.probe(locks / "web1") is None
    assert outside.flock(locks / "web1")
    if at == "once":
        open_files.spares.remove_all()
    else:
        grow_old(open_files, clock)
    assert not (locks / "web1").exists()


def test_waiting_for_another_program_does_not_keep_a_file_for_ever(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    clock: Clock,
) -> None:
    spare(space)
    assert outside.lock(locks / "web1")
    clock.now += STAYS - 0.1
    with pytest.raises(BusyError):
        take(space)
    outside.unlock(locks / "web1")
    clock.now += 0.1
    assert not open_files.spares.remove_old()
    assert not (locks / "web1").exists()


# The path leads elsewhere.


@EITHER
def test_file_that_was_removed_is_made_anew(
    space: DirectoryLockspace,
    forgotten: Forgotten,
    locks: Path,
    outside: Outside,
    mode: Mode,
) -> None:
    spare(space)
    outside.unlink(locks / "web1")
    take(space, mode=mode)
    assert outside.probe(locks / "web1") == (mode, -1)
    # Its number may be the same.
    assert forgotten == [("vms", "web1")]


@EITHER
def test_file_in_the_place_of_a_spare_one_is_locked_and_stays(
    space: DirectoryLockspace, locks: Path, outside: Outside, mode: Mode
) -> None:
    spare(space)
    outside.exchange(locks / "web1")
    take(space, mode=mode)
    assert outside.probe(locks / "web1") == (mode, -1)
    assert not space.put_aside("web1")
    space.close_anchor("web1")
    assert (locks / "web1").exists()


def test_file_in_the_place_of_a_spare_one_is_not_removed_at_its_time(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    clock: Clock,
) -> None:
    spare(space)
    outside.exchange(locks / "web1")
    grow_old(open_files, clock)
    assert (locks / "web1").exists()


def test_file_that_was_renamed_is_left_alone(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    spare(space)
    (locks / "web1").rename(locks / "theirs")
    take(space)
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)
    space.close_anchor("web1")
    assert os.listdir(locks) == ["theirs"]
    assert outside.lock(locks / "theirs")


def test_lock_on_a_file_that_was_renamed_is_not_in_the_way(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    spare(space)
    (locks / "web1").rename(locks / "theirs")
    assert outside.lock(locks / "theirs")
    take(space)
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)


def test_file_in_a_directory_that_was_replaced_is_made_there(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    spare(space)
    locks.rename(locks.with_name("moved"))
    locks.mkdir()
    take(space)
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)
    assert outside.lock(locks.with_name("moved") / "web1")


def test_directory_that_is_gone_is_said_to_be_gone(
    space: DirectoryLockspace, locks: Path
) -> None:
    before = descriptors()
    spare(space)
    locks.rename(locks.with_name("moved"))
    with pytest.raises(UnavailableError, match="lockspace 'vms' is gone"):
        take(space)
    assert descriptors() == before


def test_file_with_another_name_is_refused_once_and_made_anew(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    spare(space)
    os.link(locks / "web1", locks / "theirs")
    with pytest.raises(InvalidRequestError, match="hard link"):
        take(space)
    assert os.listdir(locks) == ["theirs"]
    assert outside.lock(locks / "theirs")
    take(space)
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)


# What must not stay.


def test_file_that_was_there_before_is_never_spare(
    space: DirectoryLockspace, locks: Path
) -> None:
    (locks / "web1").touch()
    take(space)
    assert not space.put_aside("web1")
    assert space.open_resources() == ["web1"]


def test_file_of_a_predecessor_goes_at_once(
    space: DirectoryLockspace, locks: Path
) -> None:
    fd = take(space).fd
    kept = os.dup(fd)
    space.disown_file("web1")
    os.close(fd)
    space.adopt_file("web1", kept, made=True, mode=EXCLUSIVE)
    assert not space.put_aside("web1")
    space.close_anchor("web1")
    space.finish()
    assert not (locks / "web1").exists()


@pytest.mark.parametrize("before", ["nothing", "a spare file", "another holder"])
def test_temporary_file_goes_at_once(
    space: DirectoryLockspace, locks: Path, before: str
) -> None:
    if before == "a spare file":
        spare(space, mode=SHARED)
    elif before == "another holder":
        take(space, mode=SHARED)
    in_use = before == "another holder"
    space.open_anchor("web1", SHARED, create=TEMPORARY, in_use=in_use)
    assert not space.put_aside("web1")
    space.close_anchor("web1")
    assert not (locks / "web1").exists()


def test_file_that_may_not_be_made_is_missing_although_one_is_spare(
    space: DirectoryLockspace, locks: Path
) -> None:
    before = descriptors()
    spare(space)
    with pytest.raises(NotFoundError):
        take(space, create=False)
    assert os.listdir(locks) == []
    assert descriptors() == before


def test_resource_whose_file_is_spare_can_be_created_and_stays(
    space: DirectoryLockspace, locks: Path
) -> None:
    spare(space)
    space.create_resource("web1")
    with pytest.raises(AlreadyExistsError):
        space.create_resource("web1")
    take(space, create=False)
    assert not space.put_aside("web1")
    space.close_anchor("web1")
    assert (locks / "web1").exists()


def test_resource_whose_file_is_spare_is_not_there_to_be_deleted(
    space: DirectoryLockspace, locks: Path
) -> None:
    spare(space)
    with pytest.raises(NotFoundError):
        space.delete_resource("web1")
    assert os.listdir(locks) == []


def test_file_that_cannot_be_unlocked_is_not_put_aside(
    space: DirectoryLockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(space)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.fcntl", Failing(lambda *_: None, errno.EIO))
        assert not space.put_aside("web1")
    assert space.open_resources() == ["web1"]


def test_resource_that_is_not_open_is_not_put_aside(space: DirectoryLockspace) -> None:
    assert not space.put_aside("web1")


# Two lockspaces, two kinds.


def test_lockspace_on_the_same_directory_opens_a_file_of_its_own(
    space: DirectoryLockspace,
    other: DirectoryLockspace,
    forgotten: Forgotten,
    locks: Path,
) -> None:
    spare(space)
    removed = (locks / "web1").stat().st_ino
    kept = os.open(locks / "web1", os.O_RDONLY)  # so that its inode is not used again
    take(other)
    assert forgotten == [("vms", "web1")]
    assert (locks / "web1").stat().st_ino != removed
    with pytest.raises(BusyError, match="in another lockspace"):
        take(space)
    assert other.put_aside("web1")
    take(space)
    assert forgotten == [("vms", "web1"), ("others", "web1")]
    os.close(kept)


def test_second_spare_file_of_a_path_goes_at_once(
    space: DirectoryLockspace,
    other: DirectoryLockspace,
    locks: Path,
    outside: Outside,
) -> None:
    take(space)
    outside.unlink(locks / "web1")
    spare(other)
    assert not space.put_aside("web1")
    space.close_anchor("web1")
    assert (locks / "web1").exists()


def test_spare_file_can_be_locked_by_its_path(
    space: DirectoryLockspace,
    direct: DirectLockspace,
    open_files: OpenFiles,
    locks: Path,
    clock: Clock,
) -> None:
    path = str(locks / "web1")
    spare(space)
    direct.open_anchor(path, EXCLUSIVE, create=None, in_use=False)
    with pytest.raises(BusyError, match="under another name, in another lockspace"):
        take(space)
    grow_old(open_files, clock)
    assert direct.resource_of_file(
        ((locks / "web1").stat().st_dev, (locks / "web1").stat().st_ino)
    )
    assert (locks / "web1").exists()


def test_shared_lock_by_its_path_keeps_a_spare_file_from_being_shared(
    space: DirectoryLockspace, direct: DirectLockspace, locks: Path
) -> None:
    path = str(locks / "web1")
    spare(space)
    direct.open_anchor(path, SHARED, create=None, in_use=False)
    with pytest.raises(BusyError, match="under another name, in another lockspace"):
        space.open_anchor("web1", SHARED, create=None, in_use=False)
    direct.close_anchor(path)
    space.open_anchor("web1", SHARED, create=None, in_use=False)
    space.close_anchor("web1")


def test_spare_file_that_is_adopted_is_not_taken_for_that_of_another_name(
    space: DirectoryLockspace,
    direct: DirectLockspace,
    open_files: OpenFiles,
    locks: Path,
) -> None:
    path = str(locks / "web1")
    (locks / "web1").touch()
    fds = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
    direct.adopt_file(path, fds[0], made=False, mode=EXCLUSIVE)
    space.adopt_file("web1", fds[1], made=True, mode=None)
    space.close_anchor("web1")
    assert [*open_files.by_inode.values()] == [ResourceKey(direct.name, path)]
    assert (locks / "web1").exists()
    direct.close_anchor(path)
    assert not open_files.by_inode


def adopt_spare(space: DirectoryLockspace, locks: Path) -> None:
    """Adopts a file that its predecessor had put aside, and was killed."""
    fd = os.open(locks / "web1", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    space.adopt_file("web1", fd, made=True, mode=None)


def test_spare_file_that_is_adopted_serves_its_next_holder(
    space: DirectoryLockspace,
    direct: DirectLockspace,
    open_files: OpenFiles,
    locks: Path,
) -> None:
    adopt_spare(space, locks)
    take(space)
    assert [*open_files.by_inode.values()] == [ResourceKey(space.name, "web1")]
    with pytest.raises(BusyError, match="under another name, in another lockspace"):
        direct.open_anchor(
            str(locks / "web1"), EXCLUSIVE, create=None, in_use=False, only_byte=True
        )
    space.close_anchor("web1")
    assert not open_files.by_inode
    assert not os.listdir(locks)


def test_spare_file_that_is_adopted_after_it_was_removed_is_exchanged_for_another(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path
) -> None:
    adopt_spare(space, locks)
    (locks / "web1").unlink()
    before = descriptors()
    take(space)
    assert descriptors() == before
    assert [*open_files.by_inode.values()] == [ResourceKey(space.name, "web1")]
    assert os.listdir(locks) == ["web1"]


def test_adopted_file_that_another_name_holds_is_not_shared_with_it(
    space: DirectoryLockspace,
    direct: DirectLockspace,
    open_files: OpenFiles,
    locks: Path,
) -> None:
    path = str(locks / "web1")
    adopt_spare(space, locks)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    direct.adopt_file(path, fd, made=False, mode=SHARED)
    with pytest.raises(BusyError, match="under another name, in another lockspace"):
        space.open_anchor("web1", SHARED, create=None, in_use=False)
    (locks / "web1").rename(locks / "elsewhere")
    take(space)  # another file
    assert ResourceKey(direct.name, path) in open_files.by_inode.values()
    direct.close_anchor(path)
    assert [*open_files.by_inode.values()] == [ResourceKey(space.name, "web1")]


# Giving way.


NO_ROOM = [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM]


@pytest.mark.parametrize("error", NO_ROOM)
def test_spare_files_give_way_when_no_other_can_be_opened(
    space: DirectoryLockspace,
    locks: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    spare(space, "web1")
    spare(space, "web2")
    monkeypatch.setattr(os, "open", Failing(os.open, error, before=1))
    take(space, "web3")
    assert os.listdir(locks) == ["web3"]


def test_spare_files_do_not_give_way_for_nothing(
    space: DirectoryLockspace, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare(space, "web1")
    monkeypatch.setattr(os, "open", Failing(os.open, errno.EROFS, before=1))
    with pytest.raises(Exception, match="read-only"):
        take(space, "web2")
    assert os.listdir(locks) == ["web1"]


def test_spare_files_give_way_before_descriptors_run_out(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path
) -> None:
    fd = spare(space, "web1")
    open_files.max_fd = fd + 1
    take(space, "web2")
    assert os.listdir(locks) == ["web2"]
    assert take(space, "web3").fd == fd
    with pytest.raises(UnavailableError, match=os.strerror(errno.EMFILE)):
        take(space, "web4")


def test_making_room_says_whether_there_is_some(space: DirectoryLockspace) -> None:
    assert not space.make_room()
    spare(space)
    assert space.make_room()
    assert not space.make_room()


def test_change_of_the_mount_table_removes_them(
    space: DirectoryLockspace, open_files: OpenFiles, locks: Path
) -> None:
    before = descriptors()
    spare(space)
    open_files.look_at_mounts()
    assert os.listdir(locks) == []
    assert descriptors() == before


@pytest.mark.interpreted
def test_path_that_has_become_slow_is_not_looked_at(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = descriptors()
    spare(space)
    with monkeypatch.context() as patch:
        patch.setattr(open_files.mounts, "is_slow_below", lambda directory: True)
        for name in ("stat", "lstat", "unlink"):
            patch.setattr(os, name, Failing(getattr(os, name), errno.EIO))
        open_files.look_at_mounts()
    assert descriptors() == before
    assert os.listdir(locks) == ["web1"]


@pytest.mark.interpreted
def test_file_on_a_slow_file_system_does_not_stay(
    locks: Path, open_files: OpenFiles
) -> None:
    class SlowLockspace(DirectoryLockspace):
        def anchor_is_slow(self, resource: str) -> bool:
            return True

    space = SlowLockspace("slow", str(locks), open_files)
    take(space)
    assert not space.put_aside("web1")
    close_all(space)
    assert os.listdir(locks) == []


def test_lockspace_that_retires_leaves_nothing(
    space: DirectoryLockspace, locks: Path
) -> None:
    before = descriptors()
    spare(space)
    space.retire()
    assert os.listdir(locks) == []
    assert descriptors() == before


# Copies of the descriptor: in flight, the file stays open for a while.


@pytest.mark.parametrize("end", ["its time", "a taken place", "a missing path"])
def test_copy_of_a_file_that_went_is_not_locked(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    clock: Clock,
    end: str,
) -> None:
    copy = os.dup(spare(space))
    (locks / "web1").rename(locks / "theirs")
    if end == "its time":
        grow_old(open_files, clock)
    elif end == "a taken place":
        (locks / "web1").touch()
        take(space)
    else:
        take(space)
    assert outside.lock(locks / "theirs")
    os.close(copy)


def test_copy_of_a_file_that_could_not_be_removed_is_not_locked(
    space: DirectoryLockspace,
    open_files: OpenFiles,
    locks: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = os.dup(spare(space))
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", Failing(os.unlink, errno.EROFS))
        open_files.spares.remove_all()
    assert outside.lock(locks / "web1")
    os.close(copy)


def put_another_there(space: DirectoryLockspace, locks: Path) -> None:
    (locks / "new").touch()
    (locks / "new").rename(locks / "web1")
    take(space)


ENDS: dict[str, Callable[[DirectoryLockspace, OpenFiles, Clock, Path], object]] = {
    "old": lambda space, files, clock, locks: grow_old(files, clock),
    "all": lambda space, files, clock, locks: files.spares.remove_all(),
    "deleted": lambda space, files, clock, locks: space.create_resource("web1"),
    "exchanged": lambda space, files, clock, locks: put_another_there(space, locks),
}


@pytest.mark.parametrize("end", ENDS)
def test_file_is_forgotten_before_its_number_is_free(
    locks: Path, clock: Clock, end: str
) -> None:
    seen: list[bool] = []
    fd = -1

    def forget(key: ResourceKey) -> None:
        seen.append(os.path.samestat(os.fstat(fd), status))

    files = OpenFiles(forget=forget, clock=clock)
    space = DirectoryLockspace("vms", str(locks), files)
    fd = spare(space)
    status = (locks / "web1").stat()
    ENDS[end](space, files, clock, locks)
    assert seen == [True]
    close_all(space)
    files.mounts.close()
