import pytest

from lockd.text import counted, duration, exact_duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1m00s"),
        (252, "4m12s"),
        (3 * 3600 + 5 * 60 + 59, "3h05m"),
        (2 * 86400 + 4 * 3600 + 1, "2d4h"),
    ],
)
def test_duration_is_told_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.001, "0.001 s"),
        (0.25, "0.25 s"),
        (1, "1 s"),
        (1.5, "1.5 s"),
        (1234.567 + 1.5 - 1234.567, "1.5 s"),
        (59.9, "59.9 s"),
        (60, "1m00s"),
        (90.25, "1m30.25s"),
        (252, "4m12s"),
        (3 * 3600 + 5 * 60 + 0.5, "3h05m"),
        (1e9, "11574d1h"),
    ],
)
def test_duration_that_somebody_set_is_told_as_it_was_set(
    seconds: float, said: str
) -> None:
    assert exact_duration(seconds) == said


def test_one_is_not_many() -> None:
    assert [counted(n, "lock") for n in range(3)] == ["0 locks", "1 lock", "2 locks"]
