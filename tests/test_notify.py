"""A service manager hears what is said, and gets the descriptors that go with it."""

import os
import socket
from pathlib import Path

import pytest

from lockd.notify import is_listening, notify


@pytest.mark.parametrize("address", [None, "", "nowhere", "/nowhere/at/all"])
def test_nobody_hears_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")
    assert is_listening() is bool(address)


def test_manager_hears_and_gets_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with (tmp_path / "file").open("w") as file:
            assert notify("FDSTORE=1\nFDNAME=x", [file.fileno()])
            text, fds, _, _ = socket.recv_fds(manager, 100, 2)
            assert text == b"FDSTORE=1\nFDNAME=x"
            (fd,) = fds
            assert os.path.sameopenfile(fd, file.fileno())
            os.close(fd)
