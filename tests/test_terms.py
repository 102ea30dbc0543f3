import pytest

from lockd.terms import (
    DEFAULT_LOCKSPACE,
    DIRECT_LOCKSPACE,
    EXCLUSIVE,
    SHARED,
    OutsideHolder,
    ResourceKey,
)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ResourceKey(DEFAULT_LOCKSPACE, "backup"), "backup"),
        (ResourceKey(DIRECT_LOCKSPACE, "/var/lib/vm.img"), "/var/lib/vm.img"),
        (ResourceKey("images", "vm"), "images:vm"),
        (ResourceKey("images", "a:b"), "images:a:b"),
    ],
)
def test_key_reads_as_people_write_it(key: ResourceKey, text: str) -> None:
    assert str(key) == text


def test_same_name_in_two_lockspaces_is_two_resources() -> None:
    assert (
        len({ResourceKey("a", "x"), ResourceKey("b", "x"), ResourceKey("a", "x")}) == 2
    )


def test_modes_are_the_words_of_the_wire() -> None:
    assert (EXCLUSIVE, SHARED) == ("exclusive", "shared")


def test_outside_holder_may_be_unknown() -> None:
    assert OutsideHolder(SHARED) == (SHARED, *[None] * 6)
