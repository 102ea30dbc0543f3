from collections.abc import Callable

from conftest import StartDaemon
from daemon_process import DaemonProcess
from lockd import __version__
from wire_client import WireClient, wait_for_waiters

Connect = Callable[[], WireClient]


def test_listing_goes_through_all_pages_in_the_order_of_names(
    client: WireClient, other: WireClient
) -> None:
    names = sorted(f"n{n}" for n in range(300))
    for start in range(0, 300, 60):
        other.call("acquire", resources=names[start : start + 60])
    pages, after = [], None
    while True:
        page = client.call("list", after=after, limit=70)
        assert set(page) == {"resources", "next"}
        pages.append([found["resource"] for found in page["resources"]])
        after = page["next"]
        if after is None:
            break
        assert after == ["default", pages[-1][-1]]
    assert [len(page) for page in pages] == [70, 70, 70, 70, 20]
    assert [name for page in pages for name in page] == names
    assert len(client.call("list")["resources"]) == 128
    assert len(client.call("list", limit=256)["resources"]) == 256


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
        spaces = {s["name"]: s for s in client.call("list_lockspaces")["lockspaces"]}
        assert spaces["m"] == {
            "name": "m",
            "kind": "memory",
            "path": None,
            "on_disconnect": "release",
            "held": 1,
        }
        assert (spaces["default"]["held"], spaces["direct"]["held"]) == (1, 0)


def test_sessions_are_listed_with_what_they_hold_and_wait_for(
    client: WireClient, other: WireClient
) -> None:
    session = client.call("hello", protocol=1, client="backup 1.0")["session"]
    client.call("register", owner={"name": "vm", "uuid": "u"})
    client.call("acquire", resources=["a", "b"])
    other.send("acquire", resource="a")
    wait_for_waiters(client, "a", 1)
    result = client.call("list_sessions")
    assert set(result) == {"sessions"}
    mine, theirs = sorted(
        result["sessions"], key=lambda each: int(each["session"] != session)
    )
    assert set(mine) == {
        *("name", "uuid", "id", "pid", "uid", "command", "unit", "session"),
        *("client", "since", "connected_for", "held", "waiting"),
    }
    assert (mine["name"], mine["client"]) == ("vm", "backup 1.0")
    assert (mine["held"], mine["waiting"]) == (2, 0)
    assert (theirs["client"], theirs["held"], theirs["waiting"]) == (None, 0, 1)


def test_statistics_count_what_is_and_what_was(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client, WireClient(lockd.socket) as other:
        client.acquire("a")
        token = client.acquire("b")
        client.call("release", resource="b")
        other.refusal("acquire", resource="a", timeout=0)
        other.send("acquire", resource="a")
        wait_for_waiters(client, "a", 1)
        found = client.call("statistics")
        assert found.pop("uptime") > 0
        assert found.pop("unit") == client.call("list_sessions")["sessions"][0]["unit"]
        assert found == {
            "version": __version__,
            "pid": lockd.pid,
            "kept": {
                "by": None,
                "locks": 0,
                "connections": 0,
                "in_flight": 0,
                "bytes": 0,
            },
            "epoch": 1,
            "upgrades": 0,
            "sessions": 2,
            "owners": 2,
            "resources": 1,
            "held": 1,
            "waiting": 1,
            "granted": 2,
            "refused": 1,
            "released": 1,
            "last_fencing_token": token["fencing_token"],
        }
