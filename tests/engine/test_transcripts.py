"""Transcripts: one file per question that a user may ask, answered by the engine.

A command, `----`, what the engine said. `pytest tests/engine --rewrite` writes down
what it says now: commit that only if you understand what caused each difference.
"""

from pathlib import Path

import pytest

from engine.narrator import Narrator

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def retold(transcript: str) -> str:
    narrator = Narrator()
    blocks = []
    for block in transcript.strip().split("\n\n"):
        command, line, _ = block.partition("\n----")
        said = f"{command}\n----\n{narrator.tell(command)}" if line else block
        blocks.append(said)
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_engine_still_says_what_it_said(
    path: Path, pytestconfig: pytest.Config
) -> None:
    told = path.read_text()
    if pytestconfig.getoption("--rewrite", default=False):
        path.write_text(retold(told))
    else:
        assert retold(told) == told


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 8
