"""CPython's own tests of `threading.Lock`, on the locks of a client."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

import lockd

lock_tests: Any = pytest.importorskip(
    "test.lock_tests", reason="takes the tests of Python (Debian: libpython3-testsuite)"
)


class TestLock(lock_tests.LockTests):  # type: ignore[misc]
    @pytest.fixture(autouse=True)
    def _client(self, sock: str) -> Iterator[None]:
        numbers = count()
        with lockd.connect(sock) as client:
            # Some of the tests leave their lock locked.
            self.locktype = lambda: client.lock(f"lock {next(numbers)}")
            yield


def test_none_of_them_is_left_out() -> None:
    assert sum(name.startswith("test") for name in dir(TestLock)) >= 17
