"""What an admin has to mend stays said until it is mended."""

import logging

import pytest

from lockd.daemon.activity.health import MAX_SUMMARY, Health


def test_later_word_on_the_same_replaces_the_earlier() -> None:
    health = Health()
    health.report("a", "a is wrong")
    health.report("b", "b is wrong")
    health.report("a", "a is quite wrong")
    assert health.problems == ["a is quite wrong", "b is wrong"]
    health.clear("a", "what never was")
    assert (health.problem("a"), health.problem("b")) == (None, "b is wrong")


def test_problem_is_logged_once_while_it_stays_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health()
    with caplog.at_level(logging.ERROR):
        for problem in ("wrong", "wrong", "worse", "wrong"):
            health.report("a", problem)
    assert caplog.messages == ["wrong", "worse", "wrong"]


def test_problems_of_one_kind_are_replaced_together() -> None:
    health = Health()
    for key in ("file 1", "file 2", "port"):
        health.report(key, f"{key} is wrong")
    health.replace_all("file ", {"2": "still wrong", "3": "new"})
    assert health.problems == ["port is wrong", "still wrong", "new"]


def test_summary_is_one_line_and_short() -> None:
    health = Health()
    assert health.summary() == ""
    health.report("a", "one\ntwo")
    health.report("b", "three")
    assert health.summary() == "one; two; three"
    health.report("c", "words " * MAX_SUMMARY)
    assert len(health.summary()) <= MAX_SUMMARY
    assert health.summary().endswith("…")
