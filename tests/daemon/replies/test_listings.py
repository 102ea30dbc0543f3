import itertools
import os
from pathlib import Path

from conftest import StartDaemon
from daemon.replies.conftest import listed, names_of
from support.daemon_process import DaemonProcess
from support.places import DOCS
from support.wire_client import (
    Connect,
    WireClient,
    connected_as_nobody,
    wait_for_waiters,
)


def test_listing_of_one_lockspace_has_nothing_of_others(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("[lockspaces.m]\nkind = 'memory'\n")
    with WireClient(daemon.socket) as client, WireClient(daemon.socket) as other:
        client.acquire("b", lockspace="m")
        client.acquire("a")
        other.send("acquire", resource="b", lockspace="m")
        wait_for_waiters(client, "b", 1, lockspace="m")
        (found,) = client.call("list", lockspace="m")["resources"]
        assert (found["lockspace"], found["resource"]) == ("m", "b")
        assert (found["holder_count"], found["waiter_count"]) == (1, 1)
        everything = client.call("list")["resources"]
        assert [found["lockspace"] for found in everything] == ["default", "m"]
        assert listed(client, "list_waiters", lockspace="default") == []
        (waiter,) = listed(client, "list_waiters", lockspace="m")
        assert waiter["resource"] == "b"
        spaces = {s["name"]: s for s in client.call("list_lockspaces")["lockspaces"]}
        assert spaces["m"] == {
            "name": "m",
            "kind": "memory",
            "path": None,
            "file_system": None,
            "on_disconnect": "release",
            "held": 1,
        }
        assert (spaces["default"]["held"], spaces["direct"]["held"]) == (1, 0)


# Which resources.


def test_resources_are_picked_by_who_holds_or_waits(
    connect: Connect, client: WireClient, other: WireClient
) -> None:
    client.call("register", owner={"name": "vm", "uuid": "u-1"})
    client.call("acquire", resources=["a", "b"])
    other.call("acquire", resources=["c", "d"])
    other.send("acquire", resource="b")
    wait_for_waiters(client, "b", 1)
    reader = connect()
    assert names_of(listed(reader, owner="vm")) == ["a", "b"]
    assert names_of(listed(reader, owner="u-1")) == ["a", "b"]
    assert listed(reader, owner="v") == []
    assert names_of(listed(reader, pid=os.getpid())) == ["a", "b", "c", "d"]
    assert listed(reader, pid=1) == []
    assert names_of(listed(reader, uid=os.getuid(), owner="vm")) == ["a", "b"]
    assert listed(reader, uid=os.getuid() + 1) == []
    assert names_of(listed(reader, waiting=True)) == ["b"]
    unit = reader.call("query", resource="a")["holders"][0]["unit"]
    assert listed(reader, unit="no-such.service") == []
    if unit is not None:
        assert names_of(listed(reader, unit=unit)) == ["a", "b", "c", "d"]


def test_of_many_holders_those_are_named_that_were_asked_for(
    connect: Connect, client: WireClient
) -> None:
    for number in range(8):
        peer = connect()
        peer.call("register", owner={"name": f"reader {number}"})
        peer.acquire("a", mode="shared")
    (found,) = listed(client, owner="reader 7")
    assert [x["name"] for x in found["holders"]] == ["reader 7"]
    assert found["holder_count"] == 8
    assert len(listed(client)[0]["holders"]) == 4


def test_resources_are_picked_by_path_hash_and_label(
    client: WireClient, other: WireClient, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    client.acquire(str(disk), lockspace="direct")
    client.acquire("hashed", label=f"{tmp_path}/other")
    client.acquire("unrelated", label=f"{tmp_path}-not-below")
    assert names_of(listed(other, path=str(disk))) == [str(disk)]
    below = names_of(listed(other, path=str(tmp_path)))
    assert below == ["hashed", str(disk)]


def test_label_of_another_user_cannot_be_found_out(
    lockd: DaemonProcess, tmp_path: Path
) -> None:
    with WireClient(lockd.socket) as client, connected_as_nobody(lockd.socket) as peer:
        client.acquire("a", label="/secret/plan")
        assert listed(peer, path="/secret") == []
        assert names_of(listed(client, path="/secret")) == ["a"]
        peer.acquire("b", label="/secret/own")
        assert names_of(listed(peer, path="/secret")) == ["b"]
        (found,) = listed(peer, pid=os.getpid(), path="/secret")
        assert found["resource"] == "b"


def test_file_is_found_by_its_number_whatever_its_name(
    client: WireClient, tmp_path: Path
) -> None:
    disk, alias = tmp_path / "disk", tmp_path / "alias"
    disk.touch()
    alias.hardlink_to(disk)
    client.acquire(str(disk), lockspace="direct")
    status = alias.stat()
    (found,) = listed(client, inode=[status.st_dev, status.st_ino])
    assert found["resource"] == str(disk)
    assert listed(client, inode=[status.st_dev, status.st_ino + 1]) == []


# Who waits.


def test_waiters_have_their_places_and_who_is_before_them(
    connect: Connect, client: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    line = [connect() for _ in range(3)]
    for count, peer in enumerate(line, 1):
        peer.send("acquire", resource="a", reason=f"r{count}")
        wait_for_waiters(client, "a", count)
    found = listed(client, "list_waiters", limit=1)
    assert [x["place"] for x in found] == [1, 2, 3]
    assert [x["reason"] for x in found] == ["r1", "r2", "r3"]
    (holder,) = found[0]["behind"]
    assert holder["fencing_token"] == token
    assert holder["pid"] == os.getpid()
    for before, after in itertools.pairwise(found):
        (behind,) = after["behind"]
        assert behind["owner"] == before["owner"]
        assert behind["fencing_token"] is None
    page = (DOCS / "protocol.md").read_text()
    for key in found[0]:
        assert f"`{key}`" in page


def test_reader_who_converts_waits_for_the_other_readers(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    client.acquire("a", mode="shared")
    other.acquire("a", mode="shared")
    other.send("convert", resource="a", mode="exclusive")
    wait_for_waiters(client, "a", 1)
    (waiter,) = listed(client, "list_waiters")
    assert waiter["converting"]
    assert len(waiter["behind"]) == 1
    assert waiter["behind"][0]["owner"] != waiter["owner"]


# Sessions, history.


def test_sessions_are_listed_with_what_they_hold_and_wait_for(
    client: WireClient, other: WireClient
) -> None:
    session = client.call("hello", protocol=1, client="backup 1.0")["session"]
    client.call("register", owner={"name": "vm", "uuid": "u"})
    client.call("acquire", resources=["a", "b"])
    other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    mine, theirs = sorted(
        listed(client, "list_sessions"),
        key=lambda each: int(each["session"] != session),
    )
    assert set(mine) == {
        *("name", "uuid", "id", "pid", "uid", "command", "unit", "session"),
        *("client", "since", "connected_for", "held", "waiting"),
    }
    assert (mine["name"], mine["client"]) == ("vm", "backup 1.0")
    assert (mine["held"], mine["waiting"]) == (2, 0)
    assert (theirs["client"], theirs["held"], theirs["waiting"]) == (None, 0, 1)
