"""Where things are."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
"""On the path of every test; of a script with PYTHONPATH."""

ROOT: Final = TESTS.parent
SRC: Final = str(ROOT / "src")
DOCS: Final = ROOT / "docs"
