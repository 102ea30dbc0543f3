"""Listings come in pages, each of them a short piece of work."""

from pathlib import Path
from typing import Any

from conftest import StartDaemon
from daemon.replies.conftest import listed, names_of, pages
from support.wire_client import (
    Connect,
    WireClient,
    wait_for_sessions,
)


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
