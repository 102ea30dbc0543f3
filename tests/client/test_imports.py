import subprocess
import sys

import pytest

import lockd

HEAVY = {"trio", "anyio", "asyncio", "click", "rich", "msgspec"}


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_blocking_client_loads_nothing_that_it_does_not_need() -> None:
    loaded = loaded_by("import lockd")
    assert not HEAVY & loaded
    parts = ("lockd.daemon", "lockd.engine", "lockd.ctl", "lockd.client.aio")
    assert not [name for name in loaded if name.startswith(parts)]


def test_async_client_is_loaded_when_it_is_asked_for() -> None:
    loaded = loaded_by("import lockd; lockd.aio.connect")
    assert "anyio" in loaded
    assert not {"trio", "click", "msgspec"} & loaded


def test_every_public_name_is_there() -> None:
    for name in lockd.__all__:
        assert getattr(lockd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lockd.nonsense  # noqa: B018
