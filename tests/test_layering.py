"""The arrows of the architecture: which room may know which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "terms": set(),
    "text": set(),
    "notify": set(),
    "utf8": set(),
    "names": {"errors", "terms"},
    "procs": {"names"},
    "engine": {"errors", "terms", "names"},
    "protocol": {"errors", "terms", "names"},
    "libvirt": {"errors", "terms", "names"},
    "lockspaces": {"errors", "terms", "names"},
    "daemon": {
        "errors",
        "terms",
        "text",
        "notify",
        "utf8",
        "names",
        "procs",
        "engine",
        "protocol",
        "libvirt",
        "lockspaces",
        "version",
    },
    "client": {"errors", "terms", "text", "names", "protocol"},
    "ctl": {
        "errors",
        "terms",
        "text",
        "notify",
        "utf8",
        "names",
        "procs",
        "client",
        "version",
    },
    "aio": {"client"},
    "version": {"errors", "terms", "names", "client", "aio"},
}
"""What each room may import besides itself; `version` is the package `lockd` itself."""

IMPURE = {
    *("trio", "anyio", "asyncio", "threading", "subprocess", "socket", "select"),
    *("os", "pathlib", "time", "datetime", "random", "secrets", "logging"),
}
"""What would give the engine or the protocol I/O, a clock, or chance."""

MOST_LINES = 410
"""Of a module, without empty ones: more than that hides a second subject."""

MODULES = sorted((SOURCE / "lockd").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return [*module.split("."), "version"][1]


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """Goes through what a module imports, wherever it does: modules and names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield _resolved(node.module or "", alias.name)


def _resolved(module: str, name: str) -> tuple[str, str]:
    inner = SOURCE / (module + "." + name).replace(".", "/")
    if inner.is_dir() or inner.with_suffix(".py").exists():
        return f"{module}.{name}", ""
    return module, name


def outside(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports_of(path)} - {"lockd"}


def rooms(path: Path) -> set[str]:
    modules = {module for module, _ in imports_of(path)}
    ours = {room_of(x) for x in modules if x.split(".")[0] == "lockd"}
    return ours - {room_of(name_of(path))}


def modules_of(*wanted: str) -> list[Path]:
    return [path for path in MODULES if room_of(name_of(path)) in wanted]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


@each(MODULES)
def test_room_imports_only_what_lies_below(path: Path) -> None:
    assert rooms(path) <= ARROWS[room_of(name_of(path))]


def test_arrows_go_down_only() -> None:
    left = dict(ARROWS)
    while free := [room for room, below in left.items() if not below & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


def test_only_who_takes_requests_knows_both_engine_and_protocol() -> None:
    both = [name_of(x) for x in MODULES if {"engine", "protocol"} <= rooms(x)]
    assert both == ["lockd.daemon.replies.reader", "lockd.daemon.requests.dispatch"]


@each(modules_of("client", "ctl", "version"))
def test_clients_know_only_the_codec_of_the_protocol(path: Path) -> None:
    known = {module for module, _ in imports_of(path)}
    assert {m for m in known if m.startswith("lockd.protocol")} <= {
        "lockd.protocol.codec"
    }


@each(modules_of("client", "ctl", "version", "errors", "terms", "names", "text"))
def test_clients_do_without_msgspec(path: Path) -> None:
    assert "msgspec" not in outside(path)


@each(modules_of("engine", "protocol"))
def test_machines_have_no_io_no_clock_and_no_chance(path: Path) -> None:
    assert outside(path) & IMPURE == set()


@each(MODULES)
def test_private_names_stay_in_their_room(path: Path) -> None:
    strangers = [
        f"{module}.{name}"
        for module, name in imports_of(path)
        if module.split(".")[0] == "lockd"
        and room_of(module) != room_of(name_of(path))
        and name.startswith("_")
        and name != "__version__"
    ]
    assert strangers == []


@each(MODULES)
def test_module_is_not_too_long(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
