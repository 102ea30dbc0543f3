from collections.abc import Iterator

import pytest

from engine.scene import new_engine
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lockd engine")
    group.addoption(
        "--rewrite",
        action="store_true",
        help="write what the engine says now into tests/engine/transcripts",
    )
    group.addoption(
        "--no-shrink",
        action="store_true",
        help="show the first failure of the stateful tests as it was found",
    )


@pytest.fixture
def engine() -> Iterator[LockEngine]:
    engine = new_engine()
    yield engine
    check(engine)
