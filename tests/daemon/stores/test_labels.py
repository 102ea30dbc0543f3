"""A label says what a kept descriptor is, or that it cannot be read."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.daemon.stores import labels

PARTS: dict[str, tuple[Any, ...]] = {
    labels.FILE: ("images", "vm1", True),
    labels.CONNECTION: (7, "clients"),
    labels.PIDFD: (1,),
    labels.STUCK: ("images", "vm1", 8, 9),
}


@pytest.mark.parametrize("kind", PARTS)
def test_label_has_its_kind_and_parts(kind: str) -> None:
    label = labels.label_of(kind, *PARTS[kind])
    assert labels.parts_of(label) == [kind, *PARTS[kind]]


@pytest.mark.parametrize("kind", PARTS)
def test_label_with_other_parts_cannot_be_read(kind: str) -> None:
    parts = PARTS[kind]
    for wrong in (parts[1:], (*parts, 1), (None, *parts[1:])):
        assert labels.parts_of(labels.label_of(kind, *wrong)) == [labels.UNREADABLE]


@given(st.binary(max_size=40))
def test_any_bytes_are_a_label_or_unreadable(label: bytes) -> None:
    kind, *parts = labels.parts_of(label)
    assert kind == labels.UNREADABLE or labels.label_of(kind, *parts)


def test_keys_of_two_records_differ() -> None:
    keys = {labels.key_of(x, y) for x in ("peer", "state") for y in (1, "1")}
    assert len(keys) == 4
    assert msgspec.msgpack.decode(labels.key_of("peer", 1)) == ["peer", 1]
