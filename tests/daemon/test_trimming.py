from pathlib import Path

import pytest

from lockd.daemon import trimming
from lockd.daemon.trimming import BUSY, QUIET, Trimming, trim


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_between_what_stays_is_given_back() -> None:
    # Too long for Python's own allocator, too short for a mapping of its own.
    things = [bytearray(10_000) for _ in range(6_000)]
    stays = things[::100]
    before = resident()
    del things
    trim()
    assert resident() < before - 40 * 2**20
    assert len(stays) == 60


def test_once_after_each_burst_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(trimming, "trim", lambda: trimmed.append(1))
    trimming_ = Trimming()
    requests = 0
    when = []
    for second in range(200):
        requests += BUSY if 50 <= second < 60 or second == 120 else BUSY // 2
        if trimming_.look(requests, float(second)):
            when.append(second)
    assert when == [59 + QUIET, 120 + QUIET]
    assert len(trimmed) == 2


def test_without_malloc_trim_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr("ctypes.CDLL", lambda name: Other())
    trim()
