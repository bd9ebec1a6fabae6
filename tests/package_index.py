"""What the names in a package stand for, read from its source alone. In: a folder with a package `pipeline`.

Out: an index of its modules, functions and classes. A value of an expression is a kind and a qualified name: a
`module`, a `def`, a `class`, an `instance` of a class, a `variable` of a module, something that is annotated as
`callable`, or something `foreign`.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Value(NamedTuple):
    """What an expression may stand for."""

    kind: str
    name: str


Values = frozenset[Value]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A function and where it stands; `owner` is the class of a method, else empty."""

    node: Function
    module: str
    owner: str = ""

    def is_decorated(self, *names: str) -> bool:
        """Whether it carries one of some decorators, as `property`."""
        return any(ast.unparse(one).split(".")[-1] in names for one in self.node.decorator_list)

    def parameters(self) -> list[ast.arg]:
        """Return the parameters that arguments can go to by position or name; without `self` or `cls`."""
        own = self.node.args
        positional = [*own.posonlyargs, *own.args]
        is_bound = self.owner and not self.is_decorated("staticmethod")
        return [*positional[1 if is_bound else 0 :], *own.kwonlyargs]


@dataclass(frozen=True)
class ClassDefinition:
    """A class, where it stands, and the fields and methods that its own body names."""

    node: ast.ClassDef
    module: str
    fields: dict[str, ast.expr]  # annotations
    methods: frozenset[str]


class PackageIndex:
    """The functions, classes and variables of a package, by qualified name."""

    def __init__(self, root: Path) -> None:
        self.trees: dict[str, ast.Module] = {}
        self.paths: dict[str, str] = {}
        self.functions: dict[str, Definition] = {}
        self.classes: dict[str, ClassDefinition] = {}
        self.variables: dict[str, tuple[str, list[ast.expr], list[ast.expr]]] = {}  # module, values, annotations
        self.callables: dict[str, tuple[Values, Values]] = {}  # what goes in and comes out, as annotated
        self._names: dict[str, dict[str, Value]] = {}
        for path in sorted((root / "pipeline").rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            self.paths[module] = path.relative_to(root).as_posix()
            self.trees[module] = ast.parse(path.read_text(encoding="utf-8"))
        for module, tree in self.trees.items():
            names = self._names[module] = dict(self._imports(tree))
            for statement in tree.body:
                self._define(statement, module, names)

    def resolve(self, module: str, name: str) -> Value:
        """Return what `name` stands for in `module`; builtins are foreign."""
        value = self._names[module].get(name, Value("foreign", f"builtins.{name}"))
        if value.kind == "import":
            inside, _, last = value.name.rpartition(".")
            return self.resolve(inside, last)
        return value

    def lineage(self, name: str) -> list[str]:
        """Return a class and those of the package that it is derived from, nearest first."""
        found = self.classes[name]
        bases = [self.resolve_node(base, found.module) for base in found.node.bases]
        return [name, *(above for base in bases if base.kind == "class" for above in self.lineage(base.name))]

    def foreign_bases(self, name: str) -> set[str]:
        """Return the last words of the names of the foreign classes that a class is derived from."""
        return {
            base.name.split(".")[-1]
            for each in self.lineage(name)
            for node in self.classes[each].node.bases
            if (base := self.resolve_node(node, self.classes[each].module)).kind == "foreign"
        }

    def resolve_node(self, node: ast.expr, module: str) -> Value:
        """Return what a name, dotted or subscripted, stands for; foreign with no name for any other expression."""
        if isinstance(node, ast.Subscript):
            return self.resolve_node(node.value, module)
        if isinstance(node, ast.Name):
            return self.resolve(module, node.id)
        if isinstance(node, ast.Attribute):
            value = self.resolve_node(node.value, module)
            is_inside = value.kind == "module" and node.attr in self._names.get(value.name, {})
            return self.resolve(value.name, node.attr) if is_inside else Value("foreign", f"{value.name}.{node.attr}")
        return Value("foreign", "")

    def mentions(self, annotation: ast.expr | None, module: str) -> Values:
        """Return what an annotation allows, alone or in what holds it: instances, callables, and type variables."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.Name | ast.Attribute):
            value = self.resolve_node(annotation, module)
            if value.kind == "class":
                return frozenset({Value("instance", value.name)})
            return self._mentions_of_variable(value.name) if value.kind == "variable" else frozenset()
        is_subscript = isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)
        if is_subscript and ast.unparse(annotation.value).split(".")[-1] == "Callable":
            key, (given, returned) = f"{module}: {ast.unparse(annotation)}", annotation.slice.elts
            self.callables[key] = self.mentions(given, module), self.mentions(returned, module)
            return frozenset({Value("callable", key)})
        children = [] if annotation is None else list(ast.iter_child_nodes(annotation))
        return frozenset().union(*(self.mentions(child, module) for child in children if isinstance(child, ast.expr)))

    def _mentions_of_variable(self, name: str) -> Values:
        module, values, _ = self.variables[name]
        if any(isinstance(value, ast.Call) and ast.unparse(value.func).endswith("TypeVar") for value in values):
            return frozenset({Value("typevar", name)})
        return frozenset().union(*(self.mentions(value, module) for value in values))

    def _imports(self, tree: ast.Module) -> Iterator[tuple[str, Value]]:
        """Yield what imports bind, at the top or inside a function."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.split(".")[0]
                    yield alias.asname or name, Value("module" if name in self.trees else "foreign", name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    kind = "module" if name in self.trees else "import" if node.module in self.trees else "foreign"
                    yield alias.asname or alias.name, Value(kind, name)

    def _define(self, node: ast.stmt, module: str, names: dict[str, Value]) -> None:
        if isinstance(node, Function):
            names[node.name] = Value("def", f"{module}.{node.name}")
            self.functions[f"{module}.{node.name}"] = Definition(node, module)
        elif isinstance(node, ast.ClassDef):
            self._define_class(node, module, names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (part for one in targets for part in ast.walk(one) if isinstance(part, ast.Name)):
                names[target.id] = Value("variable", f"{module}.{target.id}")
                entry = self.variables.setdefault(f"{module}.{target.id}", (module, [], []))
                entry[1].extend([node.value] if node.value else [])
                entry[2].extend([node.annotation] if isinstance(node, ast.AnnAssign) else [])
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self._define(child, module, names)

    def _define_class(self, node: ast.ClassDef, module: str, names: dict[str, Value]) -> None:
        name = f"{module}.{node.name}"
        names[node.name] = Value("class", name)
        methods = [one for one in node.body if isinstance(one, Function)]
        for method in methods:
            self.functions[f"{name}.{method.name}"] = Definition(method, module, name)
        annotated = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
        fields = {one.target.id: one.annotation for one in annotated if isinstance(one.target, ast.Name)}
        self.classes[name] = ClassDefinition(node, module, fields, frozenset(method.name for method in methods))
