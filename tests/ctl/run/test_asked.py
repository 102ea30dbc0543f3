"""A plain command line of `run` means the same with click and without."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.ctl.run import asked
from lockd.ctl.run.run import run

Order = tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]

NAMES = [name for option in asked.OPTIONS for name in option.names]
VALUES = ["1", "0", "4h", "1.5", "TERM", "sigint", "-1", "", "x", "a=b", "-", "²"]
LONG = [name for name in NAMES if name.startswith("--")]

WORDS = st.one_of(
    st.sampled_from([*NAMES, *NAMES, "--", "--", "--help", "-h", "-sv", "-w1", "--no"]),
    st.sampled_from([*VALUES, "job", "-s=1", "--wai", "/a/b", "job"]),
    st.builds("{}={}".format, st.sampled_from(LONG), st.sampled_from(VALUES)),
)
"""What may be on a command line, right or wrong."""


def in_click(args: list[str]) -> Order | None:
    """Returns how click understands a line; None if it refuses it, or prints help."""
    with suppress(click.ClickException, click.exceptions.Exit):
        params = run.make_context("run", list(args)).params
        return params.pop("names"), params.pop("words"), params
    return None


@given(st.lists(WORDS, max_size=8))
def test_what_is_understood_without_click_click_understands_so(args: list[str]) -> None:
    found = asked.understood(args)
    if found is not None:
        assert found == in_click(args)


def plain_lines() -> Iterator[list[str]]:
    """Yields lines with each option, as people and scripts write them."""
    good = {
        "SECONDS": "1.5", "N": "7", "TIME": "4h", "SIGNAL": "INT", "FD": "2",
        "STRING": "ls | wc", "NAME": "space", "TEXT": "why: -x --",
    }  # fmt: skip
    for option in asked.OPTIONS:
        for name in option.names:
            word = [] if option.value is None else [good[option.value]]
            yield [name, *word, "job", "--", "tar", "-x"]
            yield ["job", "other", name, *word, "--", "tar"]
            if word and name.startswith("--"):
                yield [f"{name}={word[0]}", "job"]


@pytest.mark.parametrize("args", list(plain_lines()), ids=" ".join)
def test_every_option_is_understood_without_click(args: list[str]) -> None:
    found = asked.understood(args)
    assert found is not None
    assert found == in_click(args)


@pytest.mark.parametrize(
    ("args", "names", "words"),
    [
        (["job"], ["job"], []),
        (["a", "b", "--", "c", "--", "d"], ["a", "b"], ["c", "--", "d"]),
        (["--", "-x", "--", "c"], ["-x"], ["c"]),
        (["-n", "--", "-x"], ["-x"], []),
        (["-", "--", "-"], ["-"], ["-"]),
        (["job", "tar", "-x", "a"], ["job"], ["tar", "-x", "a"]),
        (["-n", "-w", "1", "job", "-s", "tar", "-s"], ["job"], ["tar", "-s"]),
        (["job", "sh", "-c", "true"], ["job"], ["sh", "-c", "true"]),
        (["job", "--shared", "-"], ["job"], ["-"]),
        (["-c", "true", "job", "other"], ["job", "other"], []),
        (["job", "-c", "true", "other"], ["job", "other"], []),
        (["--reason=x", "job", "tar", "--help"], ["job"], ["tar", "--help"]),
        (["--reason", "x", "job", "tar"], ["job"], ["tar"]),
    ],
)
def test_dashes_part_names_from_the_command(
    args: list[str], names: list[str], words: list[str]
) -> None:
    found = asked.understood(args)
    assert found is not None
    assert found[:2] == (tuple(names), tuple(words))
    assert found == in_click(args)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "-n",
            "job --help",
            "job -h -- c",
            "-sv job -- c",
            "-w1 job -- c",
        ),
        *("-w job", "job -w", "--shared=1 job", "--wai 1 job", "--slots 0 job -- c"),
        *("-w x job -- c", "--signal NONE job -- c", "-s=1 job -- c"),
    ],
)
def test_all_else_is_left_to_click(line: str) -> None:
    assert asked.understood(line.split()) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-sn job tar -x", "tar -x"),
        ("-sw1 job tar -x", "tar -x"),
        ("-sw 1 job tar -x", "tar -x"),
        ("-sE 1 -nE2 job tar -c", "tar -c"),
        ("-snc true job other", ""),
        ("-sctrue job other", ""),
    ],
)
def test_joined_options_are_no_names(line: str, words: str) -> None:
    found = in_click(line.split())
    assert found is not None
    assert " ".join(found[1]) == words
