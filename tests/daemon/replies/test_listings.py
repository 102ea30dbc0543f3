import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import StartDaemon
from daemon.conftest import StartChild
from daemon_process import DaemonProcess
from support.places import DOCS
from wire_client import (
    WireClient,
    connected_as_nobody,
    wait_for_sessions,
    wait_for_waiters,
)

Connect = Callable[[], WireClient]

PAGED = {
    "list": "resources",
    "list_waiters": "waiters",
    "list_sessions": "sessions",
    "list_lockspaces": "lockspaces",
}


def pages(client: WireClient, method: str, **params: Any) -> list[list[Any]]:
    """Goes through a whole listing; returns its pages."""
    found, after = [], None
    while True:
        page = client.call(method, after=after, **params)
        assert set(page) == {PAGED[method], "next"}
        found.append(page[PAGED[method]])
        after = page["next"]
        if after is None:
            return found


def listed(client: WireClient, method: str = "list", **params: Any) -> list[Any]:
    return [thing for page in pages(client, method, **params) for thing in page]


def names_of(found: list[dict[str, Any]]) -> list[str]:
    return [each["resource"] for each in found]


def acquire_many(client: WireClient, names: list[str], **params: Any) -> None:
    for start in range(0, len(names), 60):
        client.call("acquire", resources=names[start : start + 60], **params)


def test_listing_goes_through_all_pages_in_the_order_of_names(
    client: WireClient, other: WireClient
) -> None:
    names = sorted(f"n{n}" for n in range(1000))
    acquire_many(other, names)
    for limit in (1, 3, 256, None):
        found = pages(client, "list", limit=limit)
        assert names_of([x for page in found for x in page]) == names
        assert max(map(len, found)) == min(limit or 5, 5)


def test_listing_goes_on_after_any_place(client: WireClient, other: WireClient) -> None:
    """The daemon may have forgotten it: after an upgrade, or among many others."""
    names = sorted(f"n{n}" for n in range(500))
    acquire_many(other, names)
    # It is put in order anew first, which may take a page or two.
    page = client.call("list", after=["default", "n30"], limit=2)
    while not page["resources"]:
        page = client.call("list", after=page["next"], limit=2)
    assert names_of(page["resources"]) == ["n300", "n301"]
    last = listed(other, "list")[-1]["resource"]
    assert last == "n99"


def test_too_many_listings_at_once_are_refused_and_the_others_go_on(
    connect: Connect, client: WireClient
) -> None:
    acquire_many(client, [f"n{n:03}" for n in range(100)])
    readers = [connect() for _ in range(17)]
    places = [x.call("list")["next"] for x in readers[:16]]
    refusal = readers[16].refusal("list")
    assert refusal.code == "limit"
    # Each question keeps a listing alive; an ended one makes room.
    for reader, place in zip(readers[:16], places, strict=True):
        page = reader.call("list", after=place)
        assert page["resources"][0]["resource"] == "n005"
    readers[0].close()
    wait_for_sessions(client, 17)
    assert names_of(readers[16].call("list")["resources"])[0] == "n000"


def test_many_listings_at_once_all_come_to_their_end(
    connect: Connect, client: WireClient
) -> None:
    acquire_many(client, [f"n{n:03}" for n in range(500)])
    readers = [connect() for _ in range(7)]
    places: dict[WireClient, Any] = dict.fromkeys(readers)
    found: dict[WireClient, list[str]] = {reader: [] for reader in readers}
    while places:
        for reader in list(places):
            page = reader.call("list", after=places[reader])
            found[reader] += names_of(page["resources"])
            places[reader] = page["next"]
            if page["next"] is None:
                del places[reader]
    assert all(names == [f"n{n:03}" for n in range(500)] for names in found.values())


def test_what_is_held_all_the_time_is_listed_once_whatever_else_happens(
    client: WireClient, other: WireClient
) -> None:
    steady = [f"n{n:03}" for n in range(0, 300, 2)]
    acquire_many(other, steady)
    found: list[str] = []
    after, number = None, 1
    while True:
        page = client.call("list", after=after)
        found += names_of(page["resources"])
        if (after := page["next"]) is None:
            break
        # Before, behind and at the place where the listing is.
        for name in (f"n{number:03}", f"n{300 - number:03}"):
            other.call("acquire", resource=name)
            other.call("release", resource=name)
        number += 2
    assert [name for name in found if name in steady] == steady
    assert found == sorted(set(found))


def test_what_ended_before_its_page_is_left_out(
    client: WireClient, other: WireClient
) -> None:
    acquire_many(other, [f"n{n:03}" for n in range(100)])
    first = client.call("list", limit=4)
    for number in range(4, 95):
        other.call("release", resource=f"n{number:03}")
    rest = listed(client, "list")
    assert names_of(first["resources"]) == [f"n{n:03}" for n in range(4)]
    assert len(rest) == 9
    page = client.call("list", after=first["next"])
    assert "n050" not in names_of(page["resources"])


