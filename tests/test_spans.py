import pytest

from lockd.spans import locked_by, shows_writer
from lockd.terms import LockedBy

GIB = 1 << 30


@pytest.mark.parametrize(
    ("first", "last", "program"),
    [
        (100, 100, "qemu"),
        (100, 101, "qemu"),
        (203, 204, "qemu"),
        (100, 109, None),
        (104, 200, None),
        (99, 101, None),
        (100, 205, None),
        (100, None, None),
        (0, 0, None),
        (GIB, GIB, "sqlite"),
        (GIB + 2, GIB + 511, "sqlite"),
        (GIB + 2, GIB + 512, None),
        (GIB, None, None),
    ],
)
def test_program_is_known_by_its_bytes(
    first: int, last: int | None, program: LockedBy | None
) -> None:
    assert locked_by(first, last) == program


@pytest.mark.parametrize(
    ("first", "last", "writes"),
    [
        (100, 101, True),
        (101, 101, True),
        (102, 103, True),
        (100, 100, False),
        (201, 203, False),
        (0, None, False),
        (0, 200, False),
    ],
)
def test_qemu_that_writes_is_known_by_its_bytes(
    first: int, last: int | None, writes: bool
) -> None:
    assert shows_writer(first, last) == writes
