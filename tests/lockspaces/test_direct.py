"""Files anywhere that are locked themselves."""

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from lockd.errors import (
    AnchorError,
    BusyError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
)
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.rights import User
from lockd.terms import EXCLUSIVE, SHARED, Mode, OutsideHolder
from lockspaces.conftest import close_all
from support.outside import (
    QEMU_READS,
    QEMU_WRITES,
    SQLITE_SHARED,
    Outside,
    flags_of,
    nobody,
)
from support.rights import needs_root
from support.wire_client import NOBODY


def open_anchor(
    space: DirectLockspace,
    path: Path,
    mode: Mode = EXCLUSIVE,
    *,
    create: bool | None = None,
    in_use: bool = False,
    user: User | None = None,
    only_byte: bool = False,
    whole: bool = False,
) -> None:
    space.open_anchor(
        str(path),
        mode,
        create=create,
        in_use=in_use,
        user=user,
        only_byte=only_byte,
        whole=whole,
    )


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_file_itself_is_locked(
    direct: DirectLockspace, image: Path, outside: Outside, mode: Mode
) -> None:
    open_anchor(direct, image, mode)
    assert outside.probe(image) == (mode, -1)
    (flags,) = flags_of(image)
    # O_NONBLOCK: reading a FIFO or a tape that took its place must not block.
    assert flags & os.O_CLOEXEC
    assert flags & os.O_NONBLOCK


def test_file_stays_as_it_is(direct: DirectLockspace, image: Path) -> None:
    open_anchor(direct, image)
    direct.close_anchor(str(image))
    assert image.read_bytes() == b"precious"


