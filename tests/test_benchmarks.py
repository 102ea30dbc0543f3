"""What `make bench` says is true (docs/explanation/speed.md). No figure is tested."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.cpus import (
    LEAST_ROUNDS,
    Cpus,
    Duels,
    Mode,
    choices,
    take_free_turns,
    use,
)
from benchmarks.floor import CALLS, compiled, floor
from benchmarks.measure import Spread
from benchmarks.rows import ROWS
from benchmarks.table import HEADING, Goal, Result, markdown, plain

from daemon.stores.kept import is_locked
from support.places import DOCS, ROOT, TESTS

TOGETHER, APART, MIXED = Mode.TOGETHER, Mode.APART, Mode.MIXED
NAME = "f" * 64


def test_only_rounds_in_the_same_mode_are_compared() -> None:
    ours = [(TOGETHER, 2.0), (APART, 20.0), (TOGETHER, 2.0)] * LEAST_ROUNDS
    theirs = [(TOGETHER, 1.0), (APART, 10.0), (APART, 10.0)] * LEAST_ROUNDS
    found = dict(Duels(ours, theirs))
    together, apart = found[TOGETHER], found[APART]
    assert together is not None
    assert apart is not None
    assert together.ours == [2.0] * LEAST_ROUNDS
    assert together.theirs == [1.0] * LEAST_ROUNDS
    assert apart.ours == [20.0] * LEAST_ROUNDS
    assert apart.theirs == [10.0] * LEAST_ROUNDS


def test_contenders_in_different_modes_are_not_compared() -> None:
    met = [(TOGETHER, 1.0)] * (LEAST_ROUNDS - 1)
    ours = [*met, *[(APART, 20.0)] * 9, (MIXED, 7.0)]
    theirs = [*met, *[(TOGETHER, 1.0)] * 9, (MIXED, 8.0)]
    assert dict(Duels(ours, theirs)) == {TOGETHER: None, APART: None}


@pytest.fixture
def moved_back() -> Iterator[None]:
    """Leaves this process where it was."""
    yield
    use(Cpus.FREE)


MODE_OF = {Cpus.ONE: TOGETHER, Cpus.TWO: APART}


@pytest.mark.usefixtures("moved_back")
@pytest.mark.parametrize("where", [x for x in choices() if x in MODE_OF])
def test_a_round_notes_on_which_cpus_client_and_daemon_ran(where: Cpus) -> None:
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        use(where, [echo.pid])

        def work(_seconds: float) -> float:
            assert echo.stdin is not None
            assert echo.stdout is not None
            echo.stdin.write(b"x")
            assert echo.stdout.read(1) == b"x"
            return 1.0

        found = take_free_turns({"echo": work}, {"echo": echo.pid}, count=3)
        echo.stdin.close()
    assert found == {"echo": [(MODE_OF[where], 1.0)] * 3}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_floor_does_what_the_page_says(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    for calls in CALLS:
        place = tmp_path / calls
        file = place / "locks" / NAME
        with floor(program, place, calls) as wire:
            for _ in range(2):
                wire.send(wire.encode_acquire(NAME, 0))
                assert wire.receive() == [0]
                assert file.exists() == (calls != "none")
                assert calls == "none" or is_locked(file)
                wire.send(wire.encode_release(NAME, 0))
                assert wire.receive() == [0]
                assert file.exists() == (calls == "kept")
                assert calls != "kept" or not is_locked(file)


def test_a_result_says_where_it_was_measured_and_whether_it_suffices() -> None:
    spread = Spread(1.5, 1.25, 1.75)
    result = Result("pair", "30 us", "virtlockd 20 us", spread, Goal(1.5))
    assert result.cells() == (
        *("pair", "one", "30 us", "virtlockd 20 us", "1.50  (1.25 - 1.75)"),
        *("<= 1.5", "met"),
    )
    missed = Result("pair", "30 us", "-", spread, Goal(1.2), "us", "two")
    assert missed.cells()[4:] == ("1.5 us  (1.2 - 1.8)", "<= 1.2 us", "MISSED")
    apart = Result("pair", "30 us", "virtlockd 9 us", None, cpus="free, apart")
    assert apart.cells()[4:] == ("not comparable", "", "")


def test_a_table_in_markdown_has_as_many_cells_in_each_line() -> None:
    result = Result("pair", "30 us", "-", Spread(1.5, 1.25, 1.75))
    lines = [*markdown(HEADING).splitlines(), markdown(result.cells())]
    assert [line.count("|") for line in lines] == [len(HEADING) + 1] * 3
    line = " ".join(plain(result.cells()).split())
    assert line == "pair one 30 us - 1.50 (1.25 - 1.75)"


def test_the_page_names_rows_that_exist() -> None:
    page = (DOCS / "explanation/speed.md").read_text()
    (rows,) = re.findall(r'BENCH="([a-z][a-z -]+)"', page)
    assert set(rows.split()) <= set(ROWS)


def test_a_row_that_nobody_knows_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "floor", "nothing"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("no such row: nothing\n")
