from collections.abc import Iterator

import pytest

from client.adapters import BlockingShell, blocking_shell
from client.conformance import Conformance


class TestBlocking(Conformance):
    @pytest.fixture
    def shell(self) -> Iterator[BlockingShell]:
        with blocking_shell() as shell:
            yield shell
