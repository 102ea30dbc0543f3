"""What the classes of a house declare, and of which class something is.

That follows from annotations, from what is called, and from what is assigned. It is not
always known: this is no type checker, and what it does not know it says.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from house import House, Module

SAME = {"values", "copy", "list", "sorted", "tuple", "set", "reversed", "iter"}
"""What gives the same things as the container that it is asked of."""

ITEM = {"get", "pop", "popleft", "popitem", "setdefault", "next", "min", "max"}
"""What gives one thing of it."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Typed:
    """An annotation, to be read in the module that has it."""

    annotation: ast.expr
    module: Module


@dataclass(eq=False)
class Class:
    """What a class of the house declares."""

    name: str
    module: Module
    bases: list[ast.expr]
    attributes: dict[str, Typed | None] = field(default_factory=dict)
    methods: dict[str, FunctionNode] = field(default_factory=dict)
    setters: set[str] = field(default_factory=set)

    @property
    def place(self) -> str:
        """Where it is, as the tables of the laws name it."""
        return f"{self.module.name}.{self.name}"


class Scope:
    """What the names of a function mean: those of the functions around it, too."""

    def __init__(
        self, module: Module, owner: Class | None = None, around: "Scope | None" = None
    ) -> None:
        self.module = module
        self.owner = owner
        self.around = around
        self.annotated: dict[str, ast.expr] = {}
        self.given: dict[str, list[ast.expr]] = {}

    def read(self, node: FunctionNode) -> None:
        """Takes in the arguments of a function, and what it assigns to names."""
        arguments = node.args
        for argument in [
            *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs
        ]:  # fmt: skip
            if argument.annotation is not None:
                self.annotated[argument.arg] = argument.annotation
        for part in _own_nodes(node):
            match part:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                    self.annotated[name] = annotation
                case ast.Assign(targets=targets, value=value):
                    self._give(targets, value)
                case ast.NamedExpr(target=target, value=value):
                    self._give([target], value)
                case ast.withitem(context_expr=value, optional_vars=ast.expr() as to):
                    self._give([to], value)
                case ast.For(target=ast.Name() as target, iter=source):
                    self._give([target], _item_of(source))
                case ast.For(
                    target=ast.Tuple(elts=[_, target]),
                    iter=ast.Call(func=ast.Attribute(attr="items", value=source)),
                ):
                    self._give([target], _item_of(source))

    def _give(self, targets: list[ast.expr], value: ast.expr) -> None:
        for one, its in _pairs(targets, value):
            if isinstance(one, ast.Name):
                self.given.setdefault(one.id, []).append(its)


