"""A lockspace that is anchored in nothing."""

import pytest

from lockd.errors import InvalidRequestError
from lockd.lockspaces.memory import MemoryLockspace


@pytest.fixture
def memory() -> MemoryLockspace:
    return MemoryLockspace("default", on_disconnect="kill")


def test_memory_lockspace_has_no_anchors(memory: MemoryLockspace) -> None:
    assert not memory.anchored
    assert not memory.anchor_is_slow("backup")
    with pytest.raises(AssertionError):
        memory.open_anchor("backup", "shared", create=None, in_use=False)
    with pytest.raises(AssertionError):
        memory.close_anchor("backup")
    memory.finish()


def test_memory_lockspace_has_no_files(memory: MemoryLockspace) -> None:
    with pytest.raises(InvalidRequestError, match="'default' has no files to create"):
        memory.create_resource("backup")
    with pytest.raises(InvalidRequestError, match="'default' has no files to create"):
        memory.delete_resource("backup")


def test_names_may_have_slashes_where_there_are_no_files(
    memory: MemoryLockspace,
) -> None:
    memory.check_name("user/1000/backup")
    with pytest.raises(InvalidRequestError):
        memory.check_name("a\nb")


def test_lockspace_says_what_it_is(memory: MemoryLockspace) -> None:
    assert repr(memory) == "<MemoryLockspace 'default'>"
    assert memory.on_disconnect == "kill"
    assert memory.path is None
