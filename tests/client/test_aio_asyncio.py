from collections.abc import Iterator

import pytest

from client.adapters import AsyncShell, async_shell
from client.conformance import AsyncConformance


class TestAsyncio(AsyncConformance):
    @pytest.fixture
    def shell(self) -> Iterator[AsyncShell]:
        with async_shell("asyncio") as shell:
            yield shell
