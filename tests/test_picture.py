"""The pictures of the house in docs/explanation/: each shows what the imports say."""

import shutil
import subprocess
from pathlib import Path

import pytest

from house import House, reduced
from picture import HERE, PICTURES, drawn, source_in, source_of
from support.places import ROOT
from support.small_house import planted

HOUSE = House()


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_not_stale(name: str) -> None:
    old = set(source_in((HERE / name).read_text()).splitlines())
    new = set(source_of(HOUSE, PICTURES[name]).splitlines())
    told = [f"it lacks {x}" for x in sorted(new - old)]
    told += [f"no longer so: {x}" for x in sorted(old - new)]
    assert not told, "\n".join([f"{name} is stale: make picture", *told])


@pytest.mark.parametrize("name", PICTURES)
def test_architecture_shows_picture(name: str) -> None:
    assert f"]({name})" in (HERE / "architecture.md").read_text()


def test_every_drawing_is_one_of_the_house() -> None:
    assert {x.name for x in HERE.glob("*.svg")} == PICTURES.keys()


def test_new_arrow_makes_a_picture_stale(tmp_path: Path) -> None:
    files = {"daemon/main": '"""It starts."""', "daemon/start": '"""It begins."""'}
    before = source_of(planted(tmp_path, files), "daemon")
    files["daemon/main"] += "\nimport lockd.daemon.start"
    after = source_of(planted(tmp_path, files), "daemon")
    assert set(after.splitlines()) - set(before.splitlines()) == {
        '"daemon.main" -> "daemon.start"'
    }


def test_box_says_its_first_sentence(tmp_path: Path) -> None:
    files = {"daemon/start/__init__": '"""How <it> begins.\n\nMore."""'}
    assert "How &lt;it&gt; begins." in source_of(planted(tmp_path, files), "daemon")


def test_arrow_that_goes_up_is_red(tmp_path: Path) -> None:
    files = {"daemon/stores/a": "import lockd.daemon.main", "daemon/main": ""}
    source = source_of(planted(tmp_path, files), "daemon")
    (arrow,) = (x for x in source.splitlines() if " -> " in x)
    assert arrow.startswith('"daemon.stores" -> "daemon.main" [color="#c03030"')


def test_rooms_show_what_all_use_as_one(tmp_path: Path) -> None:
    files = {
        "errors": "",
        "names": "import lockd.errors",
        "engine/a": "import lockd.names",
    }
    source = source_of(planted(tmp_path, files), "lockd")
    arrows = [x for x in source.splitlines() if " -> " in x]
    assert arrows == ['"engine" -> "errors names"']


def test_arrow_that_follows_from_others_is_left_out() -> None:
    chain = {("a", "b"), ("b", "c"), ("c", "d")}
    assert reduced(chain | {("a", "c"), ("a", "d"), ("b", "d")}) == chain
    assert reduced({("a", "b"), ("a", "c")}) == {("a", "b"), ("a", "c")}


def test_circle_is_not_reduced_away() -> None:
    circle = {("a", "b"), ("b", "a"), ("b", "c"), ("c", "a")}
    assert reduced(circle) == circle


@pytest.mark.skipif(shutil.which("dot") is None, reason="no graphviz")
@pytest.mark.parametrize("name", PICTURES)
def test_picture_can_be_drawn_anew(name: str) -> None:
    source = source_of(HOUSE, PICTURES[name])
    picture = drawn(source)
    assert source_in(picture) == source
    assert picture == drawn(source)
    assert picture.count('class="edge"') == source.count(" -> ")


def test_who_has_no_graphviz_is_told(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    result = subprocess.run(
        [make, "--old-file=.venv/.ready", "picture"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "install graphviz" in result.stderr