def test_last_page_that_is_just_full_is_the_last(
    client: WireClient,
) -> None:
    client.call("acquire", resources=["a", "b"])
    page = client.call("list", limit=2)
    assert [found["resource"] for found in page["resources"]] == ["a", "b"]
    assert page["next"] is None
    assert client.call("list", after=["default", "b"]) == {
        "resources": [],
        "next": None,
    }
    assert client.call("list", after=["default", "aa"])["next"] is None


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


def test_lockspaces_are_told_with_file_system_page_by_page(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "locks").mkdir()
    daemon = start_daemon(
        f"[lockspaces.files]\nkind = 'directory'\npath = '{tmp_path}/locks'\n"
    )
    with WireClient(daemon.socket) as client:
        acquire_many(client, [f"n{n}" for n in range(2000)])
        assert len(pages(client, "list_lockspaces", limit=1)) > 3
        spaces = listed(client, "list_lockspaces", limit=1)
        assert [space["name"] for space in spaces] == ["default", "direct", "files"]
        assert [space["held"] for space in spaces] == [2000, 0, 0]
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f" - {spaces[2]['file_system']} " in mounts


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


def test_sessions_are_listed_page_by_page(connect: Connect, client: WireClient) -> None:
    for _ in range(40):
        connect()
    acquire_many(client, [f"n{n}" for n in range(1000)])
    wait_for_sessions(client, 41)
    numbers = [x["session"] for x in listed(client, "list_sessions", limit=3)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 41
    assert max(map(len, pages(client, "list_sessions"))) <= 5
    held = [x["held"] for x in listed(client, "list_sessions")]
    assert sorted(held)[-2:] == [0, 1000]


def test_history_tells_what_happened_to_a_resource(
    client: WireClient, other: WireClient, connect: Connect
) -> None:
    name = "history 1"
    token = client.acquire(name)["fencing_token"]
    other.refusal("acquire", resource=name, timeout=0)
    waiting = other.send("acquire", resource=name)
    wait_for_waiters(client, name, 1)
    client.call("release", resource=name)
    other.result(waiting)
    other.call("convert", resource=name, mode="shared")
    other.close()
    while client.call("query", resource=name)["holder_count"]:
        pass
    history = client.call("query", resource=name)["history"]
    told = [(x["event"], x.get("code") or x.get("cause")) for x in history]
    assert told == [
        ("granted", None),
        ("refused", "busy"),
        ("waiting", None),
        ("released", "released"),
        ("granted", None),
        ("converted", None),
        ("released", "disconnected"),
    ]
    assert history[0]["fencing_token"] == history[3]["fencing_token"] == token
    assert history[4]["waited"] > 0
    assert history[3]["held_for"] > 0
    assert [x["ago"] for x in history] == sorted(x["ago"] for x in history)[::-1]
    assert {x["pid"] for x in history} == {os.getpid()}


def test_history_has_an_end(client: WireClient, other: WireClient) -> None:
    for _ in range(40):
        token = client.acquire("history 2")["fencing_token"]
        client.call("release", resource="history 2")
    history = client.call("query", resource="history 2")["history"]
    assert len(history) == 16
    assert history[-1]["fencing_token"] == token
    for number in range(3, 1100):
        client.acquire(f"history {number}")
        client.call("release", resource=f"history {number}")
    assert client.call("query", resource="history 2")["history"] == []
    assert len(client.call("query", resource="history 900")["history"]) == 2


def test_history_has_what_is_not_yet_in_its_place(
    client: WireClient, other: WireClient
) -> None:
    """Many holds end in one turn: more than are put where they belong at once."""
    names = [f"fresh {number}" for number in range(60)]
    client.call("acquire", resources=names)
    client.call("release", resources=names)
    for name in names:
        history = other.call("query", resource=name)["history"]
        assert [x["event"] for x in history] == ["granted", "released"], name


def test_command_of_a_listed_process_is_not_older_than_two_seconds(
    lockd: DaemonProcess, start_child: StartChild
) -> None:
    """`query` says what runs now, `list` what ran a moment ago."""
    child = start_child(
        lockd,
        "c = connect(); c.acquire('a'); c.socket.set_inheritable(True); ready()\n"
        "sys.stdin.readline(); os.execvp('sleep', ['sleep', '1000'])",
    )
    with WireClient(lockd.socket) as client:
        (found,) = listed(client)
        assert "python" in found["holders"][0]["command"]
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        while client.call("query", resource="a")["holders"][0]["command"] != (
            "sleep 1000"
        ):
            pass
        while listed(client)[0]["holders"][0]["command"] != "sleep 1000":
            pass
