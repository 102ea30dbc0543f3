"""What is said of a process is what the kernel says of it."""

import os
import subprocess
import sys

import pytest

from lockd.procs import (
    Uids,
    ancestors_of,
    command_of,
    name_of,
    read,
    read_bytes,
    uid_of,
    uids_of,
    unit_of,
)
from support.processes import idle
from support.rights import needs_root

IDLE = sys.executable, "-c", "print(input(), flush=True); input()"


def test_own_process_is_described(own_command: str) -> None:
    pid = os.getpid()
    assert command_of(pid) == own_command
    assert uid_of(pid) == os.getuid()
    assert uids_of(pid) == Uids(*os.getresuid())
    assert name_of(pid) == read("/proc/self/comm").rstrip("\n")


def test_of_no_process_nothing_is_known() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    pid = process.pid
    assert (command_of(pid), uid_of(pid), uids_of(pid), unit_of(pid)) == (None,) * 4
    assert name_of(pid) == "unknown"


@needs_root
def test_uid_is_the_effective_one_even_of_a_process_that_hides() -> None:
    script = (
        "import ctypes, os; os.setresuid(7, 8, 9); PR_SET_DUMPABLE = 4; "
        "ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0); "
        "print(input(), flush=True); input()"
    )
    with idle(sys.executable, "-c", script) as process:
        assert os.stat(f"/proc/{process.pid}/comm").st_uid == 0  # it does hide
        assert uid_of(process.pid) == 8
        assert uids_of(process.pid) == Uids(7, 8, 9)


@pytest.mark.parametrize("end", ["\n", "\v", "\f", "\r", "\x1c", "\x85", "\\"])
def test_name_of_a_process_forges_no_uids(end: str) -> None:
    script = (
        "import sys; name = sys.argv[1]; "
        "open('/proc/self/comm', 'w', newline='').write(name); "
        "print(input(), flush=True); input()"
    )
    forged = f"{end}Uid:\t7 7 7 7"
    with idle(sys.executable, "-c", script, forged) as process:
        comm = read(f"/proc/{process.pid}/comm")
        assert comm.strip().endswith(("Uid:\t7 7 7 7", "Uid:\t7 7 7"))
        assert uids_of(process.pid) == Uids(*os.getresuid())


def test_command_is_one_printable_line_of_bounded_length() -> None:
    script = "print(input(), flush=True); input()"
    words = [sys.executable, "-c", script, "a\nb\x1b[31m", "x" * 1_000]
    with idle(*words) as process:
        command = command_of(process.pid)
    assert command is not None
    assert command.isprintable()
    assert len(command) == 256


@pytest.mark.parametrize("size", [100, 4_095, 4_096, 4_097, 100_000, 300_000])
def test_file_is_read_up_to_a_size(size: int) -> None:
    words = ["x" * 50_000] * 4
    with idle(*IDLE, *words) as process:
        found = read_bytes(f"/proc/{process.pid}/cmdline", size)
    line = b"".join(os.fsencode(word) + b"\0" for word in (*IDLE, *words))
    assert found == line[:size]


def test_ancestors_are_the_parents_up_to_the_first_process() -> None:
    found = list(ancestors_of(os.getpid()))
    assert found[0] == os.getppid()
    assert found[-1] == 1 or len(found) == 64
    assert list(ancestors_of(2**22)) == []