def test_files_are_never_made(direct: DirectLockspace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        open_anchor(direct, tmp_path / "new", create=True)
    with pytest.raises(NotFoundError, match="does not exist"):
        open_anchor(direct, tmp_path / "new")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_anchor(direct, tmp_path / "no" / "new")
    with pytest.raises(InvalidRequestError, match="has no files to create"):
        direct.create_resource(str(tmp_path / "new"))
    with pytest.raises(InvalidRequestError, match="has no files to create"):
        direct.delete_resource(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_is_under_a_file_does_not_exist(
    direct: DirectLockspace, image: Path
) -> None:
    with pytest.raises(NotFoundError):
        open_anchor(direct, image / "partition")


def test_symbolic_link_is_to_be_resolved_by_who_asks(
    direct: DirectLockspace, image: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    with pytest.raises(InvalidRequestError, match="symbolic link: resolve it first"):
        open_anchor(direct, link)


@pytest.mark.parametrize("target", ["there", "nowhere", "itself"])
def test_link_on_the_way_is_refused_and_not_followed(
    direct: DirectLockspace, image: Path, tmp_path: Path, target: str
) -> None:
    targets = {"there": str(image.parent), "nowhere": "/proc/no", "itself": "link"}
    (tmp_path / "link").symlink_to(targets[target])
    with pytest.raises(InvalidRequestError, match="through a symbolic link, 'link': "):
        open_anchor(direct, tmp_path / "link" / image.name)


def test_directory_that_becomes_a_link_is_not_followed_any_more(
    direct: DirectLockspace, tmp_path: Path
) -> None:
    """Neither by who locks next nor by who lets go."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.img").touch()
    open_anchor(direct, tmp_path / "a" / "x.img")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(AnchorError, match="exchanged or removed"):
        open_anchor(direct, tmp_path / "a" / "x.img", in_use=True)
    with pytest.raises(InvalidRequestError, match="through a symbolic link"):
        open_anchor(direct, tmp_path / "a" / "x.img")


@pytest.mark.parametrize(
    ("kind", "why"),
    [("fifo", "neither a regular file nor"), ("link", "symbolic link")],
)
@pytest.mark.interpreted
def test_what_was_looked_at_is_what_is_opened(
    direct: DirectLockspace,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    why: str,
) -> None:
    """Whatever has its name when it is opened."""
    new = tmp_path / "new"
    os.mkfifo(new) if kind == "fifo" else new.symlink_to("/dev/null")
    real = direct._check_status

    def exchange(status: os.stat_result, path: str) -> None:
        real(status, path)
        if os.path.lexists(new):
            os.rename(new, image)

    monkeypatch.setattr(direct, "_check_status", exchange)
    with pytest.raises(InvalidRequestError, match=why):
        open_anchor(direct, image)


@pytest.mark.parametrize("name", ["epoch", "epoch.lock"])
def test_files_of_the_daemon_itself_cannot_be_locked(
    direct: DirectLockspace, open_files: OpenFiles, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    status = tmp_path.stat()
    open_files.private.add((status.st_dev, status.st_ino))
    with pytest.raises(InvalidRequestError, match="is lockd's own"):
        open_anchor(direct, tmp_path / name)


@pytest.mark.parametrize("deeper", [1, 20])
@pytest.mark.parametrize(
    ("user", "most"), [(None, 2), (User(os.geteuid(), frozenset([os.getegid()])), 3)]
)
def test_way_is_gone_once_to_look_once_to_open_and_once_after(
    direct: DirectLockspace,
    public_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deeper: int,
    user: User | None,
    most: int,
) -> None:
    """Each name takes system calls for which everybody waits."""
    image = public_path.joinpath(*["a"] * deeper, "x.img")
    image.parent.mkdir(parents=True, mode=0o755)
    image.touch()
    real_open, opened = os.open, 0

    def count(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        nonlocal opened
        opened += 1
        return real_open(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", count)
    if user is not None:
        direct.check_user(str(image), EXCLUSIVE, user)
    open_anchor(direct, image, user=user)
    depth = str(image).count("/")
    # The root is one more each time, and the file is opened and only looked at after.
    assert opened <= most * (depth + 1)


# Programs that lock the file without lockd.


def stopped_by(direct: DirectLockspace, image: Path, mode: Mode) -> OutsideHolder:
    with pytest.raises(BusyError, match="is locked from outside lockd") as refusal:
        open_anchor(direct, image, mode)
    found = refusal.value.facts["outside"]
    assert isinstance(found, OutsideHolder)
    return found


def test_first_holder_is_refused_a_file_that_others_have_locked_anywhere(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.qemu(image, QEMU_WRITES)
    for mode in (EXCLUSIVE, SHARED):
        assert stopped_by(direct, image, mode).by == "qemu"
    outside.close(image)
    assert outside.flock(image, SHARED)
    assert stopped_by(direct, image, EXCLUSIVE).by == "flock"
    open_anchor(direct, image, SHARED)


def test_file_that_is_refused_is_left_to_the_other(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.qemu(image, QEMU_READS)
    stopped_by(direct, image, EXCLUSIVE)
    assert outside.lock(image, EXCLUSIVE)
    assert outside.flock(image)


def test_command_of_a_holder_may_lock_the_file(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    """So who joins it, and who converts, looks for nothing."""
    open_anchor(direct, image, SHARED)
    outside.qemu(image, QEMU_WRITES)
    assert outside.flock(image)
    open_anchor(direct, image, SHARED, in_use=True)
    open_anchor(direct, image, EXCLUSIVE, in_use=True)
    open_anchor(direct, image, SHARED, in_use=True)


@pytest.mark.parametrize("before", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize("after", [EXCLUSIVE, SHARED])
def test_next_holder_looks_too_and_leaves_the_anchor_as_it_is(
    direct: DirectLockspace, image: Path, outside: Outside, before: Mode, after: Mode
) -> None:
    """What the command of the one before left behind has the file still."""
    open_anchor(direct, image, before)
    outside.qemu(image, QEMU_WRITES)
    assert stopped_by(direct, image, after).by == "qemu"
    assert outside.probe(image) == (before, -1)


def test_libvirt_may_have_a_file_that_its_guest_has_locked(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.qemu(image, QEMU_WRITES)
    open_anchor(direct, image, only_byte=True)
    assert outside.probe(image) == (EXCLUSIVE, -1)


def test_lockspace_may_heed_the_first_byte_only(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.qemu(image, QEMU_WRITES)
    direct.heed("byte")
    open_anchor(direct, image)
    direct.close_anchor(str(image))
    direct.heed("file")
    stopped_by(direct, image, EXCLUSIVE)


def test_file_of_the_successor_is_not_looked_at(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    """The locks on it may be of the holder's own command."""
    open_anchor(direct, image)
    fd, made = direct.dump_file(str(image))
    outside.qemu(image, QEMU_WRITES)
    direct.disown_file(str(image))
    direct.adopt_file(str(image), fd, made=made, mode=EXCLUSIVE)
    assert outside.probe(image) == (EXCLUSIVE, -1)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOLCK])
@pytest.mark.parametrize("call", ["fcntl", "flock"])
def test_file_that_cannot_be_looked_at_is_refused(
    direct: DirectLockspace,
    image: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    call: str,
) -> None:
    real = getattr(fcntl, call)

    def fail(fd: int, command: int, *rest: bytes) -> object:
        if call == "flock" or command == fcntl.F_OFD_GETLK:
            raise OSError(error, os.strerror(error))
        return real(fd, command, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, call, fail)
        with pytest.raises(AnchorError, match=os.strerror(error)):
            open_anchor(direct, image)
    assert outside.lock(image)


def test_lease_is_somebody_who_has_the_file(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.lease(image, EXCLUSIVE)
    for mode in (EXCLUSIVE, SHARED):
        with pytest.raises(BusyError, match="is under a lease") as refusal:
            open_anchor(direct, image, mode)
        assert refusal.value.facts["outside"] == OutsideHolder(EXCLUSIVE, by="lease")
    outside.close(image)
    open_anchor(direct, image)


def test_lease_against_writers_leaves_the_file_to_readers(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    outside.lease(image, SHARED)
    with pytest.raises(BusyError, match="is under a lease"):
        open_anchor(direct, image, EXCLUSIVE)
    assert outside.leased(image) == "none"
    open_anchor(direct, image, SHARED)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_lease_against_writers_is_kept_on_what_is_not_opened_for_writing(
    direct: DirectLockspace, image: Path, outside: Outside, mode: Mode
) -> None:
    """Its holder asked to hear of who writes. Whoever locks does not write yet."""
    image.chmod(0o755)
    outside.lease(image, SHARED)
    open_anchor(direct, image, mode)
    assert outside.leased(image) == "shared"
    with pytest.raises(BlockingIOError):
        os.open(image, os.O_WRONLY | os.O_NONBLOCK)
    assert outside.leased(image) == "none"


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_lease_against_all_is_in_the_way_of_executables_too(
    direct: DirectLockspace, image: Path, outside: Outside, mode: Mode
) -> None:
    image.chmod(0o755)
    outside.lease(image, EXCLUSIVE)
    with pytest.raises(BusyError, match="is under a lease"):
        open_anchor(direct, image, mode)


# Files that are locked whole.


def check_whole(outside: Outside, image: Path, mode: Mode) -> None:
    """Checks that nobody outside gets more than a shared lock allows."""
    for start, length in ((0, 1), (7, 1), (100, 2), SQLITE_SHARED):
        shares = outside.lock(image, SHARED, "ofd", start, length)
        assert shares == (mode == SHARED)
        if shares:
            assert outside.lock(image, "none", "ofd", start, length)
        assert not outside.lock(image, EXCLUSIVE, "ofd", start, length)
    assert not outside.flock(image, EXCLUSIVE)


def check_first_byte_only(outside: Outside, image: Path, mode: Mode) -> None:
    assert not outside.lock(image, EXCLUSIVE)
    assert outside.lock(image, SHARED) == (mode == SHARED)
    assert outside.lock(image, EXCLUSIVE, "ofd", 1, 0)
    assert outside.lock(image, "none", "ofd", 1, 0)
    assert outside.flock(image, EXCLUSIVE)
    outside.flock(image, "none")
    outside.close(image)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_whole_file_keeps_out_who_comes_later(
    direct: DirectLockspace, image: Path, outside: Outside, mode: Mode
) -> None:
    open_anchor(direct, image, mode, whole=True)
    check_whole(outside, image, mode)
    assert outside.flock(image, SHARED) == (mode == SHARED)
    outside.close(image)
    direct.close_anchor(str(image))
    assert outside.lock(image, EXCLUSIVE, "ofd", 0, 0)
    assert outside.flock(image, EXCLUSIVE)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize(
    ("locks", "stops"),
    [
        (lambda o, i: o.qemu(i, QEMU_WRITES), (EXCLUSIVE, SHARED)),
        (lambda o, i: o.qemu(i, QEMU_READS), (EXCLUSIVE,)),
        (lambda o, i: o.lock(i, SHARED, "ofd", 0, 2), (EXCLUSIVE, SHARED)),
        (lambda o, i: o.lock(i, EXCLUSIVE, "posix", 7, 1), (EXCLUSIVE, SHARED)),
        (lambda o, i: o.flock(i, EXCLUSIVE), (EXCLUSIVE, SHARED)),
        (lambda o, i: o.flock(i, SHARED), (EXCLUSIVE,)),
    ],
    ids=["QEMU writes", "QEMU reads", "a mark", "a byte", "flock", "flock -s"],
)
def test_whole_file_is_refused_while_anybody_has_a_part(
    direct: DirectLockspace,
    image: Path,
    outside: Outside,
    locks: Callable[[Outside, Path], object],
    stops: tuple[Mode, ...],
    mode: Mode,
) -> None:
    """Nothing is left of a try: another program can have the rest."""
    locks(outside, image)
    # In a lockspace that heeds the first byte only, too.
    direct.heed("byte")
    assert is_refused(direct, image, mode, whole=True) == (mode in stops)
    direct.close_anchor(str(image))
    other = Outside()
    assert other.lock(image, SHARED, "ofd", 300, 1)
    other.kill()


def test_whole_file_is_shared_with_others_who_share_it(
    direct: DirectLockspace, second: DirectLockspace, image: Path
) -> None:
    open_anchor(direct, image, SHARED, whole=True)
    assert not is_refused(second, image, SHARED)
    second.close_anchor(str(image))
    assert not is_refused(second, image, SHARED, whole=True)
    assert is_refused(direct, image, EXCLUSIVE, in_use=True)


def test_whole_file_stays_so_while_it_is_in_use(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    open_anchor(direct, image, whole=True)
    open_anchor(direct, image, SHARED, in_use=True)
    check_whole(outside, image, SHARED)
    open_anchor(direct, image, SHARED, in_use=True)
    check_whole(outside, image, SHARED)
    outside.close(image)
    # Who is left did not ask for it.
    open_anchor(direct, image, EXCLUSIVE, in_use=True)
    check_first_byte_only(outside, image, EXCLUSIVE)


def test_sharer_makes_the_file_whole_or_changes_nothing(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    open_anchor(direct, image, SHARED)
    assert outside.flock(image)
    assert is_refused(direct, image, SHARED, in_use=True, whole=True)
    outside.flock(image, "none")
    check_first_byte_only(outside, image, SHARED)
    open_anchor(direct, image, SHARED, in_use=True, whole=True)
    check_whole(outside, image, SHARED)


@pytest.mark.parametrize("before", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize("after", [EXCLUSIVE, SHARED])
def test_next_holder_gets_the_file_as_whole_as_he_asks(
    direct: DirectLockspace, image: Path, outside: Outside, before: Mode, after: Mode
) -> None:
    open_anchor(direct, image, before, whole=True)
    open_anchor(direct, image, after)
    check_first_byte_only(outside, image, after)
    open_anchor(direct, image, before, whole=True)
    open_anchor(direct, image, after, whole=True)
    check_whole(outside, image, after)
    outside.close(image)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize("whole", [True, False])
def test_successor_finds_out_from_the_kernel_whether_it_is_whole(
    direct: DirectLockspace, image: Path, outside: Outside, mode: Mode, whole: bool
) -> None:
    open_anchor(direct, image, mode, whole=whole)
    fd, made = direct.dump_file(str(image))
    direct.disown_file(str(image))
    direct.adopt_file(str(image), fd, made=made, mode=mode)
    if whole:
        check_whole(outside, image, mode)
        outside.close(image)
        open_anchor(direct, image, SHARED, in_use=True)
        check_whole(outside, image, SHARED)
        outside.close(image)
    else:
        check_first_byte_only(outside, image, mode)
    direct.close_anchor(str(image))
    assert outside.lock(image, EXCLUSIVE, "ofd", 0, 0)
    assert outside.flock(image)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_program_cannot_be_locked_whole(
    direct: DirectLockspace, script: Path, outside: Outside, mode: Mode
) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be locked whole"):
        open_anchor(direct, script, mode, whole=True)
    assert outside.lock(script)


@pytest.mark.parametrize("call", ["fcntl", "flock"])
def test_whole_lock_that_fails_leaves_nothing(
    direct: DirectLockspace,
    image: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    real = getattr(fcntl, call)

    def fail(fd: int, command: int, *rest: bytes) -> object:
        if command in (fcntl.F_OFD_GETLK, fcntl.LOCK_SH | fcntl.LOCK_NB):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(fd, command, *rest)

    open_anchor(direct, image, SHARED)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, call, fail)
        with pytest.raises(AnchorError, match=os.strerror(errno.ESTALE)):
            open_anchor(direct, image, SHARED, in_use=True, whole=True)
    check_first_byte_only(outside, image, SHARED)


@pytest.mark.interpreted
def test_flock_is_left_alone_on_a_network_file_system(
    direct: DirectLockspace,
    image: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There it may be the same lock as that of fcntl."""
    monkeypatch.setattr(direct, "anchor_is_slow", lambda resource: True)
    monkeypatch.delattr(fcntl, "flock")
    open_anchor(direct, image, whole=True)
    open_anchor(direct, image, SHARED, in_use=True)
    open_anchor(direct, image, EXCLUSIVE)
    assert not outside.lock(image)
    direct.close_anchor(str(image))
    assert outside.lock(image)


# Users who are no admins.


@needs_root
@pytest.mark.parametrize(
    ("mode", "directory_mode", "allowed"),
    [
        (0o600, 0o755, ()),
        (0o604, 0o755, (SHARED,)),
        (0o602, 0o755, (EXCLUSIVE,)),
        (0o606, 0o755, (SHARED, EXCLUSIVE)),
        (0o606, 0o744, ()),  # he cannot get there
        (0o606, 0o711, (SHARED, EXCLUSIVE)),
    ],
)
def test_user_locks_what_he_could_lock_himself(
    direct: DirectLockspace,
    public_path: Path,
    mode: int,
    directory_mode: int,
    allowed: tuple[Mode, ...],
) -> None:
    place = public_path / "place"
    place.mkdir()
    image = place / "a.img"
    image.touch()
    image.chmod(mode)
    place.chmod(directory_mode)
    user = User(NOBODY, frozenset([NOBODY]))
    modes: tuple[Mode, ...] = (SHARED, EXCLUSIVE)
    for wanted in modes:
        refused = pytest.raises(DeniedError, match=f"uid {NOBODY} may not ")
        with nullcontext() if wanted in allowed else refused:
            direct.check_user(str(image), wanted, user)
        with nullcontext() if wanted in allowed else refused:
            open_anchor(direct, image, wanted, user=user)
        direct.close_anchor(str(image))


@needs_root
def test_user_who_follows_a_holder_needs_a_right_of_his_own(
    direct: DirectLockspace, public_path: Path
) -> None:
    """To join it, to convert, and to have its anchor after it."""
    image = public_path / "a.img"
    image.touch(mode=0o644)
    user = User(NOBODY, frozenset())
    open_anchor(direct, image, SHARED, user=user)
    with pytest.raises(DeniedError, match="may not write to the file"):
        open_anchor(direct, image, EXCLUSIVE, in_use=True, user=user)
    open_anchor(direct, image, EXCLUSIVE, in_use=True)
    image.chmod(0o600)
    with pytest.raises(DeniedError, match="may not read the file"):
        open_anchor(direct, image, SHARED, user=user)


def test_hard_link_to_a_locked_file_is_busy_and_names_the_other(
    direct: DirectLockspace, image: Path, tmp_path: Path, outside: Outside
) -> None:
    other = tmp_path / "other.img"
    os.link(image, other)
    open_anchor(direct, image, SHARED)
    with pytest.raises(BusyError) as refusal:
        open_anchor(direct, other, SHARED)
    assert f"is locked under another name, '{image}': " in str(refusal.value)
    assert not outside.lock(other)
    direct.close_anchor(str(image))
    open_anchor(direct, other)


def test_lock_file_of_another_lockspace_is_busy_and_nothing_of_that_is_named(
    direct: DirectLockspace, space: DirectoryLockspace, locks: Path
) -> None:
    space.open_anchor("web1", EXCLUSIVE, create=None, in_use=False)
    with pytest.raises(BusyError, match=r"another name, in another lockspace: "):
        open_anchor(direct, locks / "web1")


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory"])
def test_what_is_no_file_or_disk_is_refused(
    direct: DirectLockspace, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / kind
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            listener.bind(str(path))
        with pytest.raises(InvalidRequestError, match="neither a regular file nor"):
            open_anchor(direct, path)


def test_root_directory_is_refused_as_what_it_is(direct: DirectLockspace) -> None:
    with pytest.raises(InvalidRequestError, match="neither a regular file nor"):
        open_anchor(direct, Path("/"))


def test_character_device_is_refused_without_being_opened(
    direct: DirectLockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def no_open(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        assert flags & os.O_PATH, "a device was opened"
        return real_open(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", no_open)
    with pytest.raises(InvalidRequestError, match="neither a regular file nor"):
        open_anchor(direct, Path("/dev/null"))


# Files that are open for reading only: they are marked.


@pytest.fixture
def script(public_path: Path) -> Path:
    """A program that may be executed while it is locked."""
    script = public_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


@pytest.fixture
def second() -> Iterator[DirectLockspace]:
    """The lockspace of a second daemon."""
    files = OpenFiles()
    space = DirectLockspace("direct", files)
    yield space
    close_all(space)
    files.mounts.close()


def is_refused(
    space: DirectLockspace,
    path: Path,
    mode: Mode,
    *,
    in_use: bool = False,
    only_byte: bool = False,
    whole: bool = False,
) -> bool:
    """Returns whether a lock is busy, which leaves everything as it is."""
    try:
        open_anchor(space, path, mode, in_use=in_use, only_byte=only_byte, whole=whole)
    except BusyError as error:
        found = error.facts["outside"]
        assert isinstance(found, OutsideHolder)
        return True
    return False


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_program_can_be_executed_while_it_is_locked(
    direct: DirectLockspace, script: Path, mode: Mode
) -> None:
    open_anchor(direct, script, mode)
    assert subprocess.run([script], check=False).returncode == 0


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_program_that_runs_can_be_locked(
    direct: DirectLockspace, public_path: Path, mode: Mode
) -> None:
    program = public_path / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        with pytest.raises(OSError, match="Text file busy"):
            program.open("r+")
        open_anchor(direct, program, mode)
        program.chmod(0o644)
        direct.close_anchor(str(program))
        open_anchor(direct, program, mode)
        running.kill()


@pytest.mark.parametrize("only_byte", [False, True])
@pytest.mark.parametrize("writable", [(), ("first",), ("second",)])
@pytest.mark.parametrize(
    ("held", "wanted", "refused"),
    [
        (EXCLUSIVE, EXCLUSIVE, True),
        (EXCLUSIVE, SHARED, True),
        (SHARED, EXCLUSIVE, True),
        (SHARED, SHARED, False),
    ],
)
def test_two_daemons_exclude_each_other_on_a_program(
    direct: DirectLockspace,
    second: DirectLockspace,
    script: Path,
    held: Mode,
    wanted: Mode,
    refused: bool,
    writable: tuple[str, ...],
    only_byte: bool,
) -> None:
    """Also if one of them has it open for writing, because the x bit came or went."""
    script.chmod(0o644 if "first" in writable else 0o755)
    open_anchor(direct, script, held, only_byte=only_byte)
    script.chmod(0o644 if "second" in writable else 0o755)
    for _ in range(2):
        assert is_refused(second, script, wanted, only_byte=only_byte) == refused
    second.close_anchor(str(script))
    direct.close_anchor(str(script))
    open_anchor(second, script, wanted, only_byte=only_byte)


def test_mark_goes_up_and_down_without_a_gap(
    direct: DirectLockspace, second: DirectLockspace, script: Path, outside: Outside
) -> None:
    open_anchor(direct, script, SHARED)
    open_anchor(second, script, SHARED)
    # The upgrade is refused, and both still share it.
    assert is_refused(direct, script, EXCLUSIVE, in_use=True)
    assert not outside.lock(script)
    second.close_anchor(str(script))
    open_anchor(direct, script, EXCLUSIVE, in_use=True)
    assert is_refused(second, script, SHARED)
    open_anchor(direct, script, SHARED, in_use=True)
    open_anchor(second, script, SHARED)
    assert is_refused(second, script, EXCLUSIVE, in_use=True)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_virtlockd_and_a_marked_file(
    direct: DirectLockspace, script: Path, outside: Outside, mode: Mode
) -> None:
    """Its exclusive lock notices a mark; its shared lock is noticed if it was there."""
    open_anchor(direct, script, mode)
    assert not outside.lock(script, EXCLUSIVE)
    direct.close_anchor(str(script))
    assert outside.lock(script, SHARED)
    assert is_refused(direct, script, mode, only_byte=True) == (mode == EXCLUSIVE)


def test_reader_of_the_whole_file_marks_nothing(
    direct: DirectLockspace, script: Path, outside: Outside
) -> None:
    assert outside.lock(script, SHARED, "ofd", 0, 0)
    open_anchor(direct, script, SHARED)
    assert is_refused(direct, script, EXCLUSIVE, in_use=True)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_mark_is_dropped_if_nobody_can_look_for_others(
    direct: DirectLockspace,
    script: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    real = fcntl.fcntl

    def fail(fd: int, command: int, *rest: bytes) -> object:
        if command == fcntl.F_OFD_GETLK:
            raise OSError(error, os.strerror(error))
        return real(fd, command, *rest)

    open_anchor(direct, script, SHARED)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", fail)
        with pytest.raises(AnchorError, match=os.strerror(error)):
            open_anchor(direct, script, EXCLUSIVE, in_use=True)
    assert not outside.lock(script, EXCLUSIVE)
    assert outside.lock(script, SHARED)


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_successor_keeps_a_mark_that_somebody_tries_to_get_past(
    direct: DirectLockspace, script: Path, outside: Outside, mode: Mode
) -> None:
    """Another daemon that wants it marks it for a moment, before it backs off."""
    open_anchor(direct, script, mode)
    fd, made = direct.dump_file(str(script))
    assert outside.lock(script, SHARED, "ofd", 0, 2)
    direct.disown_file(str(script))
    direct.adopt_file(str(script), fd, made=made, mode=mode)
    outside.close(script)
    assert not outside.lock(script, EXCLUSIVE)
    open_anchor(direct, script, EXCLUSIVE, in_use=True)
    open_anchor(direct, script, SHARED, in_use=True)


_RACER = """
import os, sys
from lockd.errors import BusyError
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.open_files import OpenFiles

path, mode, place = sys.argv[1:]
space, alone = DirectLockspace("direct", OpenFiles()), mode == "exclusive"
got = 0
print("ready", flush=True)
sys.stdin.readline()
while got < 300:
    try:
        space.open_anchor(path, mode, create=None, in_use=False)
    except BusyError:
        continue
    got += 1
    mine = f"{place}/{mode}-{os.getpid()}"
    os.close(os.open(mine, os.O_CREAT))
    others = [x for x in os.listdir(place) if not mine.endswith(x)]
    assert not (others if alone else [x for x in others if "exclusive" in x]), others
    os.unlink(mine)
    space.close_anchor(path)
"""


@pytest.mark.parametrize("other", [EXCLUSIVE, SHARED])
def test_racers_for_a_program_never_both_win(
    script: Path, tmp_path: Path, other: Mode
) -> None:
    place = tmp_path / "witness"
    place.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, script, mode, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mode in (EXCLUSIVE, other)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=100)
        assert racer.returncode == 0


@needs_root
def test_read_only_file_is_marked(
    direct: DirectLockspace,
    second: DirectLockspace,
    public_path: Path,
    outside: Outside,
) -> None:
    image = public_path / "golden.img"
    image.touch(mode=0o644)
    with nobody():
        open_anchor(direct, image)
        assert is_refused(second, image, SHARED)
        assert not outside.lock(image)
        open_anchor(direct, image, SHARED, in_use=True)
        open_anchor(second, image, SHARED)


@needs_root
def test_unreadable_file_is_denied(direct: DirectLockspace, public_path: Path) -> None:
    image = public_path / "secret.img"
    image.touch(mode=0o600)
    with nobody(), pytest.raises(DeniedError, match="Permission denied"):
        open_anchor(direct, image, SHARED)


def test_exchanged_file_is_refused_to_who_joins_its_holders(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    open_anchor(direct, image, SHARED)
    outside.exchange(image)
    with pytest.raises(AnchorError, match="exchanged or removed while locked"):
        open_anchor(direct, image, SHARED, in_use=True)


def test_next_holder_gets_the_file_that_is_there_now(
    direct: DirectLockspace, image: Path, outside: Outside
) -> None:
    open_anchor(direct, image)
    outside.exchange(image)
    open_anchor(direct, image)
    assert outside.probe(image) == (EXCLUSIVE, -1)


def test_removed_file_can_still_be_let_go(direct: DirectLockspace, image: Path) -> None:
    open_anchor(direct, image)
    image.unlink()
    with pytest.raises(NotFoundError):
        open_anchor(direct, image)
    # The engine still has this anchor open, and closes it now that nobody follows.
    direct.close_anchor(str(image))
    direct.finish()
