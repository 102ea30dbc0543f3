"""The source tree as a house: its modules, and the arrows that their imports draw.

A module is named without the package: `daemon.stores.ledger`; the package is `lockd`.
A box is a module or a folder. An arrow between two modules is also one between the
neighbours that they are in: `daemon.start.serve` imports `daemon.stores.ledger`, so
`daemon.start` knows `daemon.stores`.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "lockd"

Arrow = tuple[str, str]
"""From a module or box to another one that it imports."""


@dataclass(frozen=True, eq=False)
class Module:
    """One file, read and parsed."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        """What the file says."""
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        """What it says as a syntax tree."""
        return ast.parse(self.text)

    @property
    def is_folder(self) -> bool:
        """Whether this is the `__init__` of a folder."""
        return self.path.stem == "__init__"

    @property
    def subject(self) -> str:
        """The first sentence of its docstring."""
        lines = (ast.get_docstring(self.tree) or "").splitlines()
        return lines[0] if lines else ""

    def imports(self) -> Iterator[tuple[str, str]]:
        """Goes through all imports, wherever they are: a module, and a name or ""."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: a relative import"
                yield from ((node.module or "", alias.name) for alias in node.names)


class House:
    """All modules of a package."""

    def __init__(self, source: Path = SOURCE) -> None:
        self.package = source.name
        self.modules = {
            name: Module(name, path)
            for path in sorted(source.rglob("*.py"))
            for name in [self._name(path.relative_to(source))]
        }

    def _name(self, path: Path) -> str:
        parts = path.with_suffix("").parts
        return ".".join(parts[:-1] if path.stem == "__init__" else parts) or (
            self.package
        )

    def inside(self, module: str, name: str = "") -> str | None:
        """Returns which module of the house an import means; None for another one."""
        if module.split(".")[0] != self.package:
            return None
        _, _, inner = module.partition(".")
        longer = f"{inner}.{name}".strip(".")
        return longer if longer in self.modules else inner or self.package

    @cached_property
    def arrows(self) -> frozenset[Arrow]:
        """Says which module imports which.

        What only type checkers import counts, so does what a function imports. A string
        that is a module's whole name counts, too: `import_module` is given such ones.
        """
        return frozenset(
            (module.name, other)
            for module in self.modules.values()
            for other in self._imported(module)
            if other != module.name
        )

    def _imported(self, module: Module) -> Iterator[str]:
        for imported, name in module.imports():
            if (other := self.inside(imported, name)) is not None:
                yield other
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                package, _, rest = node.value.partition(".")
                if package == self.package and rest in self.modules:
                    yield rest

    @cached_property
    def boxes(self) -> frozenset[Arrow]:
        """Says which box knows which, at every depth: neighbours only."""
        return frozenset(
            box
            for one, other in self.arrows
            if (box := neighbours(one, other)) is not None
        )

    def folders(self) -> dict[str, list[str]]:
        """Returns each folder with the modules in it; not those in folders of it."""
        found: dict[str, list[str]] = {}
        for module in self.modules.values():
            if not module.is_folder:
                folder = module.name.rpartition(".")[0] or self.package
                found.setdefault(folder, []).append(module.name)
        return found


def neighbours(one: str, other: str) -> Arrow | None:
    """Returns the boxes in which two modules are, beside each other.

    None if one of the two is the folder that has the other.
    """
    left, right = one.split("."), other.split(".")
    for depth, (a, b) in enumerate(zip(left, right, strict=False), start=1):
        if a != b:
            return ".".join(left[:depth]), ".".join(right[:depth])
    return None


Targets = Mapping[str, set[str]]
"""Arrows by where they begin."""


def targets_of(arrows: Iterable[Arrow]) -> Targets:
    """Returns where the arrows from each box lead."""
    targets = defaultdict[str, set[str]](set)
    for one, other in arrows:
        targets[one].add(other)
    return targets


def reachable(start: str, targets: Targets) -> set[str]:
    """Returns all to which arrows lead from here; with the start if they lead back."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = targets.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def in_circles(arrows: Iterable[Arrow]) -> set[str]:
    """Returns all from which arrows lead back to themselves."""
    targets = targets_of(arrows)
    return {one for one in targets if one in reachable(one, targets)}


def reduced(arrows: Iterable[Arrow]) -> set[Arrow]:
    """Leaves out each arrow that follows from others: it goes where they lead anyway.

    An arrow of a circle stays.
    """
    kept = set(arrows)
    targets = targets_of(kept)
    for one, other in sorted(kept):
        targets[one].remove(other)
        if one in reachable(other, targets) or other not in reachable(one, targets):
            targets[one].add(other)
    return {(one, other) for one in targets for other in targets[one]}
