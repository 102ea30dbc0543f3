"""What a NAME on the command line means, for every command."""

from pathlib import Path

import pytest

from ctl.processes import Lockctl, line_of
from lockd import Client


def test_run_locks_a_file_under_its_canonical_path(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    disk.touch()
    link.symlink_to(disk)
    client.acquire(str(disk))
    assert lockctl("run", "-n", link, "--", "true").returncode == 75


def test_path_relative_to_here_is_a_file_for_every_command(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    disk = tmp_path / "disk.img"
    disk.touch()
    grant = client.acquire(str(disk))
    for cwd, path in ((tmp_path, "./disk.img"), (tmp_path / "below", "../disk.img")):
        done = lockctl("run", "-n", path, "--", "true", cwd=cwd)
        assert done.returncode == 75
        assert lockctl("test", path, cwd=cwd).stdout == "held\n"
        shown = lockctl("show", path, cwd=cwd).stdout
        assert str(grant.fencing_token) in shown
        assert lockctl("who", path, cwd=cwd).returncode == 0
    # Without the dot it is a name, whatever there is.
    assert lockctl("test", "disk.img", cwd=tmp_path).stdout == "free\n"
    assert lockctl("test", "--lockspace", "default", "./disk.img").stdout == "free\n"


@pytest.mark.parametrize(
    "words",
    ["lock-name", "list --path", "show --lockspace direct", "show", "test", "who"],
)
def test_empty_name_is_refused(lockctl: Lockctl, sock: str, words: str) -> None:
    done = lockctl(*words.split(), "")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr in (
        "lockctl: the path is empty\n",
        "lockctl: the name is empty\n",
    )


@pytest.mark.parametrize(
    ("command", "rest"),
    [("acquire", ["--owner-pid", "1"]), ("hold", []), ("run", ["--", "true"])],
)
def test_names_that_cannot_be_locked_at_once_are_refused_by_name(
    lockctl: Lockctl, client: Client, command: str, rest: list[str]
) -> None:
    done = lockctl(command, "x", "y", "x", *rest)
    assert done.returncode == 64
    assert "'x' is named twice: name it once" in done.stderr
    done = lockctl(command, *range(65), *rest)
    assert done.returncode == 64
    assert "must be 1 to 64 names in a list, not more" in done.stderr


@pytest.mark.parametrize("command", ["run", "hold", "acquire"])
def test_name_of_a_file_that_is_locked_as_a_name_is_noted(
    lockctl: Lockctl, tmp_path: Path, command: str
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.img").touch()
    words = {"run": ["--", "true"], "hold": [], "acquire": ["--owner-pid", "1"]}

    def noted(*args: str) -> bool:
        process = lockctl.start(command, *args, *words[command], cwd=tmp_path)
        if command == "hold":
            assert line_of(process) == "held"
            process.terminate()
        _, errors = process.communicate()
        return "write './files/a.img' to lock the file" in errors

    assert noted("files/a.img")
    assert not noted("--lockspace", "default", "files/b.img")
    assert not noted("files")
    if command != "acquire":
        assert not noted("--lockspace", "default", "files/a.img")