class Classes:
    """All classes of a house.

    Attributes:
        nodes: all of the syntax trees, each node with what names mean there.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._of_module: dict[str, dict[str, Class]] = {x: {} for x in house.modules}
        self._imported = {
            name: dict(_imported(house, module))
            for name, module in house.modules.items()
        }
        for module in house.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    self._of_module[module.name][node.name] = _declared(node, module)
        self._foreign = {
            name: set(_foreign(house, module)) for name, module in house.modules.items()
        }
        self.all = [x for some in self._of_module.values() for x in some.values()]
        self._asked: list[tuple[str, Scope]] = []
        self.nodes: list[tuple[ast.AST, Scope]] = []
        for module in house.modules.values():
            self._visit(module.tree, Scope(module))
        for node, scope in self.nodes:
            match node:
                case ast.Attribute(value=own, attr=name, ctx=ast.Store()):
                    if is_own(own) and scope.owner is not None:
                        scope.owner.attributes.setdefault(name, None)
        for _ in range(2):  # one attribute is often assigned from another
            self._infer()

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.ClassDef):
                owner = self._of_module[scope.module.name][child.name]
                inner = Scope(scope.module, owner, scope)
            elif isinstance(child, FunctionNode):
                inner = Scope(scope.module, scope.owner, scope)
                inner.read(child)
            self.nodes.append((child, inner))
            self._visit(child, inner)

    def _infer(self) -> None:
        """Finds the types of attributes by what their own class assigns to them."""
        for module in self._house.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    owner = self._of_module[module.name][node.name]
                    for method in owner.methods.values():
                        scope = Scope(module, owner)
                        scope.read(method)
                        self._infer_from(method, owner, scope)

    def _infer_from(self, method: FunctionNode, owner: Class, scope: Scope) -> None:
        declared = owner.attributes
        for node in _own_nodes(method):
            match node:
                case ast.AnnAssign(target=ast.Attribute(value=own, attr=name)):
                    if is_own(own):
                        declared[name] = Typed(node.annotation, owner.module)
                case ast.Assign(targets=targets, value=value):
                    for one, its in _pairs(targets, value):
                        if (
                            isinstance(one, ast.Attribute)
                            and is_own(one.value)
                            and declared.get(one.attr) is None
                        ):
                            declared[one.attr] = self.type_of(its, scope)

    def is_foreign(self, typed: Typed | None) -> bool:
        """Says whether something is of a class that other packages have."""
        if typed is None:
            return False
        root: ast.expr = typed.annotation
        while isinstance(root, ast.Attribute):
            root = root.value
        return (
            isinstance(root, ast.Name) and root.id in self._foreign[typed.module.name]
        )

    def _source(self, name: str, module: Module) -> tuple[str, str]:
        return self._imported[module.name].get(name, ("", ""))

    def named(self, name: str, module: Module) -> Class | None:
        """Returns the class that a name means in a module."""
        if name in self._of_module[module.name]:
            return self._of_module[module.name][name]
        source, there = self._source(name, module)
        if not source or not there:
            return None
        found = self._of_module[source].get(there)
        if (
            found is None
            and self._source(there, self._house.modules[source])[0] != source
        ):
            return self.named(there, self._house.modules[source])
        return found

    def class_of(self, typed: Typed | None) -> Class | None:
        """Returns the first class of those of which something may be."""
        return next(iter(self.classes_of(typed)), None)

    def classes_of(self, typed: Typed | None) -> list[Class]:
        """Returns the classes of the house of which something may be, as annotated."""
        if typed is None:
            return []
        module = typed.module
        found: Class | None = None
        match typed.annotation:
            case ast.Constant(value=str(text)):
                return self.classes_of(Typed(ast.parse(text, mode="eval").body, module))
            case ast.BinOp(left=left, right=right):
                sides = (self.classes_of(Typed(x, module)) for x in (left, right))
                return [x for side in sides for x in side]
            case ast.Subscript(value=value):
                return self.classes_of(Typed(value, module))
            case ast.Name(id=name):
                found = self.named(name, module)
            case ast.Attribute(attr=name, value=ast.Name(id=room)):
                source, there = self._source(room, module)
                if source and not there:
                    found = self._of_module[source].get(name)
        return [found] if found is not None else []

    def line(self, owner: Class) -> Iterator[Class]:
        """Goes through a class, and those of the house from which it derives."""
        yield owner
        for base in owner.bases:
            found = self.class_of(Typed(base, owner.module))
            if found is not None and found is not owner:
                yield from self.line(found)

    def declaring(self, name: str) -> list[Class]:
        """Returns all classes that have an attribute of this name."""
        return [x for x in self.all if name in x.attributes]

    def type_of(self, value: ast.expr, scope: Scope) -> Typed | None:
        """Returns how something is annotated, if that can be told."""
        match value:
            case ast.Name(id="self" | "cls") if scope.owner is not None:
                return Typed(ast.Name(scope.owner.name), scope.owner.module)
            case ast.Name(id=name):
                return self._type_of_name(name, scope)
            case ast.Attribute(value=inner, attr=name):
                return self._type_of_attribute(value, inner, name, scope)
            case ast.Subscript(value=inner):
                return _item(self.type_of(inner, scope))
            case ast.Call(func=function, args=given):
                return self._type_of_call(function, given, scope)
            case ast.Await(value=inner) | ast.NamedExpr(value=inner):
                return self.type_of(inner, scope)
            case ast.ListComp(elt=inner) | ast.SetComp(elt=inner):
                return self.type_of(inner, scope)
            case ast.Tuple(elts=[inner, *_]) | ast.List(elts=[inner, *_]):
                return self.type_of(inner, scope)
            case ast.IfExp(body=one, orelse=other):
                return self.type_of(one, scope) or self.type_of(other, scope)
            case ast.BoolOp(values=values):
                found = (self.type_of(x, scope) for x in values)
                return next((x for x in found if x is not None), None)
        return None

    def _type_of_attribute(
        self, value: ast.expr, inner: ast.expr, name: str, scope: Scope
    ) -> Typed | None:
        typed = self.type_of(inner, scope)
        owner = self.class_of(typed)
        if owner is None and self.is_foreign(typed or Typed(value, scope.module)):
            return typed or Typed(value, scope.module)
        return self._attribute(owner, name)

    def _type_of_name(self, name: str, scope: Scope) -> Typed | None:
        at: Scope | None = scope
        while at is not None:
            if name in at.annotated:
                return Typed(at.annotated[name], at.module)
            if name in at.given and (name, at) not in self._asked:
                self._asked.append((name, at))  # no name is followed in a circle
                found = [self.type_of(x, at) for x in at.given[name]]
                self._asked.pop()
                return next((x for x in found if x is not None), None)
            at = at.around
        return None

    def _type_of_call(
        self, function: ast.expr, given: list[ast.expr], scope: Scope
    ) -> Typed | None:
        match function:
            case ast.Subscript():
                return Typed(function, scope.module)
            case ast.Name(id=name) if name in SAME and given:
                return self.type_of(given[0], scope)
            case ast.Name(id=name) if name in ITEM and given:
                return _item(self.type_of(given[0], scope))
            case ast.Name(id=name):
                made = Typed(function, scope.module)
                if self.class_of(made) is not None or self.is_foreign(made):
                    return made
                return self._returned(name, scope.module)
            case ast.Attribute(value=inner, attr=name):
                typed = self.type_of(inner, scope)
                owner = self.class_of(typed)
                if owner is not None:
                    return self._attribute(owner, name)
                if self.is_foreign(typed or Typed(function, scope.module)):
                    return typed or Typed(function, scope.module)
                if isinstance(inner, ast.Name):
                    maker = self.named(inner.id, scope.module)
                    if maker is not None:
                        return self._attribute(maker, name)
                    source, there = self._source(inner.id, scope.module)
                    if source and not there:
                        return self._returned(name, self._house.modules[source])
                if name in SAME:
                    return typed
                return _item(typed) if name in ITEM else None
        return None

    def _attribute(self, owner: Class | None, name: str) -> Typed | None:
        for one in self.line(owner) if owner is not None else ():
            if one.attributes.get(name) is not None:
                return one.attributes[name]
            if name in one.methods and (returns := one.methods[name].returns):
                if isinstance(returns, ast.Name) and returns.id == "Self":
                    return Typed(ast.Name(one.name), one.module)
                return Typed(returns, one.module)
        return None

    def _returned(self, name: str, module: Module) -> Typed | None:
        source, there = self._source(name, module)
        home = self._house.modules[source] if source else module
        for node in home.tree.body:
            if isinstance(node, FunctionNode) and node.name == (there or name):
                return Typed(node.returns, home) if node.returns is not None else None
        return None


def _imported(house: House, module: Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Goes through the names that a module imports: whence, and what ("": all)."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                source = house.inside(node.module or "", alias.name)
                if source is not None:
                    whole = source == house.inside(f"{node.module}.{alias.name}")
                    there = "" if whole else alias.name
                    yield alias.asname or alias.name, (source, there)


def _foreign(house: House, module: Module) -> Iterator[str]:
    """Goes through the names that a module imports from other packages."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = getattr(node, "module", None)
            if source == "typing":
                continue  # whatever it is: Any says nothing
            for alias in node.names:
                if house.inside(source or alias.name) is None:
                    yield alias.asname or alias.name.split(".")[0]


