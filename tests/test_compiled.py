import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compiled import Interpreter, listed, put, remove
from house import House, Module
from lockd import compilation
from support.places import ROOT
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


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    mine = replace(ME, include=str(tmp_path), compiler="true")
    assert str(mine.obstacle()).startswith(f"{tmp_path}/Python.h is missing")
    (tmp_path / "Python.h").touch()
    assert mine.obstacle() is None
    other = replace(mine, suffix=".cpython-39-x86_64-linux-gnu.so")
    assert "is no Python" in str(other.obstacle())


def test_without_a_compiler_it_says_so_in_a_line(tmp_path: Path) -> None:
    stale = tmp_path / "lockd" / "engine" / "usage.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    environment = {k: v for k, v in os.environ.items() if k != "CC"}
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "compiled.py", "into", tmp_path],
        env=environment | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "lockd is not compiled, and runs interpreted: "
        "there is no C compiler (Debian: gcc)\n"
    )
    assert not stale.exists()


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
