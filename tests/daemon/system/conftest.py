"""What the tests of this folder share."""

import logging
import os
from collections.abc import Iterator

import pytest

from lockd.daemon.system.logs import LogWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def log_to(writer: LogWriter) -> logging.Logger:
    made = logging.Logger("test")  # noqa: LOG001 - not for everybody
    made.addHandler(writer)
    return made
