import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.daemon.system.state_files import replace_file


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_file_is_made_and_replaced_by_another(directory: int, tmp_path: Path) -> None:
    replace_file(directory, "x", b"first")
    before = (tmp_path / "x").stat()
    (tmp_path / "x.new").write_bytes(b"what a killed daemon left, which was longer")
    replace_file(directory, "x", b"next")
    after = (tmp_path / "x").stat()
    assert (tmp_path / "x").read_bytes() == b"next"
    assert before.st_ino != after.st_ino
    assert os.listdir(tmp_path) == ["x"]
    assert before.st_mode & 0o777 == 0o600


def test_no_link_is_followed(directory: int, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "x.new").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(directory, "x", b"new")
    assert target.read_bytes() == b"old"
