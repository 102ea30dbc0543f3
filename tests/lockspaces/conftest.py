import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.lockspaces.direct import DirectLockspace
from lockd.lockspaces.directory import DirectoryLockspace
from lockd.lockspaces.files import FileLockspace
from lockd.lockspaces.open_files import OpenFiles
from support.processes import descriptors

NewSpace = Callable[..., DirectoryLockspace]


@pytest.fixture(autouse=True)
def _no_descriptor_is_leaked() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def open_files(_no_descriptor_is_leaked: None) -> Iterator[OpenFiles]:
    yield from until_closed(OpenFiles())


def until_closed(files: OpenFiles) -> Iterator[OpenFiles]:
    """Lends the state of lockspaces, and expects all of them closed at the end."""
    yield files
    files.mounts.close()
    assert not files.by_inode
    assert not len(files.spares)


@pytest.fixture
def space(locks: Path, open_files: OpenFiles) -> Iterator[DirectoryLockspace]:
    """A lockspace on that directory."""
    space = DirectoryLockspace("vms", str(locks), open_files)
    yield space
    close_all(space)


@pytest.fixture
def direct(open_files: OpenFiles) -> Iterator[DirectLockspace]:
    space = DirectLockspace("direct", open_files)
    yield space
    close_all(space)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach, unlike `tmp_path`."""
    path = Path(tempfile.mkdtemp(prefix="lockd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def close_all(space: FileLockspace) -> None:
    for resource in list(space._files):
        space.close_anchor(resource)
    space.retire()
