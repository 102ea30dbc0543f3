import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from daemon.served import Served
from lockd.daemon.system import epoch
from lockd.daemon.system.epoch import (
    LAST_TOKEN,
    TOKENS_AT_ONCE,
    Numbers,
    load_epoch,
    open_epoch,
    resume_epoch,
)
from lockd.errors import ConfigError
from support.daemon_process import DaemonProcess
from support.wire_client import Refusal, WireClient


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
        assert opened.last_token == (number - 1) * TOKENS_AT_ONCE
        opened.close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_directory_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    first = open_epoch(str(tmp_path))
    with pytest.raises(ConfigError, match="another lockd uses"):
        open_epoch(str(tmp_path))
    first.close()
    second = open_epoch(str(tmp_path))
    assert second.number == 2
    second.close()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x", b"-1", b"1 -2", b"1 2 3", b"0x5", b"1.5", b"\0" * 8),
        *(b"9" * 40, b"9" * 20, b"1 " + b"9" * 20, b"%d" % (2**63 // 10**12)),
    ],
)
def test_damaged_file_is_refused_and_left_as_it_is(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "epoch").write_bytes(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match="epoch' holds no epoch: write two"):
            open_epoch(str(tmp_path))
    assert (tmp_path / "epoch").read_bytes() == content


def test_tokens_end_before_they_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text(f"5 {LAST_TOKEN - 2 * TOKENS_AT_ONCE}\n")
    last = open_epoch(str(tmp_path))
    assert last.reserved < LAST_TOKEN
    last.close()
    with pytest.raises(ConfigError):
        open_epoch(str(tmp_path))


def test_five_hundred_million_starts_are_exact_as_a_double() -> None:
    assert 500_000_000 * TOKENS_AT_ONCE < 2**53


def test_tokens_go_on_above_those_of_a_version_that_reserved_epochs(
    tmp_path: Path,
) -> None:
    (tmp_path / "epoch").write_text("301\n")
    opened = open_epoch(str(tmp_path))
    assert (opened.number, opened.last_token) == (302, 302 * 10**12)
    opened.close()
    assert open_epoch(str(tmp_path)).number == 303


def test_leftover_of_an_interrupted_write_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("7\n")
    (tmp_path / "epoch.new").write_text("half")
    opened = open_epoch(str(tmp_path))
    assert opened.number == 8
    opened.close()


