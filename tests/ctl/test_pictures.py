"""The pictures of `lockctl show` and `lockctl top` show what both print today."""

import re
from xml.etree import ElementTree

import pytest

from ctl.pictures import PICTURES, TITLES, shown
from screen_svg import HIGH, WIDE, Line, drawn
from support.places import DOCS


def texts(picture: str) -> list[str]:
    found = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return [(text.text or "").replace("\u00a0", " ") for text in found]


def test_pictures_show_what_is_printed_now() -> None:
    printed = shown()
    assert printed.keys() == TITLES.keys() == {x.stem for x in PICTURES.iterdir()}
    for name, lines in printed.items():
        picture = (PICTURES / f"{name}.svg").read_text()
        words = [line.text.strip() for line in lines if line.text.strip()]
        assert texts(picture) == words, "make pictures"
        assert picture == drawn(TITLES[name], lines), "make pictures"


@pytest.mark.parametrize("name", TITLES)
def test_picture_loads_nothing(name: str) -> None:
    picture = (PICTURES / f"{name}.svg").read_text()
    assert re.findall(r"https?://[^\"]*", picture) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|@font-face|<script|<image|href", picture)


@pytest.mark.parametrize("name", TITLES)
def test_a_page_shows_the_picture(name: str) -> None:
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert re.search(rf"!\[[^]]+\]\(\S*pictures/{name}\.svg\)", pages)


def test_line_is_as_wide_as_its_characters_and_escaped() -> None:
    picture = drawn("a <b>", [Line("x"), Line(""), Line("  <&>  z", "reverse")])
    first, last = ElementTree.fromstring(picture).iter(
        "{http://www.w3.org/2000/svg}text"
    )
    assert texts(picture) == ["x", "<&>  z"]
    assert last.get("textLength") == str(6 * WIDE)
    apart = int(last.get("y", "")) - int(first.get("y", ""))
    assert apart == 2 * HIGH
    assert int(last.get("x", "")) - int(first.get("x", "")) == 2 * WIDE
