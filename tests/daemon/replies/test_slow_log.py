"""What takes long is told while it does, and once more when it is over."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import StartDaemon
from lockd.daemon.activity.counts import Counts
from lockd.daemon.replies.slow_log import SlowLog
from lockd.engine import commands as c
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED, OutsideHolder, ResourceKey
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_waiters

KEY, OTHER = ResourceKey("memory", "a"), ResourceKey("memory", "b")

Fields = dict[str, str]


class Story:
    """An engine of which it is told what is slow, and what was told."""

    def __init__(self, slow_wait: float = 30.0, slow_hold: float = 0.0) -> None:
        self.engine = LockEngine()
        self.slow_log = SlowLog(self.engine)
        self.counts = Counts(self.slow_log.tell_end, self.slow_log.tell_overdue)
        self.now = 0.0
        self.said: list[tuple[int, str, Fields]] = []
        self.do(c.AddLockspace("memory", anchored=False))
        self.configure(slow_wait, slow_hold)
        for session, name in enumerate(("alice", "bob", "carol"), 1):
            self.do(c.OpenSession(session, c.Owner(name, 10 * session, 1000)))

    def configure(self, slow_wait: float, slow_hold: float) -> None:
        self.counts.set_thresholds("memory", slow_wait, slow_hold, self.engine)

    def do(self, command: c.Command) -> None:
        for effect in self.engine.handle(command, now=self.now):
            hear = self.counts.hears.get(type(effect))
            if hear is not None:
                hear(effect, self.now)

    def acquire(
        self,
        session: int,
        *keys: ResourceKey,
        timeout: float | None = None,
        reason: str | None = None,
    ) -> None:
        command = c.Acquire(session, 1, keys, EXCLUSIVE, timeout, reason=reason)
        self.do(command)

    def release(self, session: int, key: ResourceKey = KEY) -> None:
        self.do(c.Release(session, 2, (key,), None))

    def look_at(self, now: float) -> list[str]:
        """Returns what is told at a time that was not told before."""
        before = len(self.said)
        self.now = now
        self.slow_log.tell_slow(self.counts.spaces.values(), now)
        return [text for _, text, _ in self.said[before:]]


@pytest.fixture
def story(caplog: pytest.LogCaptureFixture) -> Iterator[Story]:
    yield from stories(caplog, Story())


def stories(caplog: pytest.LogCaptureFixture, story: Story) -> Iterator[Story]:
    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = record.__dict__["fields"]
            story.said.append((record.levelno, record.getMessage(), fields))

    logger, listener = logging.getLogger("lockd.daemon.replies.slow_log"), Listener()
    logger.addHandler(listener)
    with caplog.at_level(logging.INFO, logger.name):
        yield story
    logger.removeHandler(listener)


def test_wait_is_told_once_when_it_passes_the_threshold(story: Story) -> None:
    story.acquire(1, KEY, reason="nightly")
    story.now = 10.0
    story.acquire(2, KEY)
    assert story.look_at(39.9) == []
    assert story.look_at(40.0) == [
        "bob (pid 20, uid 1000) has waited 30 s for 'memory:a', exclusive; it is "
        "held exclusively by alice (pid 10, uid 1000) for 40 s: nightly"
    ]
    assert story.look_at(99.0) == []
    level, _, fields = story.said[0]
    assert level == logging.WARNING
    identity = fields.pop("MESSAGE_ID")
    assert int(identity, 16)
    assert fields == {
        "LOCKD_EVENT": "wait",
        "LOCKD_LOCKSPACE": "memory",
        "LOCKD_RESOURCE": "a",
        "LOCKD_MODE": "exclusive",
        "LOCKD_OWNER": "bob",
        "LOCKD_OWNER_PID": "20",
        "LOCKD_OWNER_UID": "1000",
        "LOCKD_SESSION": "2",
        "LOCKD_WAITED_USEC": "30000000",
        "LOCKD_HOLDER": "alice",
        "LOCKD_HOLDER_PID": "10",
        "LOCKD_HOLDER_UID": "1000",
        "LOCKD_HOLDER_FENCING_TOKEN": "1",
    }


@pytest.mark.parametrize("breaks", [False, True])
def test_overdue_lock_is_told_once(breaks: bool, story: Story) -> None:
    story.do(
        c.AddLockspace(
            "memory", False, max_hold=60.0, on_overdue="break" if breaks else "notice"
        )
    )
    story.acquire(1, KEY, reason="nightly")
    story.acquire(2, KEY)
    story.now = 60.0
    story.do(c.Tick())
    story.do(c.Tick())
    ((level, text, fields),) = story.said
    assert level == logging.WARNING
    assert text == (
        "alice (pid 10, uid 1000) is overdue: it has held 'memory:a' exclusively for "
        "1m00s; 1 waits for it" + "; lockd breaks the lock" * breaks
    )
    assert int(fields.pop("MESSAGE_ID"), 16)
    assert fields == {
        "LOCKD_EVENT": "overdue",
        "LOCKD_LOCKSPACE": "memory",
        "LOCKD_RESOURCE": "a",
        "LOCKD_MODE": "exclusive",
        "LOCKD_OWNER": "alice",
        "LOCKD_OWNER_PID": "10",
        "LOCKD_OWNER_UID": "1000",
        "LOCKD_SESSION": "1",
        "LOCKD_FENCING_TOKEN": "1",
        "LOCKD_HELD_USEC": "60000000",
        "LOCKD_REASON": "nightly",
        "LOCKD_WAITERS": "1",
    }


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda story: story.release(1), "granted"),
        (lambda story: story.do(c.Cancel(2, 9, 1)), "cancelled"),
        (lambda story: story.counts.end_session(2, 45.0), "disconnected"),
    ],
)
def test_end_of_a_long_wait_is_told(
    end: Callable[[Story], None], outcome: str, story: Story
) -> None:
    story.acquire(1, KEY)
    story.acquire(2, KEY)
    story.look_at(31.0)
    story.now = 45.0
    end(story)
    level, text, fields = story.said[-1]
    assert level == logging.INFO
    assert text == (
        f"the long wait of bob (pid 20, uid 1000) for 'memory:a' is over after 45 s: "
        f"{outcome}"
    )
    assert fields["LOCKD_OUTCOME"] == outcome
    assert fields["LOCKD_WAITED_USEC"] == "45000000"
    assert fields["LOCKD_EVENT"] == "wait ended"


def test_short_waits_are_not_told(story: Story) -> None:
    story.acquire(1, KEY)
    story.acquire(2, KEY)
    story.now = 29.0
    story.release(1)
    assert story.look_at(1_000.0) == []


def test_of_several_the_one_in_the_way_is_named(story: Story) -> None:
    story.acquire(1, OTHER)
    story.acquire(2, KEY, OTHER)
    (line,) = story.look_at(30.0)
    assert "'memory:b'" in line
    assert story.said[0][2]["LOCKD_RESOURCE"] == "b"


def test_wait_behind_nobody_says_so(story: Story) -> None:
    story.do(c.AddLockspace("files", anchored=True))
    files = ResourceKey("files", "a")
    story.counts.space("files").set_thresholds(30.0, 0.0)
    story.do(c.Acquire(2, 1, (files,), SHARED, None))
    story.do(c.AnchorRefused(files, "busy", "locked", None))
    (line,) = story.look_at(30.0)
    assert line.endswith("it is held by nobody in lockd")


def test_wait_for_somebody_outside_names_him(story: Story) -> None:
    story.do(c.AddLockspace("files", anchored=True))
    files = ResourceKey("files", "a")
    story.counts.space("files").set_thresholds(30.0, 0.0)
    story.do(c.Acquire(2, 1, (files,), SHARED, None))
    outside = OutsideHolder("exclusive", 812, "tar")
    story.do(c.AnchorRefused(files, "busy", "locked", outside))
    (line,) = story.look_at(30.0)
    assert line.endswith("it is held exclusively by tar (pid 812), outside lockd")
    assert story.said[0][2]["LOCKD_OUTSIDE_PID"] == "812"


def test_holds_are_told_only_where_that_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for story in stories(caplog, Story(slow_hold=60.0)):
        story.acquire(1, KEY, reason="nightly")
        story.acquire(2, KEY)
        story.configure(0.0, 60.0)
        assert story.look_at(60.0) == [
            "alice (pid 10, uid 1000) has held 'memory:a' exclusively for 1m00s "
            "(nightly); 1 waits for it"
        ]
        fields = story.said[0][2]
        assert fields["LOCKD_EVENT"] == "hold"
        assert fields["LOCKD_FENCING_TOKEN"] == "1"
        assert fields["LOCKD_HELD_USEC"] == "60000000"
        assert fields["LOCKD_REASON"] == "nightly"
        assert fields["LOCKD_WAITERS"] == "1"
        story.now = 90.0
        story.release(1)
        assert story.said[1][1] == (
            "the long hold of alice (pid 10, uid 1000) on 'memory:a' is over after "
            "1m30s: released"
        )
        assert story.counts.spaces["memory"].slow_holds == 1


def test_threshold_that_is_set_later_counts_for_what_is_held(story: Story) -> None:
    story.acquire(1, KEY)
    assert story.look_at(1_000.0) == []
    story.configure(30.0, 60.0)
    assert len(story.look_at(1_001.0)) == 1
    # A reload that changes nothing repeats nothing.
    story.configure(30.0, 60.0)
    assert story.look_at(1_002.0) == []
    story.configure(30.0, 0.0)
    story.release(1)
    assert len(story.said) == 1
    story.acquire(1, KEY)
    story.configure(30.0, 60.0)
    story.configure(30.0, 90.0)
    assert story.look_at(1_070.0) == []
    assert len(story.look_at(1_092.0)) == 1


def test_who_takes_over_repeats_nothing(story: Story) -> None:
    story.acquire(1, KEY)
    story.acquire(2, KEY)
    story.look_at(31.0)
    story.counts = Counts(story.slow_log.tell_end)
    story.counts.adopt(story.engine)
    story.configure(30.0, 10.0)
    story.counts.spaces["memory"].skip_slow(32.0)
    assert story.look_at(32.0) == []
    assert story.counts.spaces["memory"].slow_waits == 0
    story.now = 40.0
    story.release(1)
    assert [text.split(" of ")[0] for _, text, _ in story.said[1:]] == [
        "the long hold",
        "the long wait",
    ]


# A real daemon.


def test_daemon_tells_of_waits_and_holds(start_daemon: StartDaemon) -> None:
    lockd = start_daemon(
        "[lockspaces.default]\nslow_wait = 0.01\nslow_hold = 0.02\n"
        '[lockspaces.quiet]\nkind = "memory"\nslow_wait = 0'
    )
    with WireClient(lockd.socket) as one, WireClient(lockd.socket) as two:
        one.acquire("q", lockspace="quiet")
        two.send("acquire", resource="q", lockspace="quiet")
        one.acquire("a")
        two.send("acquire", resource="a")
        told = {lockd.wait_for_line("has ").split(" has ")[1][:6] for _ in range(2)}
        assert told == {"waited", "held '"}
        two.close()
        assert "disconnected" in lockd.wait_for_line("the long wait of")
        one.call("release", resource="a")
        assert "released" in lockd.wait_for_line("the long hold of")
    assert not [x for x in lockd.said if "'quiet" in x]


def test_stop_tells_of_no_grant_that_nobody_got(start_daemon: StartDaemon) -> None:
    lockd = start_daemon("[lockspaces.default]\nslow_wait = 0.01\nslow_hold = 0.01")
    with ExitStack() as stack:
        holder, both, behind = (
            stack.enter_context(WireClient(lockd.socket)) for _ in range(3)
        )
        holder.acquire("s1")
        both.send("acquire", resources=["s1", "s2"])
        wait_for_waiters(holder, "s1", 1)
        behind.send("acquire", resource="s2")
        for _ in range(3):
            lockd.wait_for_line(" has ")
        before = len(lockd.said)
        lockd.stop()
        assert [both.rest(), behind.rest()] == [[], []]
    ends = [x for x in lockd.said[before:] if x.startswith("the long ")]
    assert sorted(x.split(" of ")[0] for x in ends) == [
        "the long hold",
        "the long wait",
        "the long wait",
    ]
    assert all(x.endswith(": disconnected") for x in ends)


def test_reload_changes_what_is_long(lockd: DaemonProcess) -> None:
    with WireClient(lockd.socket) as client:
        client.acquire("a")
        Path(lockd.config).write_text("[lockspaces.default]\nslow_hold = 0.01")
        lockd.reload()
        assert "has held 'a'" in lockd.wait_for_line("has held")
