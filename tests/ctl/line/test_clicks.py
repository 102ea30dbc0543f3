"""What an option says of itself is what click does with it."""

from typing import Any

import click
import pytest

from lockd.ctl.line.clicks import offers
from lockd.ctl.options import Option, whole

OPTIONS = [
    Option("many", "-m", "--many", value="N", read=whole(1, 9), help="How many."),
    Option("level", "--level", value="N", read=whole(0), default="3", help="How deep."),
    Option("loud", "-l", "--loud", help="Make noise."),
]


@click.command(context_settings={"terminal_width": 78})
@offers(OPTIONS)
def command(**values: Any) -> dict[str, Any]:
    return values


def read(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = command.main([*args], "it", standalone_mode=False)
    return found


def test_words_are_read_and_what_is_not_given_has_its_default() -> None:
    assert read() == {"many": None, "level": 3, "loud": False}
    assert read("-m", "9", "--level=0", "-l") == {"many": 9, "level": 0, "loud": True}


@pytest.mark.parametrize("word", ["0", "10", "", "x", "9" * 5_000])
def test_mistake_is_said_of_the_option(word: str) -> None:
    with pytest.raises(click.BadParameter, match="not a whole number from 1 to 9") as e:
        read("--many", word)
    assert e.value.param is not None
    assert e.value.param.opts == ["-m", "--many"]


def test_help_has_names_values_defaults_in_their_order() -> None:
    lines = command.get_help(click.Context(command)).splitlines()
    at = lines.index("Options:")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["-m,", "--many", "N", "How", "many."],
        ["--level", "N", "How", "deep.", "[default:", "3]"],
        ["-l,", "--loud", "Make", "noise."],
    ]
