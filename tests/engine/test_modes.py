import pytest

from lockd.engine.modes import compatible
from lockd.terms import EXCLUSIVE, SHARED, Mode


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (SHARED, SHARED, True),
        (SHARED, EXCLUSIVE, False),
        (EXCLUSIVE, SHARED, False),
        (EXCLUSIVE, EXCLUSIVE, False),
    ],
)
def test_only_shared_beside_shared_is_compatible(
    held: Mode, wanted: Mode, expected: bool
) -> None:
    assert compatible(held, wanted) is expected
