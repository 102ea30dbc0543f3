"""What the page of memory says: it adds up, and what is recorded fits."""

import re
import tracemalloc

import pytest
from msgspec import msgpack, to_builtins

from lockd.daemon.config.config import Limits
from lockd.daemon.stores.labels import key_of
from lockd.daemon.stores.ledger_file import encode
from lockd.engine import commands as c
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records
from lockd.terms import EXCLUSIVE, ResourceKey
from support.places import DOCS

MOST_WITHIN = 64
"""How many locks a session may be within (protocol 6.1)."""


def test_memory_that_can_be_held_adds_up() -> None:
    """The page of memory says what the limits allow, and sums it up."""
    limits = to_builtins(Limits())
    for table, length in (("for one user", 6), ("in all", 5)):
        rows, total = memory_table(table)
        assert len(rows) == length
        for each, count, key, size in rows:
            assert int(count) == limits[key]
            assert float(each) * limits[key] == int(size) * 2**20
        assert total == sum(int(size) for *_, size in rows)


def test_one_user_does_not_take_all_room_for_records() -> None:
    """Of two files of half as many bytes each must take all that lives."""
    limits = Limits()
    each = sizes()
    kept = ("locks_per_user", "requests_per_user", "text_bytes_per_user")
    recorded = sum(each[key] * getattr(limits, key) for key in kept)
    recorded += limits.unread_bytes_per_user
    # What a client calls itself, 4,096 characters, and who it is.
    recorded += 20_480 * limits.sessions_per_user
    assert recorded < limits.record_bytes / 2
    page = (DOCS / "explanation/memory.md").read_text()
    assert f"lockd records {recorded / 2**20:.0f} MiB of this" in page


def memory_table(table: str) -> tuple[list[tuple[str, ...]], int]:
    """Returns what each row says - bytes, how many, limit, MiB - and their sum."""
    page = (DOCS / "explanation/memory.md").read_text()
    before, _, said = page.partition(f"Sum {table}: ")
    rows = re.findall(
        r"^\| .* \| ([\d.]+) \| (\d+) \| `(\w+)` \| (\d+) \|$",
        before.rpartition("\n|---")[2],
        re.MULTILINE,
    )
    return rows, int(said.split()[0])


def sizes() -> dict[str, int]:
    """Returns the bytes of each of what a limit counts; several rows may add up."""
    each: dict[str, int] = {}
    for size, _, key, _ in memory_table("for one user")[0]:
        each[key] = each.get(key, 0) + int(size)
    return each


@pytest.mark.parametrize("sessions", [700, 1_023])
@pytest.mark.parametrize("strands", [1, 64])
def test_locks_that_sessions_are_within_take_no_more_than_the_page_says(
    strands: int, sessions: int
) -> None:
    """The longest list, of locks of as many strands as possible.

    The page counts on the worst number of sessions: tables have just grown then.
    """
    page = [float(x[0]) for x in memory_table("for one user")[0]]
    engine, owner = LockEngine(2**52), c.Owner("o", 1, 1000, None, None)
    engine.handle(c.AddLockspace("memory", anchored=False), now=0.0)
    for session in range(sessions + 1):
        engine.handle(c.OpenSession(2**40 + session, owner), now=1.0)
    for number in range(MOST_WITHIN):
        key, strand = ResourceKey("memory", f"{number}"), number % strands
        wish = c.Acquire(2**40, number, (key,), EXCLUSIVE, strand=strand)
        engine.handle(wish, now=2.0)
    tokens = [grant.fencing_token for grant in engine.grants()]
    assert len(tokens) == MOST_WITHIN
    before = bytes_of("session", engine)
    tracemalloc.start()
    try:
        for session in range(sessions):
            # As from the wire: numbers of its own.
            own = tuple(int(str(token)) for token in tokens)
            engine.handle(c.EnterGrants(2**40 + 1 + session, own), now=3.0)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    recorded = bytes_of("session", engine) - before
    # Who a session is takes less than 19,000 of what was added up for its record.
    assert recorded / sessions < 1_000
    assert taken / sessions <= page[1]
    if (strands, sessions) == (64, 700):
        assert taken / sessions > 0.8 * page[1]


@pytest.mark.parametrize("text", [None, "t" * 4_096, "𝄞" * 1_000])
@pytest.mark.parametrize(
    ("space", "names"),
    [
        ("l" * 255, ["n" * 255]),
        ("direct", ["/" + "n" * 4_094]),
        ("images", [f"{i}" for i in range(64)]),
        ("images", [f"{i:02}" + "n" * 253 for i in range(64)]),
    ],
)
def test_records_are_no_longer_than_what_their_limits_allow(
    space: str, names: list[str], text: str | None
) -> None:
    """The page of memory counts on it: the longest that any client can have."""
    each = sizes()
    keys = tuple(ResourceKey(space, name) for name in names)
    engine, session, owner_id = LockEngine(2**40), 2**40, 2**40 + 1
    owner = c.Owner("o" * 255, 2**31 - 1, 2**32 - 2, "u" * 255, 2**63 - 1)
    hears = {"max_hold": 1.5, "wanted": True}
    wish = c.Acquire(session, 2**31, keys, EXCLUSIVE, 1.5, None, text, text)
    wish = wish.replace(**hears)

    def said() -> int:
        return engine.text_by_user.get(owner.uid, 0) * each["text_bytes_per_user"]

    for command in (
        c.AddLockspace(space, anchored=True),
        c.OpenSession(session, owner),
        c.RegisterOwner(session, 1, owner_id, owner),
        wish,
    ):
        engine.handle(command, now=12345.5)
    assert bytes_of("request", engine) <= each["requests_per_user"] + said()
    for key in keys:
        engine.handle(c.AnchorOpened(key), now=23456.25)
    most = len(keys) * each["locks_per_user"]
    assert bytes_of("grant", engine) <= most + said()


def bytes_of(kind: str, engine: LockEngine) -> int:
    """Returns how much memory all records of a kind take, with their frames."""
    found = [(x, y, z) for x, y, z in records.everything(engine) if x == kind]
    return sum(
        len(encode({key_of(kind, name): msgpack.encode(value)}, 0))
        for _, name, value in found
    )
