import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_process import DaemonProcess
from lockd.daemon.epoch import MAX_EPOCH, TOKENS_PER_EPOCH, open_epoch
from lockd.errors import ConfigError
from wire_client import WireClient


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the content of one file."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", str(place)],
        check=True,
    )
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_each_start_has_the_next_number(tmp_path: Path) -> None:
    directory = str(tmp_path / "a" / "b")
    for number in (1, 2, 3):
        opened = open_epoch(directory)
        assert opened.number == number
        assert opened.last_token == number * TOKENS_PER_EPOCH
        opened.close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_directory_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    first = open_epoch(str(tmp_path))
    with pytest.raises(ConfigError, match="used by another lockd"):
        open_epoch(str(tmp_path))
    first.close()
    second = open_epoch(str(tmp_path))
    assert second.number == 2
    second.close()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"-1", b"1 2", b"0x5", b"1.5", b"\0" * 8, b"9" * 40, b"9" * 20],
)
def test_damaged_file_is_refused_and_left_as_it_is(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "epoch").write_bytes(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match="epoch' holds no epoch number"):
            open_epoch(str(tmp_path))
    assert (tmp_path / "epoch").read_bytes() == content


def test_last_epoch_is_refused_before_its_tokens_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text(str(MAX_EPOCH - 1))
    last = open_epoch(str(tmp_path))
    assert last.last_token + TOKENS_PER_EPOCH < 2**63
    last.close()
    with pytest.raises(ConfigError):
        open_epoch(str(tmp_path))


def test_leftover_of_an_interrupted_write_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("7\n")
    (tmp_path / "epoch.new").write_text("half")
    opened = open_epoch(str(tmp_path))
    assert opened.number == 8
    opened.close()


def test_next_epoch_is_reserved_before_the_tokens_run_out(tmp_path: Path) -> None:
    opened = open_epoch(str(tmp_path))
    opened.ensure(TOKENS_PER_EPOCH + 5)
    assert (tmp_path / "epoch").read_text() == "1\n"
    opened.ensure(2 * TOKENS_PER_EPOCH - 5)
    opened.ensure(2 * TOKENS_PER_EPOCH - 4)
    assert (tmp_path / "epoch").read_text() == "2\n"
    opened.close()
    following = open_epoch(str(tmp_path))
    assert following.last_token > 2 * TOKENS_PER_EPOCH
    following.close()


@pytest.mark.parametrize("name", ["epoch", "epoch.lock", "epoch.new"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_file_that_is_none_is_refused_and_not_followed(
    kind: str, name: str, tmp_path: Path
) -> None:
    place, target = tmp_path / "state", tmp_path / "target"
    place.mkdir()
    target.write_text("7\n")
    (place / name).symlink_to(target) if kind == "link" else os.mkfifo(place / name)
    with pytest.raises(ConfigError, match="state"):
        open_epoch(str(place))
    assert target.read_text() == "7\n"


@pytest.mark.parametrize("theirs", ["state", "."])
def test_directory_that_others_could_exchange_is_refused(
    theirs: str, tmp_path: Path
) -> None:
    place = tmp_path / "a" / "state"
    place.mkdir(parents=True)
    (tmp_path / "a" / theirs).chmod(0o777)
    with pytest.raises(ConfigError, match="the state directory: others may write"):
        open_epoch(str(place))
    assert os.listdir(place) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/lockd", "/dev/null"])
def test_directory_that_cannot_be_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the state directory"):
        open_epoch(str(tmp_path / place))


def test_full_disk_is_refused_and_costs_no_epoch(small: Path) -> None:
    open_epoch(str(small)).close()
    before = (small / "epoch").read_text()
    with pytest.raises(ConfigError, match=os.strerror(errno.ENOSPC)):
        open_epoch(str(small))
    assert (small / "epoch").read_text() == before


def test_read_only_directory_is_refused(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(ConfigError, match=os.strerror(errno.EROFS)):
        open_epoch(str(small))


def test_no_descriptor_is_left_behind_by_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("x")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError):
        open_epoch(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(fd: int) -> None:
        done.append("fsync")
        fsync(fd)

    def recorded_rename(old: str, new: str, **directories: int) -> None:
        done.append("rename")
        rename(old, new, **directories)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    open_epoch(str(tmp_path)).close()
    assert done == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_tokens_continue_above_all_that_were_handed_out(
    end: str, lockd: DaemonProcess
) -> None:
    tokens = []
    for start in range(3):
        with WireClient(lockd.socket) as client:
            tokens += [client.acquire(name)["fencing_token"] for name in "abc"]
            assert client.call("statistics")["epoch"] == start + 1
            assert client.call("statistics")["last_fencing_token"] == tokens[-1]
        getattr(lockd, end)()
        lockd.start()
    assert tokens == sorted(set(tokens))
