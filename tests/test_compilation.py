import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from compiled import listed
from lockd import compilation
from support.nursery import execute
from support.places import SRC

MODULE = "lockd.engine.usage"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))

LOAD = f"""
import sys
from importlib import import_module
from lockd import daemon, compilation
print(compilation.problem())
print(import_module("{MODULE}").__file__)
print(compilation.is_compiled())
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The source, and beside it what passes for compiled modules until it is loaded."""
    found = tmp_path / "lockd"
    ignore = shutil.ignore_patterns("*.so", compilation.RECORD, "__pycache__")
    shutil.copytree(Path(SRC) / "lockd", found, ignore=ignore)
    for name in (MODULE, compilation.LIBRARY):
        (tmp_path / name.replace(".", "/")).with_suffix(SUFFIX).write_text("no code")
    return found


def record(package: Path, **changes: Any) -> None:
    """Writes that the modules were compiled from the source as it is."""
    source = compilation.fingerprint(package)
    content = {"suffix": SUFFIX, "source": source, "modules": [MODULE]} | changes
    (package / compilation.RECORD).write_text(json.dumps(content))


def load(package: Path) -> tuple[list[str], str]:
    """Loads the daemon, and returns what it prints, and its last complaint."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines(), (done.stderr.splitlines() or [""])[-1]


def test_compiled_modules_of_the_source_are_loaded(package: Path) -> None:
    record(package)
    shown, complaint = load(package)
    assert shown == ["None"]
    assert complaint.startswith("ImportError: ")
    assert f"usage{SUFFIX}" in complaint


@pytest.mark.parametrize(
    "changed", ["engine/usage.py", "engine/effects.py", "daemon/metrics/families.py"]
)
def test_source_that_changed_is_loaded(package: Path, changed: str) -> None:
    record(package)
    with (package / changed).open("a") as file:
        file.write("# more\n")
    assert_source_runs(package, "its compiled modules are not those of its source")


def test_source_runs_if_a_module_is_new(package: Path) -> None:
    record(package)
    (package / "engine" / "more.py").touch()
    assert_source_runs(package, "its compiled modules are not those of its source")


@pytest.mark.parametrize("name", [MODULE, compilation.LIBRARY])
def test_source_runs_if_a_compiled_module_is_missing(package: Path, name: str) -> None:
    record(package)
    (package.parent / name.replace(".", "/")).with_suffix(SUFFIX).unlink()
    assert_source_runs(package, "some of its compiled modules are missing")


def test_source_runs_on_another_interpreter(package: Path) -> None:
    record(package, suffix=".cpython-39-x86_64-linux-gnu.so")
    assert_source_runs(package, "its compiled modules are for another interpreter")


def test_source_runs_if_the_record_is_missing(package: Path) -> None:
    assert_source_runs(package, "compiled.json is missing beside its compiled modules")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"suffix": ".so"}', '{"suffix": "\xff"}']
)
def test_source_runs_if_the_record_is_damaged(package: Path, text: str) -> None:
    (package / compilation.RECORD).write_bytes(text.encode("latin-1"))
    assert_source_runs(package, "compiled.json is damaged")


def test_source_runs_if_nothing_is_compiled(package: Path) -> None:
    for path in package.rglob("*.so"):
        path.unlink()
    (problem, loaded, is_compiled), complaint = load(package)
    assert (problem, is_compiled, complaint) == ("None", "False", "")
    assert loaded == str(package / "engine" / "usage.py")


def assert_source_runs(package: Path, why: str) -> None:
    (problem, loaded, is_compiled), complaint = load(package)
    assert complaint == ""
    assert loaded == str(package / "engine" / "usage.py")
    assert is_compiled == "False"
    assert problem == (
        f"lockd runs interpreted: {why}; `make compiled` or `make install` repairs it"
    )


@pytest.mark.parametrize("other", ["client/core.py", "ctl/main.py"])
def test_what_the_daemon_does_not_load_may_change(package: Path, other: str) -> None:
    before = compilation.fingerprint(package)
    (package / other).write_text("")
    assert compilation.fingerprint(package) == before


def test_a_daemon_tells_its_admin_that_it_runs_its_source(
    package: Path, tmp_path: Path
) -> None:
    record(package, source="another")
    socket = tmp_path / "lockd.sock"
    daemon = execute(
        [
            *(sys.executable, "-m", "lockd.daemon.main", "--socket", str(socket)),
            *("--state-dir", str(tmp_path / "state")),
        ],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stderr is not None
    with daemon, daemon.stderr as log:
        lines = iter(log.readline, "")
        told = next(line for line in lines if "lockd runs interpreted: " in line)
        daemon.terminate()
        assert "not those of its source" in told


def test_all_listed_modules_are_compiled_or_none() -> None:
    # As in a daemon: all of it is loaded.
    script = "import lockd.daemon.main as m; print(*m.compilation.compiled_modules())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == (listed() if compilation.is_compiled() else [])
