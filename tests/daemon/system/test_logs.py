"""The log waits for nobody, and does not repeat itself for ever."""

import os
import re
import select
from pathlib import Path

import pytest

import lockd.daemon
from daemon.system.conftest import log_to
from lockd.daemon.system.logs import ALIKE, MAX_LINES, LogWriter


def test_lines_come_in_their_order(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    writer = LogWriter(fd)
    log = log_to(writer)
    log.warning("one %d", 1)
    log.error("two \udcff")
    writer.flush()
    assert os.read(reader, 100) == b"one 1\ntwo \\udcff\n"


def test_reader_that_does_not_read_holds_nobody_up(pipe: tuple[int, int]) -> None:
    log = log_to(LogWriter(pipe[1]))
    for number in range(2 * MAX_LINES):
        log.warning(f"a line of its own kind {number} {'x' * 50}")  # noqa: G004
    assert select.select([pipe[0]], [], [], 10)[0]


def test_lines_that_are_alike_are_left_out_and_counted(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("lockd.daemon.system.logs.time.monotonic", lambda: now)
    reader, fd = pipe
    writer = LogWriter(fd)
    log = log_to(writer)
    for number in range(ALIKE + 7):
        log.warning("session %d is closed", number)
    log.warning("another kind")
    now += 10
    log.warning("session %d is closed", 99)
    writer._lines.join()
    lines = os.read(reader, 10_000).decode().splitlines()
    assert len(lines) == ALIKE + 3
    assert lines[-3:] == [
        "another kind",
        "7 lines like the next were dropped",
        "session 99 is closed",
    ]


def test_no_line_begins_with_a_sign_that_nobody_explains() -> None:
    found = [
        (path.name, line)
        for path in Path(lockd.daemon.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r'"[=#*-] [a-z%]', line)
    ]
    assert not found
