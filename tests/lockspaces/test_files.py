"""What happens between two system calls, and when one of them fails."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from lockd.errors import (
    AnchorError,
    BusyError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.files import MAX_RACES, FileLockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.rights import User
from lockd.terms import EXCLUSIVE, SHARED, Create, Mode
from lockspaces.conftest import close_all
from support.outside import Outside
from support.processes import descriptors


class RacedLockspace(DirectoryLockspace):
    """Lets something happen between the opening of a file and its locking."""

    happens: Callable[[], object]
    opened = 0

    def _open(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> tuple[int, bool, bool]:
        opened = super()._open(path, mode, create, user)
        self.opened += 1
        self.happens()
        return opened


@pytest.fixture
def raced(locks: Path, open_files: OpenFiles) -> RacedLockspace:
    return RacedLockspace("raced", str(locks), open_files)


def take(space: FileLockspace, resource: str, *, create: Create = None) -> None:
    space.open_anchor(resource, EXCLUSIVE, create=create, in_use=False)


def once(action: Callable[[], object]) -> Callable[[], object]:
    actions = [action]
    return lambda: actions.pop()() if actions else None


# Races.


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.interpreted
def test_file_removed_before_it_is_locked_is_made_anew(
    raced: RacedLockspace, locks: Path, outside: Outside, existed: bool
) -> None:
    if existed:
        (locks / "web1").touch()
    raced.happens = once(lambda: outside.unlink(locks / "web1"))
    take(raced, "web1")
    assert raced.opened == 2
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)
    close_all(raced)
    assert not (locks / "web1").exists()


@pytest.mark.interpreted
def test_file_exchanged_before_it_is_locked_is_opened_anew(
    raced: RacedLockspace, locks: Path, outside: Outside
) -> None:
    raced.happens = once(lambda: outside.exchange(locks / "web1"))
    take(raced, "web1")
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)
    close_all(raced)
    assert (locks / "web1").exists()


@pytest.mark.interpreted
def test_file_removed_before_it_is_locked_is_not_made_against_the_callers_will(
    raced: RacedLockspace, locks: Path, outside: Outside
) -> None:
    (locks / "web1").touch()
    raced.happens = once(lambda: outside.unlink(locks / "web1"))
    with pytest.raises(NotFoundError):
        take(raced, "web1", create=False)
    assert not list(locks.iterdir())


@pytest.mark.interpreted
def test_file_that_somebody_else_locks_and_removes_is_busy_then_new(
    raced: RacedLockspace, locks: Path, outside: Outside
) -> None:
    # As virtlockd does when the last holder of an AUTOCREATE resource goes.
    (locks / "web1").touch()
    outside.lock(locks / "web1")
    raced.happens = once(lambda: outside.unlink(locks / "web1"))
    with pytest.raises(BusyError):
        take(raced, "web1")
    take(raced, "web1")
    assert (locks / "web1").exists()
    close_all(raced)


@pytest.mark.interpreted
def test_new_file_that_somebody_else_locks_first_is_left_to_them(
    raced: RacedLockspace, locks: Path, outside: Outside
) -> None:
    raced.happens = once(lambda: outside.lock(locks / "web1"))
    with pytest.raises(BusyError):
        take(raced, "web1")
    assert (locks / "web1").exists()


@pytest.mark.interpreted
def test_file_that_is_exchanged_for_ever_is_given_up(
    raced: RacedLockspace, locks: Path, outside: Outside
) -> None:
    raced.happens = lambda: outside.exchange(locks / "web1")
    with pytest.raises(AnchorError, match="exchanged again and again"):
        take(raced, "web1")
    assert raced.opened == MAX_RACES


def test_file_that_comes_and_goes_is_given_up(
    space: DirectoryLockspace, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever looks finds nothing, whoever makes it finds it there.
    monkeypatch.setattr(os, "open", Failing(os.open, errno.EEXIST))
    with pytest.raises(AnchorError, match="comes and goes"):
        take(space, "web1")


def test_exchanged_file_stays_open_when_its_successor_is_refused(
    space: DirectoryLockspace, locks: Path, outside: Outside
) -> None:
    (locks / "web1").touch()
    take(space, "web1")
    outside.exchange(locks / "web1")
    outside.lock(locks / "web1")
    with pytest.raises(BusyError):
        take(space, "web1")
    space.close_anchor("web1")
    space.finish()


@pytest.mark.interpreted
def test_descriptor_on_a_slow_file_system_is_not_left_for_the_loop_to_close(
    locks: Path, open_files: OpenFiles
) -> None:
    class SlowLockspace(DirectoryLockspace):
        def anchor_is_slow(self, resource: str) -> bool:
            return True

    space = SlowLockspace("slow", str(locks), open_files)
    (locks / "web1").touch()
    before = descriptors()
    take(space, "web1")
    space.close_anchor("web1")
    assert descriptors() == before


# System calls that fail.


class Failing:
    """A system call that fails with an error, from one call up to another."""

    def __init__(
        self,
        call: Callable[..., object],
        error: int,
        after: int = 0,
        before: int = sys.maxsize,
    ) -> None:
        self._call, self._error = call, error
        self._failing = range(after, before)
        self._calls = count()

    def __call__(self, *args: object) -> object:
        if next(self._calls) in self._failing:
            raise OSError(self._error, os.strerror(self._error))
        return self._call(*args)


LOCK_FAILURES = [
    (errno.ENOLCK, AnchorError),
    (errno.EIO, AnchorError),
    (errno.EINTR, AnchorError),
    (errno.ESTALE, AnchorError),
    (errno.ENOMEM, UnavailableError),
    (errno.EACCES, DeniedError),
]


@pytest.mark.parametrize(("error", "refusal"), LOCK_FAILURES)
def test_lock_that_fails_is_refused_with_the_systems_words(
    space: DirectoryLockspace,
    locks: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    refusal: type[RequestError],
) -> None:
    (locks / "web1").touch()
    before = descriptors()
    monkeypatch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, error))
    with pytest.raises(refusal, match=os.strerror(error)):
        take(space, "web1")
    assert descriptors() == before


OPEN_FAILURES = [
    (errno.EMFILE, UnavailableError),
    (errno.ENFILE, UnavailableError),
    (errno.EIO, AnchorError),
    (errno.EINTR, AnchorError),
    (errno.EROFS, DeniedError),
    (errno.EDQUOT, AnchorError),
    (errno.ENOSPC, AnchorError),
    (errno.EPERM, DeniedError),
    (errno.ELOOP, InvalidRequestError),
]


@pytest.mark.parametrize(("error", "refusal"), OPEN_FAILURES)
def test_open_that_fails_is_refused_with_the_systems_words(
    space: DirectoryLockspace,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    refusal: type[RequestError],
) -> None:
    monkeypatch.setattr(os, "open", Failing(os.open, error))
    with pytest.raises(refusal, match=os.strerror(error)):
        take(space, "web1")
    with pytest.raises(refusal, match=os.strerror(error)):
        space.create_resource("web1")


def test_file_made_for_a_lock_that_fails_is_removed(
    space: DirectoryLockspace, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, errno.ENOLCK, before=1))
    with pytest.raises(AnchorError):
        take(space, "web1")
    assert not list(locks.iterdir())


def test_file_made_for_a_lock_that_fails_is_left_when_it_cannot_be_locked(
    space: DirectoryLockspace, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    monkeypatch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, errno.ENOLCK))
    with pytest.raises(AnchorError):
        take(space, "web1")
    assert descriptors() == before
    assert (locks / "web1").exists()


def test_holder_outside_that_cannot_be_asked_for_is_not_named(
    space: DirectoryLockspace,
    locks: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (locks / "web1").touch()
    outside.lock(locks / "web1")
    monkeypatch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, errno.EIO, after=1))
    with pytest.raises(BusyError) as refusal:
        take(space, "web1")
    assert refusal.value.facts["outside"] is None


def test_file_whose_status_cannot_be_read_is_refused(
    direct: DirectLockspace, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", Failing(os.fstat, errno.ESTALE))
        with pytest.raises(AnchorError, match=os.strerror(errno.ESTALE)):
            take(direct, str(image))
    assert descriptors() == before


def test_failed_upgrade_leaves_the_lock(
    space: DirectoryLockspace,
    locks: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space.open_anchor("web1", SHARED, create=None, in_use=False)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, errno.ENOLCK))
        with pytest.raises(AnchorError, match="No locks available"):
            space.open_anchor("web1", EXCLUSIVE, create=None, in_use=True)
    assert outside.probe(locks / "web1") == (SHARED, -1)
    space.open_anchor("web1", EXCLUSIVE, create=None, in_use=True)
    assert outside.probe(locks / "web1") == (EXCLUSIVE, -1)


def test_file_that_cannot_be_unlocked_is_closed(
    space: DirectoryLockspace,
    locks: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (locks / "web1").touch()
    take(space, "web1")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", Failing(fcntl.fcntl, errno.EIO))
        space.close_anchor("web1")
    assert outside.lock(locks / "web1")


def test_file_that_cannot_be_removed_is_let_go(
    space: DirectoryLockspace,
    locks: Path,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take(space, "web1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", Failing(os.unlink, errno.EROFS))
        space.close_anchor("web1")
    assert outside.lock(locks / "web1")
