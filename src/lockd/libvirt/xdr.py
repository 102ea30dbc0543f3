"""The part of XDR (RFC 4506) that libvirt's RPC uses."""

import struct
from typing import Final

_UINT: Final = struct.Struct(">I")
_INT: Final = struct.Struct(">i")


class XdrError(ValueError):
    """Raised when bytes are not valid XDR."""


class Unpacker:
    """Decodes values from the front of some bytes.

    Every method raises `XdrError` if too few bytes are left.

    Args:
        data: all of the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._position = 0

    def uint(self) -> int:
        """Decodes an unsigned integer (RFC 4506, 4.2)."""
        number: int = _UINT.unpack(self.opaque(_UINT.size))[0]
        return number

    def opaque(self, size: int) -> bytes:
        """Decodes opaque data of a known length (RFC 4506, 4.9).

        Ignores the padding up to a multiple of four, as glibc's xdr_opaque(3) and so
        libvirt.
        """
        begin = self._position
        self._position = begin + _padded(size)
        if self._position > len(self.data):
            raise XdrError("the payload ends too early")
        return self.data[begin : begin + size]

    def string(self, most: int) -> bytes:
        """Decodes a string of at most `most` bytes (RFC 4506, 4.11)."""
        size = self.uint()
        if size > most:
            raise XdrError(f"a string has {size} bytes, at most {most} are allowed")
        return self.opaque(size)


def uint(number: int) -> bytes:
    """Encodes an unsigned integer."""
    return _UINT.pack(number)


def int_(number: int) -> bytes:
    """Encodes a signed integer (RFC 4506, 4.1)."""
    return _INT.pack(number)


def string(data: bytes) -> bytes:
    """Encodes a string."""
    return _UINT.pack(len(data)) + data + bytes(_padded(len(data)) - len(data))


def optional_string(data: bytes | None) -> bytes:
    """Encodes a string that may be missing (RFC 4506, 4.19)."""
    return uint(0) if data is None else uint(1) + string(data)


def _padded(size: int) -> int:
    return size + -size % 4
