import pytest

from engine.planted_bugs import PLANTED_BUGS, PlantedBug


@pytest.mark.parametrize("bug", PLANTED_BUGS, ids=lambda bug: bug.name)
def test_planted_bug_has_its_place_in_the_source(bug: PlantedBug) -> None:
    assert bug.count() == 1
