from itertools import pairwise

import pytest

from lockd.daemon.system import trimming
from lockd.daemon.system.trimming import (
    LONGEST_PAUSE,
    PAUSE,
    SPARE,
    Trimming,
    resident,
    trim,
)

MIB = 2**20


class Memory:
    """What a process has, as the kernel counts it, and how much of it is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used, self.free = 30 * MIB, 0
        self.trimmed = 0
        monkeypatch.setattr(trimming, "resident", lambda: self.used + self.free)
        monkeypatch.setattr(trimming, "trim", self.trim)

    def trim(self) -> None:
        self.free = 0
        self.trimmed += 1


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def test_memory_between_what_stays_is_given_back() -> None:
    # Too long for Python's own allocator, too short for a mapping of its own.
    things = [bytearray(10_000) for _ in range(6_000)]
    stays = things[::100]
    before = resident()
    del things
    trim()
    assert resident() < before - 40 * 2**20
    assert len(stays) == 60


def test_what_a_burst_took_is_given_back_while_others_work(memory: Memory) -> None:
    looks = Trimming(30 * MIB)
    assert not looks.look(0.0)
    memory.free = 800 * MIB
    assert looks.look(1.0)
    assert memory.free == 0


def test_who_took_much_over_and_lost_it_has_little(memory: Memory) -> None:
    memory.used = 90 * MIB
    looks = Trimming(30 * MIB)
    memory.used, memory.free = 32 * MIB, 58 * MIB
    assert looks.look(1.0)
    assert memory.free == 0


def test_little_is_kept_for_the_next_burst(memory: Memory) -> None:
    looks = Trimming(30 * MIB)
    memory.free = SPARE - 1
    assert not looks.look(1.0)
    assert memory.trimmed == 0


def test_what_is_held_is_not_looked_through_again_and_again(memory: Memory) -> None:
    looks = Trimming(30 * MIB)
    memory.used = 1_000 * MIB
    when = [second for second in range(600) if looks.look(float(second))]
    pauses = [after - before for before, after in pairwise(when)]
    assert pauses[0] == 2 * PAUSE
    assert set(pauses[1:]) == {LONGEST_PAUSE}


def test_who_lets_go_of_much_sees_its_memory_go_soon(memory: Memory) -> None:
    looks = Trimming(30 * MIB)
    memory.used = 1_000 * MIB
    for second in range(300):
        looks.look(float(second))
    memory.used, memory.free = 30 * MIB, 970 * MIB
    assert any(looks.look(300.0 + second) for second in range(31))
    assert memory.free == 0


def test_without_malloc_trim_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr("ctypes.CDLL", lambda name: Other())
    trim()
