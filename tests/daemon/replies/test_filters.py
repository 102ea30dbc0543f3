"""Which resources a listing has, and which of their holders it names."""

import os
from pathlib import Path
from typing import Any

from conftest import StartDaemon
from daemon.replies.conftest import listed, names_of
from support.daemon_process import DaemonProcess
from support.rights import needs_root
from support.wire_client import (
    Connect,
    WireClient,
    connected_as_nobody,
    wait_for_waiters,
)


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


def test_all_holders_are_named_that_were_asked_for(
    connect: Connect, client: WireClient, other: WireClient
) -> None:
    others = [connect() for _ in range(3)]
    for resource in ("a", "b", "c"):
        others[0].acquire(resource, mode="shared")
    tokens: dict[str, list[int]] = {"b": [], "c": []}
    client.call("register", owner={"name": "reader"})
    for strand in range(11):
        for resource, more in (("b", tokens["b"]), ("c", tokens["c"])):
            if resource == "b" or strand < 4:
                grant = client.acquire(resource, mode="shared", strand=strand)
                more.append(grant["fencing_token"])
        others[strand % 3].acquire("b", mode="shared", strand=strand + 9)
    found = listed(other, owner="reader")
    # Each names as many holders as an entry does.
    assert [(x["resource"], len(x["holders"])) for x in found] == [
        ("b", 4),
        ("b", 4),
        ("b", 3),
        ("c", 4),
    ]
    for resource, expected in tokens.items():
        of_it = [x for x in found if x["resource"] == resource]
        told = [y["fencing_token"] for x in of_it for y in x["holders"]]
        assert told == expected
        assert {y["name"] for x in of_it for y in x["holders"]} == {"reader"}
    assert {x["holder_count"] for x in found} == {23, 5}
    # A daemon that has forgotten the listing goes on in the middle of a resource.
    for limit in (1, 2):
        page = other.call("list", owner="reader", limit=limit)
        told = []
        while True:
            told += [
                y["fencing_token"] for x in page["resources"] for y in x["holders"]
            ]
            if page["next"] is None:
                break
            # It begins again for somebody else.
            asks, after = connect(), page["next"]
            page = asks.call("list", owner="reader", limit=limit, after=after)
        assert told == tokens["b"] + tokens["c"]


def test_holders_that_end_meanwhile_are_not_named(
    client: WireClient, other: WireClient
) -> None:
    tokens = [
        client.acquire("a", mode="shared", strand=x)["fencing_token"] for x in range(13)
    ]
    mine = {"uid": os.getuid(), "limit": 1}
    page = other.call("list", **mine)
    for token in tokens[9:]:
        client.call("release", fencing_token=token)
    told = []
    while (after := page["next"]) is not None:
        page = other.call("list", **mine, after=after)
        for found in page["resources"]:
            told += [x["fencing_token"] for x in found["holders"]]
    assert told == tokens[4:9]
    nothing: dict[str, Any] = {"resources": [], "next": None}
    assert client.call("list", **mine, after=["default", "a", tokens[8]]) == nothing
    for token in tokens[:9]:
        client.call("release", fencing_token=token)
    assert client.call("list", **mine, after=["default", "a", 1]) == nothing


@needs_root
def test_who_may_not_list_goes_on_nowhere(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[lockspaces.default]\nallow_users.list = ['root']\n")
    with (
        WireClient(daemon.socket) as client,
        connected_as_nobody(daemon.socket) as nobody,
    ):
        for strand in range(5):
            client.acquire("a", mode="shared", strand=strand)
        page = client.call("list", uid=0, limit=1)
        assert len(page["next"]) == 3
        assert nobody.call("list", uid=0, after=page["next"])["resources"] == []


def test_inner_grants_that_were_asked_for_are_named(
    connect: Connect, client: WireClient
) -> None:
    said = client.call("hello", protocol=1, client="test")
    around = [client.acquire("a")["fencing_token"]]
    for number in range(6):
        peer = connect()
        within = [f"{said['instance']}:{around[-1]}"]
        peer.call("hello", protocol=1, client="test", within=within)
        peer.call("register", owner={"name": f"child {number}"})
        around.append(peer.acquire("a")["fencing_token"])
    for wanted in ({"owner": "child 5"}, {"fencing_token": around[-1]}):
        (found,) = listed(client, **wanted)
        assert [x["fencing_token"] for x in found["holders"]] == around[-1:]


def test_waiter_that_was_asked_for_shows_the_first_holders(
    connect: Connect, client: WireClient, other: WireClient
) -> None:
    for strand in range(6):
        client.acquire("a", mode="shared", strand=strand)
    waiter = connect()
    waiter.call("register", owner={"name": "writer"})
    waiter.send("acquire", resource="a")
    wait_for_waiters(other, "a", 1)
    (found,) = listed(other, owner="writer")
    assert (len(found["holders"]), found["waiters"][0]["name"]) == (4, "writer")


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
