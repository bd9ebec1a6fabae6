"""Which params a stage reads, derived from its code: what dvc.yaml must declare, and nothing else.

From `pipeline.stages.NAME.main` every function that can be called is followed, by its name, and sections of params.yaml
by the annotations that functions, fields and properties carry (mypy sees to it that these are there and true). An
attribute of a section is a key that is read. A section that goes where it cannot be followed is read as a whole. So
what is found may be too much, never too little, but for what code finds by `getattr` or by another's type `Any`.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.provenance import EXEMPT, ROOT
from tests.package_index import Definition, Function, PackageIndex, Value, Values

PARAMS = "pipeline.params"
WHOLE = f"{PARAMS}.Params"
# Attributes of the whole that are no sections, and the keys that they read (`pipeline/members.py`).
MEMBERS = {"member_ids": {"member_ids"}, "members": {"members"}, "known_px": {"members", "member_ids"}}
NEVER = {"housekeeping", "cluster"}  # the sections of what changes no result

# Foreign functions that hand on what they are given, and look at none of it.
_CARRIERS = {"zip", "list", "tuple", "dict", "set", "iter", "next", "enumerate", "reversed", "map", "filter", "len"}
_CARRIERS |= {"isinstance", "id", "type", "partial", "replace", "islice", "chain", "starmap", "deque", "cast", "field"}
_MUTATORS = {"append", "add", "extend", "insert", "update", "setdefault", "appendleft"}
_READERS = {"get", "items", "values", "pop", "popleft", "popitem", "copy", "setdefault"}
# Foreign bases that call no method of a class by themselves.
_PASSIVE = {"NamedTuple", "Protocol", "Generic", "BaseModel", "ABC", "object"}
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
_NONE: Values = frozenset()


def read_params(stage: str, root: Path = ROOT) -> list[str]:
    """Return the params that the stage `stage` reads, as `section` where it reads all of it, else `section.key`.

    They come in the order of `pipeline/params.py`; those of NEVER are left out.
    """
    return Reader(PackageIndex(root)).read(f"pipeline.stages.{stage}.main")


class Scope:
    """The local names of a function, and the function around it."""

    def __init__(self, definition: Definition | None, module: str, around: "Scope | None" = None) -> None:
        self.definition, self.module, self.around = definition, module, around
        self.values: dict[str, Values] = {}

    def find(self, name: str) -> Values | None:
        """Return what a local name may stand for; None where it is none."""
        return self.values[name] if name in self.values else self.around.find(name) if self.around else None


class Reader:
    """Follows a function through its package, over and over until nothing new is found."""

    def __init__(self, package: PackageIndex) -> None:
        self._package = package
        parts = [package.classes[name] for name in reversed(package.lineage(WHOLE)) if name.startswith("pipeline.")]
        fields = {key: package.mentions(note, part.module) for part in parts for key, note in part.fields.items()}
        self._sections = {value.name: key for key, values in fields.items() for value in values}
        self._order = [key for key in fields if key != "model_config"]
        self._plain_read: set[str] = set()  # keys of the file that are no sections
        self._read: set[tuple[str, str]] = set()  # section class, key
        self._reached: dict[str, None] = {}
        self._classes: dict[str, None] = {}
        self._touched: set[str] = set()  # names of attributes
        self._stored: dict[tuple[str, str], Values] = defaultdict(frozenset)  # class, attribute
        self._scopes: dict[int, Scope] = {}
        self._variables: dict[str, Values] = {}
        self._watched = {module for module, path in package.paths.items() if path in EXEMPT and module != PARAMS}

    def read(self, start: str) -> list[str]:
        """Return the params that the function `start` reads."""
        self._reached[start] = None
        before = None
        while before != (now := self._measure()):
            before = now
            self._variables.clear()
            for name in list(self._reached):
                definition = self._package.functions[name]
                if definition.module not in self._watched:
                    self._follow(definition, None)
            for name in list(self._classes):
                self._reach_methods(name)
        return list(self._list_keys())

    def _measure(self) -> tuple[int, ...]:
        local = sum(len(values) for scope in self._scopes.values() for values in scope.values.values())
        stored = sum(map(len, self._stored.values()))
        return len(self._read), len(self._reached), len(self._classes), len(self._touched), local, stored

    def _list_keys(self) -> Iterator[str]:
        yield from [key for key in self._order if key in self._plain_read]
        for name, section in sorted(self._sections.items(), key=lambda item: self._order.index(item[1])):
            keys = self._fields_of(name)
            found = [key for key in keys if (name, key) in self._read]
            if section in NEVER or not (found or (self._is_open(name) and (name, "*") in self._read)):
                continue
            yield from [section] if found == keys or self._is_open(name) else [f"{section}.{key}" for key in found]

    # --- what is reached and read

    def _fields_of(self, name: str) -> list[str]:
        return [key for key in self._package.classes[name].fields if key != "model_config"]

    def _is_open(self, name: str) -> bool:
        """Whether a section takes keys that it does not know: it counts as one key."""
        return "extra='allow'" in ast.unparse(self._package.classes[name].node)

    def _consume(self, values: Values, deep: bool = False) -> None:
        """Count the sections in `values`, and in what `params.py` composes of them, as read whole."""
        for kind, name in values:
            if kind == "instance" and name in self._sections:
                self._read |= {(name, key) for key in [*self._fields_of(name), "*"]}
            elif kind == "instance" and (deep or self._package.classes[name].module == PARAMS):
                classes = [self._package.classes[each] for each in self._package.lineage(name)]
                parts = [self._package.mentions(note, one.module) for one in classes for note in one.fields.values()]
                self._consume(frozenset().union(*parts) - values, deep)
                if name == WHOLE:
                    self._plain_read |= set().union(*MEMBERS.values())

    def _reach_class(self, name: str) -> None:
        if name in self._classes:
            return
        self._classes[name] = None
        found = self._package.classes[name]
        scope = Scope(None, found.module)
        for node in [*found.node.bases, *found.node.decorator_list]:
            self._evaluate(node, scope)
        for node in found.node.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                self._evaluate(node.value, scope)

    def _reach_methods(self, name: str) -> None:
        """Reach the methods of a class that may be called: by the language, by a foreign base, or by their name."""
        any_of_them = bool(self._package.foreign_bases(name) - _PASSIVE)
        for each in self._package.lineage(name):
            for method in self._package.classes[each].methods:
                if any_of_them or method.startswith("__") or method in self._touched:
                    self._reached[f"{each}.{method}"] = None

    # --- statements

    def _follow(self, definition: Definition, around: Scope | None) -> None:
        scope = self._scopes.setdefault(id(definition.node), Scope(definition, definition.module, around))
        given = definition.node.args
        notes = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        for one in [*notes, *filter(None, (given.vararg, given.kwarg))]:
            self._bind_name(one.arg, self._package.mentions(one.annotation, definition.module), scope)
        if definition.owner and notes and not definition.is_decorated("staticmethod"):
            kind = "class" if definition.is_decorated("classmethod") else "instance"
            self._bind_name(notes[0].arg, frozenset({Value(kind, definition.owner)}), scope)
        defaults = [*given.defaults, *filter(None, given.kw_defaults)]
        for node in [*definition.node.decorator_list, *defaults]:
            self._evaluate(node, scope)
        for statement in definition.node.body:
            self._execute(statement, scope)

    def _execute(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, Function):
            name = f"{scope.module}.<{id(node)}>.{node.name}"
            inner = self._package.functions.setdefault(name, Definition(node, scope.module))
            self._bind_name(node.name, frozenset({Value("def", name)}), scope)
            self._follow(inner, scope)
        elif isinstance(node, ast.ClassDef):
            raise NotImplementedError(f"{scope.module}: the class {node.name} inside a function cannot be followed")
        elif isinstance(node, ast.Return):
            self._hand_out(node.value, scope)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value, scope)
        elif isinstance(node, ast.AnnAssign):
            values = self._evaluate(node.value, scope) | self._package.mentions(node.annotation, scope.module)
            self._bind(node.target, values, scope)
        elif isinstance(node, ast.AugAssign):
            self._bind(node.target, self._evaluate(node.value, scope), scope)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            self._bind(node.target, self._elements(self._evaluate(node.iter, scope)), scope)
            self._execute_parts(node, scope, {"target", "iter"})
        elif isinstance(node, ast.withitem):
            values = self._elements(self._evaluate(node.context_expr, scope))
            if node.optional_vars:
                self._bind(node.optional_vars, values, scope)
        elif isinstance(node, ast.expr):
            self._evaluate(node, scope)
        else:
            self._execute_parts(node, scope)

    def _execute_parts(self, node: ast.AST, scope: Scope, without: Iterable[str] = ()) -> None:
        for name, value in ast.iter_fields(node):
            if name not in without:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self._execute(child, scope)

    def _hand_out(self, node: ast.expr | None, scope: Scope) -> None:
        """Follow what a function returns or yields: its annotation says what callers get."""
        function = scope.definition
        returns = self._package.mentions(function.node.returns, scope.module) if function else _NONE
        self._hand_over(self._evaluate(node, scope), returns)

    def _assign(self, target: ast.expr, value: ast.expr, scope: Scope) -> None:
        pairs = (target.elts, value.elts) if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) else None
        if (
            pairs
            and len(pairs[0]) == len(pairs[1])
            and not any(isinstance(one, ast.Starred) for one in [*pairs[0], *pairs[1]])
        ):
            for one, other in zip(*pairs, strict=True):
                self._assign(one, other, scope)
        else:
            values = self._evaluate(value, scope)
            self._bind(target, self._elements(values) if isinstance(target, ast.Tuple | ast.List) else values, scope)

    def _bind(self, target: ast.expr, values: Values, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            self._bind_name(target.id, values, scope)
        elif isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self._bind(one, values, scope)
        elif isinstance(target, ast.Starred | ast.Subscript):
            self._bind(target.value, values, scope)
        elif isinstance(target, ast.Attribute):
            holders = [value.name for value in self._evaluate(target.value, scope) if value.kind == "instance"]
            for name in holders:
                self._stored[name, target.attr] |= values
            if not holders:
                self._consume(values)

    def _bind_name(self, name: str, values: Values, scope: Scope) -> None:
        scope.values[name] = scope.values.get(name, _NONE) | values

    # --- expressions

    def _evaluate(self, node: ast.AST | None, scope: Scope, context: Values = _NONE) -> Values:
        """Return what an expression may stand for or hold; `context` is what goes to a function without annotations."""
        if isinstance(node, ast.Name):
            found = scope.find(node.id)
            return self._expand(self._package.resolve(scope.module, node.id)) if found is None else found
        if isinstance(node, ast.Attribute):
            return self._attribute(self._evaluate(node.value, scope), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        if isinstance(node, ast.Lambda):
            inner = self._scopes.setdefault(id(node), Scope(None, scope.module, scope))
            for one in [*node.args.args, *filter(None, [node.args.vararg])]:
                self._bind_name(one.arg, context, inner)
            return self._evaluate(node.body, inner)
        if isinstance(node, ast.Yield | ast.YieldFrom):
            self._hand_out(node.value, scope)
            return _NONE
        if isinstance(node, ast.NamedExpr):
            values = self._evaluate(node.value, scope)
            self._bind(node.target, values, scope)
            return values
        if isinstance(node, ast.Subscript):
            self._evaluate(node.slice, scope)
            return self._elements(self._evaluate(node.value, scope))
        if isinstance(node, _COMPREHENSIONS):
            for generator in node.generators:
                self._execute(generator, scope)
        parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)] if node else []
        values = frozenset().union(*(self._evaluate(part, scope) for part in parts))
        looks = isinstance(node, ast.Compare) and not all(isinstance(one, ast.Is | ast.IsNot) for one in node.ops)
        if looks or isinstance(node, ast.FormattedValue):
            self._consume(values)
        return _NONE if isinstance(node, ast.Compare | ast.JoinedStr | ast.UnaryOp) else values

    def _expand(self, value: Value) -> Values:
        """Return a name's value: functions and classes are reached by being named, variables stand for their values."""
        if value.kind == "def":
            self._reached[value.name] = None
        elif value.kind == "class":
            self._reach_class(value.name)
        elif value.kind == "variable":
            if value.name not in self._variables:
                self._variables[value.name] = _NONE  # where it is defined by itself
                module, nodes, notes = self._package.variables[value.name]
                found = [self._evaluate(node, Scope(None, module)) for node in nodes]
                found += [self._package.mentions(note, module) for note in notes]
                self._variables[value.name] = frozenset().union(*found)
            return self._variables[value.name]
        return frozenset({value})

    def _attribute(self, values: Values, name: str) -> Values:
        self._touched.add(name)
        found = _NONE
        for value in values:
            if value.kind == "module":
                found |= self._expand(self._package.resolve(value.name, name))
            elif value.kind == "foreign":
                # The first word and the last: in `x = x.y` the whole would grow for ever.
                found |= {Value("foreign", f"{value.name.split('.')[0]}.{name}")}
            elif value.kind in ("class", "instance"):
                found |= self._member(value, name)
        return found

    def _member(self, value: Value, name: str) -> Values:
        """Return what an attribute of an instance or a class may be; of what holds instances, these again."""
        if value.name in self._sections or value.name == WHOLE:
            if name == "model_copy":
                return frozenset({Value("copy", value.name)})
            if name.startswith("model_") or name in ("dict", "json", "__dict__") or self._is_open(value.name):
                self._consume(frozenset({value}))
                return _NONE
            if name in self._package.classes[value.name].fields and value.name != WHOLE:
                self._read.add((value.name, name))
            if value.name == WHOLE:
                self._plain_read |= MEMBERS.get(name, set())
        for each in self._package.lineage(value.name):
            found = self._package.classes[each]
            if name in found.methods:
                method = self._package.functions[f"{each}.{name}"]
                self._reached[f"{each}.{name}"] = None
                if method.is_decorated("property", "cached_property"):
                    return self._package.mentions(method.node.returns, found.module)
                return frozenset({Value("def", f"{each}.{name}")})
            if name in found.fields or (each, name) in self._stored:
                return self._stored[each, name] | self._package.mentions(found.fields.get(name), found.module)
        # A list or a dict of sections, or what is a class's own by a foreign base, as `model.to(device)`.
        return frozenset({value}) if name in _READERS or value.name not in self._sections else _NONE

    def _elements(self, values: Values) -> Values:
        """Return what iterating, unpacking, indexing or entering may give."""
        found = set(values)
        for name in [value.name for value in values if value.kind == "instance"]:
            for each in self._package.lineage(name):
                kind = self._package.classes[each]
                for method in {"__iter__", "__next__", "__getitem__", "__enter__"} & kind.methods:
                    returns = self._package.functions[f"{each}.{method}"].node.returns
                    found |= self._package.mentions(returns, kind.module)
                if "NamedTuple" in self._package.foreign_bases(each):
                    found |= frozenset().union(*(self._package.mentions(n, kind.module) for n in kind.fields.values()))
        return frozenset(found)

    # --- calls

    def _call(self, node: ast.Call, scope: Scope) -> Values:
        callee = self._evaluate(node.func, scope)
        given: list[tuple[int | str | None, Values]] = []  # by position, by name, or None where it may be any
        for place, one in enumerate(node.args):
            if not isinstance(one, ast.Lambda):
                values = self._evaluate(one, scope)
                given.append((None, self._elements(values)) if isinstance(one, ast.Starred) else (place, values))
        for keyword in node.keywords:
            if not isinstance(keyword.value, ast.Lambda):
                given.append((keyword.arg, self._evaluate(keyword.value, scope)))
        everything = frozenset().union(*(values for _, values in given))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS:
            self._bind(node.func.value, everything, scope)
        result = _NONE
        promised = everything
        for value in callee:
            more, accepted = self._call_one(value, given, everything)
            result, promised = result | more, promised | accepted
        is_mutator = isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS
        if not callee and not is_mutator:
            self._consume(everything)
            result = everything
        for one in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(one, ast.Lambda):
                taken = [self._package.callables[value.name][0] for value in promised if value.kind == "callable"]
                result |= self._evaluate(one, scope, promised.union(*taken))
        return result

    def _call_one(
        self, value: Value, given: list[tuple[int | str | None, Values]], everything: Values
    ) -> tuple[Values, Values]:
        """Return what calling `value` gives, and what its parameters are annotated with."""
        if value.kind == "def":
            definition = self._package.functions[value.name]
            accepted = self._pass_arguments(definition, given)
            returns = self._package.mentions(definition.node.returns, definition.module)
            return returns | (everything if any(one.kind == "typevar" for one in returns) else _NONE), accepted
        if value.kind == "class":
            return frozenset({Value("instance", value.name)}), self._construct(value.name, given)
        if value.kind == "copy":
            return frozenset({Value("instance", value.name)}), _NONE
        if value.kind == "callable":
            accepted, returns = self._package.callables[value.name]
            self._hand_over(everything, accepted)
            return returns, accepted
        if value.kind == "partial":
            return self._call_one(Value("def", value.name), [(None, values) for _, values in given], everything)
        if value.kind == "instance":  # of a class that can be called, or held by what is called
            calls = [f"{each}.__call__" for each in self._package.lineage(value.name)]
            known = [self._package.functions[name] for name in calls if name in self._package.functions]
            accepted = frozenset().union(*(self._pass_arguments(one, given) for one in known))
            returns = [self._package.mentions(one.node.returns, one.module) for one in known]
            return frozenset({value}).union(*returns), accepted
        word = value.name.split(".")[-1]
        if word == "partial":
            bound = [one for one in everything if one.kind == "def"]
            for one in bound:
                self._call_one(one, [(None, values) for _, values in given], everything)
            return frozenset(Value("partial", one.name) for one in bound) or everything, _NONE
        if value.kind == "foreign" and word not in _CARRIERS:
            self._consume(everything, deep=word in ("asdict", "astuple", "vars"))
        return everything, _NONE

    def _construct(self, name: str, given: list[tuple[int | str | None, Values]]) -> Values:
        for each in self._package.lineage(name):
            if "__init__" in self._package.classes[each].methods:
                return self._pass_arguments(self._package.functions[f"{each}.__init__"], given)
        lineage = [self._package.classes[each] for each in reversed(self._package.lineage(name))]
        notes = {key: self._package.mentions(note, one.module) for one in lineage for key, note in one.fields.items()}
        return self._pass_by(notes, given, lineage[-1].module in self._watched)

    def _pass_arguments(self, definition: Definition, given: list[tuple[int | str | None, Values]]) -> Values:
        own = definition.node.args
        notes = {one.arg: self._package.mentions(one.annotation, definition.module) for one in definition.parameters()}
        rest = [one for one in (own.vararg, own.kwarg) if one]
        others = frozenset().union(*(self._package.mentions(one.annotation, definition.module) for one in rest))
        return self._pass_by(notes, given, definition.module in self._watched, others)

    def _pass_by(
        self,
        notes: dict[str, Values],
        given: list[tuple[int | str | None, Values]],
        is_watched: bool,
        others: Values = _NONE,
    ) -> Values:
        """Hand arguments over to parameters by place or name; what only watches is not followed."""
        places = list(notes)
        accepted = others.union(*notes.values())
        for key, values in [] if is_watched else given:
            name = places[key] if isinstance(key, int) and key < len(places) else key
            self._hand_over(values, accepted if name is None else notes.get(str(name), others))
        return accepted

    def _hand_over(self, values: Values, accepted: Values) -> None:
        """Go on where the annotation names what comes; count a section as read whole where it does not."""
        if not any(one.kind == "typevar" for one in accepted):
            self._consume(frozenset(values - accepted))
