"""Never two holders: processes under a lock count without any other protection.

Each writes down when it was told that it had the lock and when it began to give it
back. CLOCK_MONOTONIC is one clock for the whole host, so overlaps are real ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from support.daemon_process import DaemonProcess
from support.nursery import SCRIPTS
from support.places import SRC

PROCESSES: Final = 6
ROUNDS: Final = 300

_SCRIPT: Final = """
import json, os, sys, time
from lockd import connect

socket, place, rounds, lockspace, reader = sys.argv[1:]
counter, inside = place + "/counter", place + "/inside"

def count():
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    value = int(open(counter).read())
    with open(counter, "w") as file:
        file.write(str(value + 1))
    os.unlink(inside)

def look():
    before = open(counter).read()
    assert not os.path.exists(inside)
    os.sched_yield()
    assert open(counter).read() == before != ""

log = []
with connect(socket) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(rounds)):
        mode = "shared" if reader == "reader" and n % 4 else "exclusive"
        grant = client.acquire("counter", lockspace=lockspace, mode=mode)
        begin = time.monotonic_ns()
        count() if mode == "exclusive" else look()
        log.append([grant.fencing_token, mode, begin, time.monotonic_ns()])
        client.release(grant)
print(json.dumps(log))
"""


class Stay(NamedTuple):
    """One grant, as its holder saw it."""

    fencing_token: int
    mode: str
    begin: int
    end: int


def contend(house: DaemonProcess, place: Path, lockspace: str, role: str) -> list[Stay]:
    """Runs all processes at once; returns their grants in the order of tokens."""
    (place / "counter").write_text("0")
    arguments = [str(house.socket), str(place), str(ROUNDS), lockspace, role]
    processes = [
        SCRIPTS.popen(
            [sys.executable, "-c", _SCRIPT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": SRC},
        )
        for _ in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        logs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return sorted(Stay(*entry) for log in logs for entry in json.loads(log))


def overlaps(stays: list[Stay]) -> list[Stay]:
    """Returns who came before somebody with a lower token had gone, but had to wait."""
    found = []
    last_end = last_writer_end = 0
    for stay in stays:
        writes = stay.mode == "exclusive"
        if stay.begin < (last_end if writes else last_writer_end):
            found.append(stay)
        last_end = max(last_end, stay.end)
        if writes:
            last_writer_end = max(last_writer_end, stay.end)
    return found


def test_the_check_finds_overlaps() -> None:
    first, second = Stay(1, "exclusive", 10, 20), Stay(2, "exclusive", 19, 30)
    assert overlaps([first, second]) == [second]
    readers = [Stay(1, "shared", 10, 20), Stay(2, "shared", 15, 18)]
    assert not overlaps(readers)
    writer = Stay(3, "exclusive", 19, 25)
    assert overlaps([*readers, writer]) == [writer]


@pytest.mark.slow
@pytest.mark.parametrize("lockspace", ["vms", "default"])
def test_no_increment_is_lost_and_no_two_are_inside(
    house: DaemonProcess, tmp_path: Path, lockspace: str
) -> None:
    stays = contend(house, tmp_path, lockspace, "writer")
    assert len(stays) == PROCESSES * ROUNDS
    assert int((tmp_path / "counter").read_text()) == len(stays)
    assert len({stay.fencing_token for stay in stays}) == len(stays)
    assert not overlaps(stays)


@pytest.mark.slow
@pytest.mark.parametrize("lockspace", ["vms", "default"])
def test_no_reader_meets_a_writer(
    house: DaemonProcess, tmp_path: Path, lockspace: str
) -> None:
    stays = contend(house, tmp_path, lockspace, "reader")
    writers = [stay for stay in stays if stay.mode == "exclusive"]
    assert len(stays) == PROCESSES * ROUNDS
    assert int((tmp_path / "counter").read_text()) == len(writers)
    assert not overlaps(stays)
