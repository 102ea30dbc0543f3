import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compiled import (
    Interpreter,
    ObstacleError,
    check_loads,
    listed,
    put,
    remove,
)
from house import House, Module
from lockd import compilation
from support.places import ROOT, SRC
from support.small_house import planted

HOUSE = House()

CLIENTS = ("aio", "client", "ctl", "lockd")
"""Rooms that other programs load, or commands that start often."""


# What a compiled module may not do (CONTRIBUTING.md).


def test_list_is_sorted_and_names_modules() -> None:
    names = [name.removeprefix("lockd.") for name in listed()]
    assert names == sorted(set(names))
    assert not set(names) - HOUSE.modules.keys()
    assert not [name for name in names if HOUSE.modules[name].is_folder]


def test_no_compiled_module_has_a_struct() -> None:
    # mypyc drops the annotations of which msgspec makes the decoder.
    assert not list(structs_in(HOUSE, [x.removeprefix("lockd.") for x in listed()]))


def test_clients_load_no_compiled_module() -> None:
    known = {x for x in HOUSE.modules if x.split(".")[0] in CLIENTS}
    while more := {b for a, b in HOUSE.arrows if a in known} - known:
        known |= more
    assert not {f"lockd.{name}" for name in known} & set(listed())


def test_no_compiled_module_asks_for_what_its_classes_lose() -> None:
    lost = {"__annotations__", "__dict__", "__slots__", "__code__"}
    assert not [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name in listed()
        for node in ast.walk(HOUSE.modules[name.removeprefix("lockd.")].tree)
        if (isinstance(node, ast.Attribute) and node.attr in lost)
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "vars")
    ]


def test_no_final_tuple_of_a_compiled_module_is_starred_without_a_type() -> None:
    # It would not be set at run time.
    assert not [
        f"{name}:{node.lineno}: {ast.unparse(node.target)}"
        for name in listed()
        for node in ast.walk(HOUSE.modules[name.removeprefix("lockd.")].tree)
        if isinstance(node, ast.AnnAssign)
        and ast.unparse(node.annotation) == "Final"
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(part, ast.Starred) for part in node.value.elts)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "import msgspec\nclass Thing(msgspec.Struct): ...",
        "from msgspec import Struct\nclass Thing(Struct, frozen=True): ...",
        "from msgspec import Struct as S\nclass Thing(S): ...",
        "from lockd.low import Base\nclass Thing(Base): ...",
        "def make():\n    from msgspec import Struct\n    class Thing(Struct): ...",
    ],
)
def test_struct_is_found(tmp_path: Path, text: str) -> None:
    low = "from msgspec import Struct\nclass Base(Struct): ...\n"
    house = planted(tmp_path, {"top": text, "low": low})
    assert list(structs_in(house, ["top"])) == ["top.Thing"]


