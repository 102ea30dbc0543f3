from typing import get_args

import pytest
from msgspec import ValidationError, convert

from lockd import term_types, terms
from lockd.client.arguments import checked
from lockd.errors import InvalidRequestError
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
    # As a snapshot has it.
    assert convert([SHARED], OutsideHolder) == OutsideHolder(SHARED)
    key = ResourceKey("a", "x")
    whole = OutsideHolder(SHARED, 1, "tar", key, "flock", 0, None)
    assert convert([SHARED, 1, "tar", ["a", "x"], "flock", 0], OutsideHolder) == whole
    with pytest.raises(ValidationError):
        convert([SHARED, "1"], OutsideHolder)
    with pytest.raises(ValidationError):
        convert(["half"], OutsideHolder)


def test_terms_that_are_types_are_here_too() -> None:
    for name in dir(term_types):
        if name[0].isupper() and name != "Literal":
            assert getattr(terms, name) is getattr(term_types, name)
    with pytest.raises(AttributeError, match=r"'lockd\.terms' has no attribute 'mode'"):
        terms.mode  # noqa: B018 (asked on purpose)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        *(("kind", "Kind"), ("mode", "Mode")),
        *(("on_disconnect", "OnDisconnect"), ("until", "Until")),
    ],
)
def test_client_takes_the_words_of_each_type(name: str, of: str) -> None:
    words = get_args(getattr(terms, of))
    for word in words:
        assert checked("a method", {name: word}) == {name: word}
    allowed = " or ".join(f'"{word}"' for word in words)
    with pytest.raises(InvalidRequestError) as refusal:
        checked("a method", {name: "no such word"})
    assert allowed in str(refusal.value)
