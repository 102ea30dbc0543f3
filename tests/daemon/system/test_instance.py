import os
from pathlib import Path

import pytest

from lockd.daemon.system.instance import instance_of


def test_name_stays_with_the_directory(tmp_path: Path) -> None:
    name = instance_of(str(tmp_path))
    assert len(name) == 32
    assert int(name, 16) >= 0
    assert instance_of(str(tmp_path)) == name
    assert os.listdir(tmp_path) == ["instance"]
    assert (tmp_path / "instance").stat().st_mode & 0o777 == 0o600


def test_two_daemons_have_two_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
    assert instance_of(str(one)) != instance_of(str(other))


@pytest.mark.parametrize(
    "content", [b"", b"x" * 32, b"0" * 31, b"0" * 40, b"\xff" * 32]
)
def test_file_that_holds_no_name_is_written_again(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "instance").write_bytes(content)
    (tmp_path / "instance.new").write_bytes(b"left by a kill")
    name = instance_of(str(tmp_path))
    assert (tmp_path / "instance").read_text() == f"{name}\n"


def test_no_link_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("0" * 32)
    (tmp_path / "instance").symlink_to(target)
    assert instance_of(str(tmp_path)) != "0" * 32
    assert target.read_text() == "0" * 32


def test_directory_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    assert len(instance_of(str(tmp_path / "missing"))) == 32


@pytest.mark.parametrize("content", [None, b"f" * 32, b""])
def test_known_name_is_kept_whatever_the_directory_says(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "instance").write_bytes(content)
    assert instance_of(str(tmp_path), "0" * 32) == "0" * 32
    assert (tmp_path / "instance").read_text() == "0" * 32 + "\n"
    assert instance_of(str(tmp_path), "no name") == "0" * 32