def test_more_tokens_are_reserved_before_they_run_out(tmp_path: Path) -> None:
    opened = open_epoch(str(tmp_path))
    half = TOKENS_AT_ONCE // 2
    opened.ensure(half)
    assert (tmp_path / "epoch").read_text() == f"1 {TOKENS_AT_ONCE}\n"
    opened.ensure(half + 1)
    opened.ensure(half + 2)
    assert (tmp_path / "epoch").read_text() == f"1 {2 * TOKENS_AT_ONCE}\n"
    opened.close()
    following = open_epoch(str(tmp_path))
    assert following.last_token == 2 * TOKENS_AT_ONCE
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


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A disk that can be filled (`fill`), until this is undone."""
    with monkeypatch.context() as patch:
        yield patch


def fill(disk: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.setattr(os, "rename", refuse)


@pytest.mark.parametrize("left", [TOKENS_AT_ONCE // 2 - 1, TOKENS_AT_ONCE // 8, 1, 0])
def test_full_disk_ends_nobody_and_is_tried_again(
    left: int, disk: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = open_epoch(str(tmp_path))
    fill(disk)
    opened.ensure(TOKENS_AT_ONCE - left)
    for _ in range(2):
        # The file can be read, and still nothing is well.
        with pytest.raises(OSError, match="No space"):
            opened.look_after()
        opened.ensure(TOKENS_AT_ONCE - left)
    assert opened.reserved == TOKENS_AT_ONCE
    disk.undo()
    opened.look_after()
    assert opened.reserved == 2 * TOKENS_AT_ONCE
    assert (tmp_path / "epoch").read_text() == f"1 {2 * TOKENS_AT_ONCE}\n"
    opened.close()


def test_full_disk_refuses_new_locks_when_the_tokens_are_used_up(
    disk: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "TOKENS_AT_ONCE", 32)
    with Served(tmp_path, kept=False) as served, ExitStack() as stack:
        service = served.service
        holder, waiter, third = (
            stack.enter_context(WireClient(served.socket)) for _ in range(3)
        )
        fill(disk)
        for name in ("a", "b", "c"):
            holder.acquire(name)
        one = waiter.send("acquire", resource="a")
        two = third.send("acquire", resources=["b", "c"])
        for client in (waiter, third):
            client.call("statistics")
        taken = 3
        while (answer := holder.answer(holder.send("acquire", resource=f"n{taken}")))[
            0
        ] is None:
            taken += 1
        refusal = Refusal(answer[0])
        assert refusal.code == "unavailable"
        assert "no fencing token is left" in refusal.sentence
        # Two are promised to each who waits for two, and one more.
        assert taken == 32 - 1 - 3
        # Those who waited before get theirs; nothing is given that is not reserved.
        for name in ("a", "b", "c"):
            holder.call("release", resource=name)
        assert waiter.result(one)["grant"]["fencing_token"] <= 32
        assert third.result(two)["grants"][1]["fencing_token"] <= 32
        served.call(service._look_after_epoch)
        (problem,) = service.parts.health.problems
        assert problem.startswith("the epoch cannot be written in ")
        assert "No space left on device: make it writable" in problem
        disk.undo()
        served.call(service._look_after_epoch)
        assert service.parts.health.problems == []
        assert holder.acquire("last")["fencing_token"] <= 64


# What this daemon knows is never undercut.

SPOILED = {
    "missing": None,
    "set back": "1 16777216\n",
    "of an old version": "12\n",
    "empty": "",
    "unreadable": "?",
}


@pytest.fixture(params=SPOILED)
def spoiled(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], None]:
    """Does to the file what a backup, an editor or a full disk may do to it."""

    def spoil() -> None:
        content = SPOILED[request.param]
        if content is None:
            (tmp_path / "epoch").unlink()
        else:
            (tmp_path / "epoch").write_text(content)

    return spoil


KNOWN = Numbers(301, 302 * 10**12)


def test_spoiled_file_is_mended_while_the_daemon_serves(
    spoiled: Callable[[], None], tmp_path: Path
) -> None:
    (tmp_path / "epoch").write_text(f"300 {KNOWN.reserved}\n")
    opened = open_epoch(str(tmp_path))
    before = (tmp_path / "epoch").read_text()
    spoiled()
    opened.look_after()
    assert (tmp_path / "epoch").read_text() == before
    opened.close()


@pytest.mark.parametrize("began_anew", [False, True])
def test_spoiled_file_does_not_undercut_what_was_kept(
    spoiled: Callable[[], None], tmp_path: Path, began_anew: bool
) -> None:
    (tmp_path / "epoch").write_text(f"{KNOWN.epoch} {KNOWN.reserved}\n")
    spoiled()
    again = (open_epoch if began_anew else resume_epoch)(str(tmp_path), KNOWN)
    assert again.number == 301 + began_anew
    assert again.reserved >= KNOWN.reserved
    again.close()
    following = open_epoch(str(tmp_path))
    assert following.number == 302 + began_anew
    assert following.last_token >= KNOWN.reserved
    following.close()


def test_spoiled_file_is_mended_by_who_goes_on_in_this_process(
    spoiled: Callable[[], None], tmp_path: Path
) -> None:
    (tmp_path / "epoch").write_text(f"300 {KNOWN.reserved}\n")
    opened = open_epoch(str(tmp_path))
    before = (tmp_path / "epoch").read_text()
    data = opened.dump(lambda fd: fd)
    spoiled()
    again = load_epoch(str(tmp_path), data)
    assert (again.number, again.reserved) == (opened.number, opened.reserved)
    assert (tmp_path / "epoch").read_text() == before
    again.close()


def test_who_goes_on_after_another_daemon_begins_anew(tmp_path: Path) -> None:
    first = open_epoch(str(tmp_path))
    before = Numbers(first.number, first.reserved)
    first.close()
    other = open_epoch(str(tmp_path))
    other.close()
    again = resume_epoch(str(tmp_path), before)
    assert again.number == 3
    assert again.last_token == other.reserved
    again.close()


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


# The directory itself.


def test_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    opened = open_epoch(str(directory))
    before = (directory / "epoch").read_text()
    shutil.rmtree(tmp_path / "a")
    opened.look_after()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "epoch").read_text() == before
    assert (directory / "instance").read_text() == f"{opened.instance}\n"
    assert opened.inode == (directory.stat().st_dev, directory.stat().st_ino)
    with pytest.raises(ConfigError, match="another lockd uses"):
        open_epoch(str(directory))
    opened.close()


def test_directory_that_is_exchanged_gets_what_was_in_the_first(tmp_path: Path) -> None:
    """The other one may be an old copy of it."""
    directory = tmp_path / "state"
    first = open_epoch(str(directory))
    first.close()
    shutil.copytree(directory, tmp_path / "copy")
    opened = open_epoch(str(directory))
    before = (directory / "epoch").read_text()
    directory.rename(tmp_path / "old")
    (tmp_path / "copy").rename(directory)
    opened.look_after()
    assert (directory / "epoch").read_text() == before
    opened.close()


def test_reservation_in_a_directory_that_is_removed_is_made_up_for(
    tmp_path: Path,
) -> None:
    opened = open_epoch(str(tmp_path / "state"))
    reserved = opened.reserved
    shutil.rmtree(tmp_path / "state")
    opened.ensure(reserved)
    assert opened.reserved == reserved
    opened.look_after()
    opened.ensure(reserved)
    assert opened.reserved == reserved + TOKENS_AT_ONCE
    opened.close()


def test_directory_that_another_daemon_has_made_again_is_its_own(
    tmp_path: Path,
) -> None:
    directory = str(tmp_path / "state")
    opened = open_epoch(directory)
    opened.reserve_more()
    shutil.rmtree(directory)
    other = open_epoch(directory)
    with pytest.raises(ConfigError, match="another lockd uses") as caught:
        opened.look_after()
    assert opened.complaint(caught.value).startswith("the epoch cannot be written in ")
    other.close()
    opened.look_after()
    opened.close()
    following = open_epoch(directory)
    assert following.last_token >= opened.reserved
    following.close()


def test_no_descriptor_is_left_behind_by_a_removed_directory(tmp_path: Path) -> None:
    directory = str(tmp_path / "state")
    opened = open_epoch(directory)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        shutil.rmtree(directory)
        opened.look_after()
        assert len(os.listdir("/proc/self/fd")) == before
    opened.close()