def _declared(node: ast.ClassDef, module: Module) -> Class:
    found = Class(node.name, module, node.bases)
    for part in node.body:
        match part:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.methods.setdefault(part.name, part)
                for decorator in part.decorator_list:
                    if (
                        isinstance(decorator, ast.Attribute)
                        and decorator.attr == "setter"
                    ):
                        found.setters.add(part.name)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                found.attributes[name] = Typed(annotation, module)
            case ast.Assign(targets=[ast.Name(id=name)]):
                found.attributes[name] = None
    return found


def _own_nodes(function: FunctionNode) -> Iterator[ast.AST]:
    """Goes through what a function says, but for the functions within it."""
    ahead: list[ast.AST] = list(function.body)
    while ahead:
        node = ahead.pop()
        yield node
        if not isinstance(node, FunctionNode):
            ahead += ast.iter_child_nodes(node)


def _pairs(
    targets: list[ast.expr], value: ast.expr
) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Goes through what an assignment assigns to what."""
    for target in targets:
        match target, value:
            case ast.Tuple(elts=ones), ast.Tuple(elts=values):
                for one, its in zip(ones, values, strict=False):
                    yield from _pairs([one], its)
            case _:
                yield target, value


def _item_of(source: ast.expr) -> ast.expr:
    return ast.Subscript(source, ast.Constant(0))


def _item(typed: Typed | None) -> Typed | None:
    """Returns how the things in a container are annotated; in a mapping, the values."""
    if typed is None:
        return None
    match typed.annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[first, ast.Constant()])):
            return Typed(first, typed.module)
        case ast.Subscript(slice=ast.Tuple(elts=[*_, last])):
            return Typed(last, typed.module)
        case ast.Subscript(slice=only):
            return Typed(only, typed.module)
        case ast.Attribute() | ast.Name():
            return typed  # of other packages: nobody here knows more
    return None


def is_own(value: ast.expr) -> bool:
    """Says whether something is the object, or the class, whose method this is."""
    return isinstance(value, ast.Name) and value.id in {"self", "cls"}
