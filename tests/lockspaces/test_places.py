"""Directories that are made, and those in whose way somebody else could stand."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.errors import ConfigError
from lockd.lockspaces.places import (
    check_directory,
    make_directory,
    missing_directories,
)
from support.rights import needs_root
from support.wire_client import NOBODY

Look = Callable[[str], object]


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Sets the umask until the test ends."""
    before = os.umask(0o022)
    yield lambda mask: (os.umask(mask), None)[1]
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_all_that_is_made_is_private_whatever_the_umask(
    mask: int, tmp_path: Path, umask: Callable[[int], None]
) -> None:
    place = tmp_path / "a" / "b" / "c"
    umask(mask)
    assert make_directory(str(place)) == str(place)
    for made in (place, place.parent, place.parent.parent):
        assert mode_of(made) == 0o700


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    place.mkdir(mode=0o755)
    (place / "a").touch()
    assert make_directory(str(place)) == str(place)
    assert mode_of(place) == 0o755
    assert os.listdir(place) == ["a"]


def test_looking_makes_nothing_and_tells_what_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    assert check_directory(str(place)) == str(place)
    assert missing_directories(str(place)) == [str(place.parent), str(place)]
    assert os.listdir(tmp_path) == []
    make_directory(str(place))
    assert missing_directories(str(place)) == []


@pytest.mark.parametrize(
    "spelled", ["{}/x/y", "{}/x/y/", "{}//x/./y", "{}/x/../x/y", "{}/link/y", "{}/x/up"]
)
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_one_directory_has_one_name(look: Look, spelled: str, tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True, mode=0o755)
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "x" / "up").symlink_to(tmp_path / "link" / "y")
    assert look(spelled.format(tmp_path)) == str(tmp_path / "x" / "y")


def test_missing_directory_behind_a_link_is_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("made/below")
    assert make_directory(f"{tmp_path}/link/d") == f"{tmp_path}/made/below/d"
    assert (tmp_path / "made" / "below" / "d").is_dir()


@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_links_in_a_circle_are_refused(look: Look, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        look(f"{tmp_path}/a/locks")


@pytest.mark.parametrize("kind", ["file", "fifo"])
@pytest.mark.parametrize("below", ["", "/locks"])
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_what_is_no_directory_is_named_and_left_alone(
    look: Look, below: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / kind
    path.touch() if kind == "file" else os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"'{path}' is not a directory: "):
        look(f"{path}{below}")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_directory_that_others_may_write_to_is_refused(
    look: Look, mode: int, tmp_path: Path
) -> None:
    place = tmp_path / "locks"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(
        ConfigError, match=f"{place}' .mode {mode:04o}.: run chmod go-w"
    ):
        look(str(place))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("mode", [0o757, 0o777])
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_directory_that_others_could_exchange_is_refused(
    look: Look, mode: int, missing: bool, tmp_path: Path
) -> None:
    """Wherever on the way the directory is to which they may write."""
    open_to_all = tmp_path / "open"
    place = open_to_all / "between" / "locks"
    (open_to_all if missing else place).mkdir(parents=True, mode=0o755)
    open_to_all.chmod(mode)
    with pytest.raises(ConfigError, match=r"who could exchange '.*': run chmod"):
        look(str(place))
    assert place.exists() is not missing
    open_to_all.chmod(mode | stat.S_ISVTX)
    look(str(place))


@needs_root
@pytest.mark.parametrize("theirs", ["", "between", "between/locks"])
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_directory_of_another_user_is_refused(
    look: Look, theirs: str, tmp_path: Path
) -> None:
    place = tmp_path / "x" / "between" / "locks"
    place.mkdir(parents=True)
    os.chown(tmp_path / "x" / theirs, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=f"belongs to uid {NOBODY}"):
        look(str(place))


@needs_root
@pytest.mark.parametrize("look", [make_directory, check_directory])
def test_link_of_another_user_is_refused(look: Look, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"the symbolic link '{tmp_path}/link' belon"):
        look(f"{tmp_path}/link/locks")
    assert not (tmp_path / "locks").exists()


def test_what_cannot_be_made_is_refused_with_the_reason_and_what_to_do() -> None:
    with pytest.raises(ConfigError) as refusal:
        make_directory("/proc/no/locks")
    assert str(refusal.value).startswith("the directory '/proc/no' cannot be made (")
    assert "choose" in str(refusal.value)


@pytest.mark.parametrize("path", ["/tmp/" + "x" * 300, "/proc/no/" * 500])
def test_path_that_cannot_be_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="File name too long"):
        make_directory(path)
