"""Whether what the campaign plants has its place in the sources."""

import configparser

import pytest

from torture.planted import BUGS, TOP, Bug
from torture.scenarios import SCENARIOS

#: What was asked for by name.
NAMED = ("release before fence", "grant before keep", "trusted over the kernel")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_has_its_place_in_the_source(bug: Bug) -> None:
    before = (TOP / bug.file).read_text()
    planted = bug.plant(before)
    assert planted != before
    if bug.file.endswith(".py"):
        compile(planted, bug.file, "exec")
    else:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
        parser.read_string(planted)
    assert not bug.scenario or bug.scenario in SCENARIOS


def test_there_are_enough_of_them_each_once() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20
    for name in NAMED:
        assert any(name in bug.name for bug in BUGS)
