"""Who sets attributes of whom: finds what is planted into an object from outside.

An attribute belongs to the module whose class declares it: only this module sets it.
Where the class of an object is not known, each class that declares an attribute of
this name counts.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from house import Module
from support.classes import Class, Classes, Scope, Typed, is_own


@dataclass(frozen=True)
class Plant:
    """An attribute set from outside; of which class, as far as that is known."""

    by: Module
    line: int
    owner: Class | None
    attribute: str
    is_method: bool = False

    def __str__(self) -> str:
        owner = self.owner.place if self.owner is not None else "?"
        return f"{self.by.name} sets {owner}.{self.attribute}"


def plants(classes: Classes) -> Iterator[Plant]:
    """Finds each attribute that is set by a module that is not its class's own.

    And each method that is replaced, by whomever.
    """
    for node, scope in classes.nodes:
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                yield from _planted(classes, scope, node)
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[target, *_]):
                yield from _planted_somehow(classes, scope, target)
            case ast.Call(
                func=ast.Attribute(attr="__setattr__" | "__delattr__"),
                args=[target, *_],
            ):
                yield from _planted_somehow(classes, scope, target)
            case ast.Attribute(value=target, attr="__dict__"):
                yield from _planted_somehow(classes, scope, target)


def _planted(classes: Classes, scope: Scope, store: ast.Attribute) -> Iterator[Plant]:
    value, name, module = store.value, store.attr, scope.module
    owners = _owners(classes, value, scope)
    if not owners and _is_foreign(classes, value, scope):
        return
    is_mine = _is_mine(classes, value, scope)
    for owner in owners:
        if _is_method(classes, owner, name):
            yield Plant(module, store.lineno, owner, name, is_method=True)
        elif not is_mine and not _is_at_home(classes, owner, module, name):
            yield Plant(module, store.lineno, owner, name)
    if not owners and not is_mine:
        possible = classes.declaring(name)
        if not possible or any(x.module is not module for x in possible):
            yield Plant(module, store.lineno, _only(possible), name)


def _planted_somehow(
    classes: Classes, scope: Scope, target: ast.expr
) -> Iterator[Plant]:
    """Finds what is set under a name that the source may not say."""
    if not _is_mine(classes, target, scope):
        owners = _owners(classes, target, scope)
        if not owners or any(x.module is not scope.module for x in owners):
            yield Plant(scope.module, target.lineno, _only(owners), "*")


def _owners(classes: Classes, value: ast.expr, scope: Scope) -> list[Class]:
    """Returns the classes of which something may be; nothing if that is not known."""
    if is_own(value):
        return [scope.owner] if scope.owner is not None else []
    if isinstance(value, ast.Name):
        itself = classes.named(value.id, scope.module)
        if itself is not None:
            return [itself]
    return classes.classes_of(classes.type_of(value, scope))


def _is_foreign(classes: Classes, value: ast.expr, scope: Scope) -> bool:
    """Says whether something is, or is of a class, of another package."""
    typed = classes.type_of(value, scope) or Typed(value, scope.module)
    return classes.is_foreign(typed)


def _only(owners: list[Class]) -> Class | None:
    return owners[0] if len(owners) == 1 else None


def _is_method(classes: Classes, owner: Class, name: str) -> bool:
    line = list(classes.line(owner))
    return any(name in x.methods for x in line) and not any(
        name in x.setters for x in line
    )


def _is_at_home(classes: Classes, owner: Class, module: Module, name: str) -> bool:
    return any(
        x.module is module or name in x.setters
        for x in classes.line(owner)
        if name in x.attributes or name in x.methods or x is owner
    )


def _is_mine(classes: Classes, value: ast.expr, scope: Scope) -> bool:
    """Says whether this very function made something, or is its method."""
    if is_own(value):
        return True
    if not isinstance(value, ast.Name):
        return False
    made = scope.given.get(value.id, [])
    return bool(made) and all(
        isinstance(x, ast.Call)
        and isinstance(x.func, ast.Name)
        and (x.func.id == "cls" or classes.named(x.func.id, scope.module) is not None)
        for x in made
    )
