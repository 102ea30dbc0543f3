"""XDR as RFC 4506 has it: the bytes of its examples, and what is no XDR."""

import pytest

from lockd.libvirt import xdr
from lockd.libvirt.xdr import Unpacker, XdrError

UINT_MAX = 2**32 - 1


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (xdr.uint(1), b"\0\0\0\1"),
        (xdr.uint(UINT_MAX), b"\xff\xff\xff\xff"),
        (xdr.int_(-1), b"\xff\xff\xff\xff"),
        (xdr.string(b""), b"\0\0\0\0"),
        (xdr.string(b"abc"), b"\0\0\0\3abc\0"),
        (xdr.string(b"sill"), b"\0\0\0\4sill"),
        (xdr.optional_string(None), b"\0\0\0\0"),
        (xdr.optional_string(b"a"), b"\0\0\0\1\0\0\0\1a\0\0\0"),
    ],
)
def test_values_are_encoded_in_units_of_four_bytes(
    value: bytes, encoded: bytes
) -> None:
    assert value == encoded


def test_reader_takes_one_value_after_the_other() -> None:
    unpacker = Unpacker(
        xdr.string(b"abcde") + xdr.uint(7) + b"1234567 " + xdr.string(b"")
    )
    assert unpacker.string(5) == b"abcde"
    assert unpacker.uint() == 7
    assert unpacker.opaque(7) == b"1234567"
    assert unpacker.string(0) == b""
    with pytest.raises(XdrError, match="too early"):
        unpacker.uint()


@pytest.mark.parametrize("cut", range(1, 9))
def test_string_that_ends_too_early_is_none(cut: int) -> None:
    with pytest.raises(XdrError, match="too early"):
        Unpacker(xdr.string(b"abcde")[:-cut]).string(100)


def test_string_may_not_be_longer_than_is_allowed() -> None:
    assert Unpacker(xdr.string(bytes(10))).string(10) == bytes(10)
    with pytest.raises(XdrError, match="10 bytes, at most 9"):
        Unpacker(xdr.string(bytes(10))).string(9)


def test_length_that_nothing_follows_costs_no_memory() -> None:
    with pytest.raises(XdrError):
        Unpacker(xdr.uint(UINT_MAX)).string(UINT_MAX)
