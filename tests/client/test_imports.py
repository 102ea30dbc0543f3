import subprocess
import sys

import pytest

import lockd
from lockd import errors

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


def test_async_client_can_be_imported() -> None:
    assert "anyio" in loaded_by("import lockd.aio; lockd.aio.connect")
    assert "anyio" in loaded_by("from lockd import aio; aio.connect")


PUBLIC = {
    *("Acquired", "Client", "Grant", "Lock", "aio", "connect", "lock"),
    *("EXCLUSIVE", "SHARED", "canonical_path", "hashed_name"),
    *(name for name in vars(errors) if name.endswith("Error")),
} - {"CodedError"}


def test_every_public_name_is_there_and_completed() -> None:
    assert [name for name in dir(lockd) if not hasattr(lockd, name)] == []
    assert set(dir(lockd)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lockd.nonsense  # noqa: B018


def test_names_are_completed_without_loading_anything() -> None:
    assert not HEAVY & loaded_by("import lockd; dir(lockd)")


def test_help_fits_a_page_or_two() -> None:
    script = "import lockd; help(lockd)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) < 100
    functions = ("lock()", "connect()", "aio.connect()")
    for name in (*functions, "Client", "Grant", "LockdError"):
        assert any(line.split()[:1] == [name] for line in lines), name