def structs_in(house: House, names: list[str]) -> Iterator[str]:
    """Yields the msgspec Structs in modules of a house."""
    classes = {
        (name, node.name): node
        for name, module in house.modules.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_struct(module: Module, base: ast.expr) -> bool:
        match base:
            case ast.Attribute(attr=name):
                return name == "Struct"
            case ast.Name(id=name):
                return is_struct_named(module, name)
        return False

    def is_struct_named(module: Module, name: str) -> bool:
        if (node := classes.get((module.name, name))) is not None:
            return any(is_struct(module, base) for base in node.bases)
        for part in ast.walk(module.tree):
            if isinstance(part, ast.ImportFrom):
                for alias in part.names:
                    if name == (alias.asname or alias.name):
                        if part.module == "msgspec":
                            return alias.name == "Struct"
                        other = house.inside(part.module or "")
                        if other in house.modules:
                            return is_struct_named(house.modules[other], alias.name)
        return False

    for (name, own), node in classes.items():
        module = house.modules[name]
        if name in names and any(is_struct(module, base) for base in node.bases):
            yield f"{name}.{own}"


# The tool.

ME = Interpreter.of(sys.executable)
TOOL = ROOT / "tools" / "compiled.py"

compiles = pytest.mark.skipif(ME.obstacle() is not None, reason=f"{ME.obstacle()}")


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    mine = replace(ME, include=str(tmp_path), compiler="true")
    assert str(mine.obstacle()).startswith(f"{tmp_path}/Python.h is missing")
    (tmp_path / "Python.h").touch()
    assert mine.obstacle() is None
    other = replace(mine, suffix=".cpython-39-x86_64-linux-gnu.so", version="3.9.1")
    assert str(other.obstacle()).startswith(f"{ME.program} is Python 3.9.1, and .venv")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with the source, and what was compiled from another one."""
    found = tmp_path / "installed"
    ignore = shutil.ignore_patterns("*.so", compilation.RECORD, "__pycache__")
    shutil.copytree(Path(SRC) / "lockd", found / "lockd", ignore=ignore)
    (found / "lockd" / "engine" / "usage.so").touch()
    (found / "lockd" / compilation.RECORD).write_text("{}")
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the tool, and a daemon with one module that is compiled."""
    top = tmp_path / "project"
    package = top / "src" / "lockd"
    (package / "daemon").mkdir(parents=True)
    (top / "tools").mkdir()
    shutil.copy(TOOL, top / "tools")
    for name in ("compilation.py", "daemon/__init__.py"):
        shutil.copy(Path(SRC) / "lockd" / name, package / name)
    (package / "__init__.py").touch()
    main = (
        "import sys\nfrom lockd import compilation, small\n"
        "assert small.twice(21) == 42\nprint('a warning', file=sys.stderr)\n"
    )
    (package / "daemon" / "main.py").write_text(main)
    (package / "small.py").write_text("def twice(x: int) -> int:\n    return 2 * x\n")
    (top / "pyproject.toml").write_text('[tool.lockd]\ncompiled = ["lockd.small"]\n')
    return top


def tool(
    *arguments: str | Path, top: Path = ROOT, cc: str = "", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it with a C compiler, or only with programs of a directory."""
    environment = os.environ | {"CC": cc}
    if path is not None:
        environment["PATH"] = str(path)
    return subprocess.run(
        [sys.executable, top / "tools" / TOOL.name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def left(directory: Path) -> list[Path]:
    """Returns what is left there of what was compiled."""
    record = directory / "lockd" / compilation.RECORD
    return [*directory.rglob("*.so"), *([record] if record.exists() else [])]


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--must",), 1)])
def test_without_a_compiler_it_says_so_in_a_line(
    installed: Path, tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    done = tool("into", installed, *options, path=tmp_path)
    assert done.stdout == (
        "lockd is not compiled, and runs interpreted: "
        "there is no C compiler (Debian: gcc)\n"
    )
    assert done.returncode == status
    assert left(installed) == []


def test_compiler_that_is_asked_for_is_the_only_one(installed: Path) -> None:
    done = tool("into", installed, cc="/nowhere/cc -O3")
    assert done.stdout == (
        "lockd is not compiled, and runs interpreted: there is no /nowhere/cc -O3\n"
    )


@compiles
def test_what_was_compiled_is_what_runs(project: Path) -> None:
    source = project / "src"
    done = tool("into", source, "--must", top=project)
    version = ".".join(map(str, sys.version_info[:3]))
    assert done.stdout == f"lockd is compiled, for {ME.program} ({version})\n"
    assert (source / "lockd" / "small").with_suffix(ME.suffix).exists()
    # Again, from the store.
    assert tool("into", source, "--must", top=project).stderr == ""
    said = run_main(source)
    assert said == ["lockd.small"]
    with (source / "lockd" / "small.py").open("a") as file:
        file.write("# changed\n")
    assert run_main(source) == []


def run_main(source: Path) -> list[str]:
    """Returns which modules of a daemon run compiled."""
    script = "import lockd.daemon.main as m; print(*m.compilation.compiled_modules())"
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()


@compiles
@pytest.mark.parametrize(
    ("module", "cc", "why"),
    [
        ("def twice(x: int) -> int:\n    return 2 * x\n", "no-cc", "no-cc cannot\n"),
        ("def twice(x: int) -> int:\n    return ''\n", "", "Incompatible return"),
    ],
)
def test_what_no_compiler_compiles_runs_interpreted(
    project: Path, installed: Path, module: str, cc: str, why: str
) -> None:
    no_cc = project / "no-cc"
    no_cc.write_text(
        '#!/bin/sh\n[ "$1" = --version ] || { echo no-cc cannot; exit 1; }\n'
    )
    no_cc.chmod(0o755)
    (project / "src" / "lockd" / "small.py").write_text(module)
    done = tool("into", installed, top=project, cc=str(project / cc) if cc else "")
    log = project / ".compiled" / "log"
    assert done.stdout == (
        f"lockd is not compiled, and runs interpreted: the compiler failed ({log})\n"
    )
    assert done.returncode == 0
    assert why in log.read_text()
    assert left(installed) == []


@compiles
def test_where_nothing_can_be_stored_source_runs(
    project: Path, installed: Path
) -> None:
    (project / ".compiled").write_text("no directory")
    done = tool("into", installed, top=project)
    assert done.returncode == 0
    assert done.stdout.startswith(
        "lockd is not compiled, and runs interpreted: [Errno "
    )
    assert left(installed) == []


def test_what_does_not_load_is_told(installed: Path) -> None:
    suffix = ME.suffix
    for name in (*listed(), compilation.LIBRARY):
        (installed / name.replace(".", "/")).with_suffix(suffix).write_text("no code")
    source = compilation.fingerprint(installed / "lockd")
    record = {"suffix": suffix, "source": source, "modules": listed()}
    (installed / "lockd" / compilation.RECORD).write_text(json.dumps(record))
    with pytest.raises(ObstacleError, match=r"do not load: ImportError: .*\.so"):
        check_loads(installed, ME)
    remove(installed)
    with pytest.raises(ObstacleError, match="do not load: 0"):
        check_loads(installed, ME)


def test_nothing_is_compiled_if_that_is_not_wanted(installed: Path) -> None:
    done = tool("away", installed, "--why", "COMPILED=no")
    assert done.stdout == "lockd is not compiled, and runs interpreted: COMPILED=no\n"
    assert left(installed) == []


def test_what_is_put_is_removed(tmp_path: Path) -> None:
    store, target = tmp_path / "store", tmp_path / "target"
    (store / "lockd" / "engine").mkdir(parents=True)
    (target / "lockd").mkdir(parents=True)
    (store / "lockd" / "engine" / "usage.so").write_text("code")
    record = {"suffix": ".so", "source": "1", "modules": ["lockd.engine.usage"]}
    (store / "lockd" / compilation.RECORD).write_text(json.dumps(record))
    put(store, target)
    assert (target / "lockd" / "engine" / "usage.so").read_text() == "code"
    assert json.loads((target / "lockd" / compilation.RECORD).read_text()) == record
    remove(target)
    assert [path for path in target.rglob("*") if path.is_file()] == []
