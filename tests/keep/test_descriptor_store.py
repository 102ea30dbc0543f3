"""The store is spoken to as a daemon does, by notifications with descriptors."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.keep.descriptor_store import CAPACITY, DescriptorStore
from lockd.notify import notify

US = os.getpid()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[DescriptorStore]:
    store = DescriptorStore()
    store.socket.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", store.address)
    yield store
    store.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def keep(store: DescriptorStore, name: str, fd: int) -> None:
    assert notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])
    store.hear(US)


def test_descriptor_is_kept_by_its_name(store: DescriptorStore) -> None:
    fd = os.memfd_create("state")
    keep(store, "kept-a", fd)
    os.close(fd)
    assert store.kept.keys() == {"kept-a"}
    assert os.readlink(f"/proc/self/fd/{store.kept['kept-a']}").startswith("/memfd:")
    assert not os.get_inheritable(store.kept["kept-a"])


def test_descriptor_is_dropped_by_its_name(store: DescriptorStore) -> None:
    before = open_descriptors()
    keep(store, "kept-a", 0)
    keep(store, "kept-b", 0)
    assert notify("FDSTOREREMOVE=1\nFDNAME=kept-a")
    store.hear(US)
    assert store.kept.keys() == {"kept-b"}
    assert open_descriptors() == before + 1
    assert notify("FDSTOREREMOVE=1\nFDNAME=kept-a")
    store.hear(US)  # it is gone already


def test_second_descriptor_of_a_name_takes_the_place_of_the_first(
    store: DescriptorStore,
) -> None:
    before = open_descriptors()
    keep(store, "kept-a", 0)
    keep(store, "kept-a", 1)
    assert len(store.kept) == 1
    assert open_descriptors() == before + 1


def test_what_exceeds_the_capacity_is_closed(store: DescriptorStore) -> None:
    before = open_descriptors()
    for n in range(CAPACITY + 3):
        keep(store, f"kept-{n}", 0)
    assert len(store.kept) == CAPACITY
    assert open_descriptors() == before + CAPACITY
    keep(store, "kept-0", 0)  # that has its place
    assert "kept-0" in store.kept


@pytest.mark.parametrize(
    "said",
    [
        "FDSTORE=1",
        "FDSTORE=1\nFDNAME=",
        "FDSTORE=0\nFDNAME=kept-a",
        "READY=1",
        "\xff\n\n=\n===\nFDSTORE",
        "",
    ],
)
def test_descriptor_that_comes_with_something_else_is_closed(
    said: str, store: DescriptorStore
) -> None:
    before = open_descriptors()
    assert notify(said, [0, 1])
    store.hear(US)
    assert not store.kept
    assert open_descriptors() == before


def test_only_the_first_descriptor_of_a_notification_is_kept(
    store: DescriptorStore,
) -> None:
    before = open_descriptors()
    assert notify("FDSTORE=1\nFDNAME=kept-a", [0, 1, 2])
    store.hear(US)
    assert open_descriptors() == before + 1


def test_nothing_counts_that_another_process_says(store: DescriptorStore) -> None:
    before = open_descriptors()
    assert notify("FDSTORE=1\nFDNAME=kept-a\nREADY=1", [0])
    assert store.hear(US + 1) == {}
    assert not store.kept
    assert open_descriptors() == before


def test_hearing_says_when_there_is_nothing(store: DescriptorStore) -> None:
    with pytest.raises(BlockingIOError):
        store.hear(US)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        sock.listen()
        yield sock


def test_file_of_a_listening_socket_goes_with_the_store(
    store: DescriptorStore, listener: socket.socket, tmp_path: Path
) -> None:
    keep(store, "client", listener.fileno())
    store.close()
    assert not (tmp_path / "sock").exists()


def test_file_that_somebody_else_put_there_stays(
    store: DescriptorStore, listener: socket.socket, tmp_path: Path
) -> None:
    keep(store, "client", listener.fileno())
    (tmp_path / "sock").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "sock"))
        store.close()
        assert (tmp_path / "sock").exists()


def test_file_of_a_socket_that_does_not_listen_stays(
    store: DescriptorStore, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "sock"))
        keep(store, "kept-a", sock.fileno())
        store.close()
    assert (tmp_path / "sock").exists()


def test_store_at_a_path_says_that_path(tmp_path: Path) -> None:
    store = DescriptorStore(str(tmp_path / "notify"))
    assert store.address == str(tmp_path / "notify")
    store.close()
