"""The workflow classes in some source files, and which functions run in their bodies.

Read by ``linter``. Names are followed as far as the files go: a base class or mixin among them is
known, anything imported from elsewhere is not.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import engine

Function = ast.FunctionDef | ast.AsyncFunctionDef
_STEPS = frozenset({"activity", "transaction"})
_OUTSIDE = frozenset({*_STEPS, "query", "rpc"})
_HANDLERS = frozenset({"signal", "update", "validator"})


@dataclass(frozen=True, eq=False)
class Module:
    """A source file. ``imports`` gives the dotted name behind a name."""

    file: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict[str, str])
    classes: dict[str, ast.ClassDef] = field(default_factory=dict[str, ast.ClassDef])
    functions: dict[str, Function] = field(default_factory=dict[str, Function])

    @classmethod
    def parse(cls, source: str, file: str) -> "Module":
        """``SyntaxError`` when it is not Python."""
        tree = ast.parse(source, filename=file)
        module = cls(file, tree)
        for node in ast.walk(tree):
            module.imports.update(_imported(node))
            if isinstance(node, ast.ClassDef):
                module.classes[node.name] = node
        module.functions.update(
            (each.name, each) for each in tree.body if isinstance(each, Function)
        )
        return module

    def name(self, node: ast.AST) -> str | None:
        """The dotted name of an expression, its imports resolved; None when it is none."""
        match node:
            case ast.Name(id=id):
                return self.imports.get(id, id)
            case ast.Attribute(value=value, attr=attr):
                inner = self.name(value)
                return None if inner is None else f"{inner}.{attr}"
            case _:
                return None


@dataclass(frozen=True, eq=False)
class Reached:
    """A function that runs in the body of workflow ``owner``."""

    module: Module
    function: Function
    where: str
    owner: "WorkflowClass"


class WorkflowClass:
    """A workflow's class with the methods it has or inherits."""

    def __init__(self, name: str, lineage: Sequence[tuple[Module, ast.ClassDef]]) -> None:
        self.name = name
        self.lineage = lineage
        self.methods: dict[str, tuple[Module, str, Function]] = {}
        self.deferreds: set[str] = set()
        for module, cls in lineage:
            for each in cls.body:
                match each:
                    case ast.FunctionDef() | ast.AsyncFunctionDef():
                        self.methods.setdefault(each.name, (module, cls.name, each))
                    case ast.Assign(targets=[ast.Name(id=id)], value=ast.Call(func=made)) if (
                        "Deferred" in ast.unparse(made)
                    ):
                        self.deferreds.add(id)
                    case _:
                        pass

    def is_step(self, name: str) -> bool:
        found = self.methods.get(name)
        return found is not None and bool(_marks(found[2]) & _STEPS)

    def is_coroutine(self, name: str) -> bool:
        found = self.methods.get(name)
        return found is not None and isinstance(found[2], ast.AsyncFunctionDef)

    def reached(self) -> list[Reached]:
        """``execute``, its handlers, and what they use of the class and the functions around it."""
        waiting = [
            Reached(module, function, f"{cls}.{name}", self)
            for name, (module, cls, function) in self.methods.items()
            if name == "execute" or _marks(function) & _HANDLERS
        ]
        found: dict[Function, Reached] = {}
        while waiting:
            each = waiting.pop()
            if each.function not in found:
                found[each.function] = each
                waiting.extend(self._used_by(each))
        return list(found.values())

    def _used_by(self, user: Reached) -> Iterator[Reached]:
        known = {cls.name for _, cls in self.lineage} | {first_parameter(user.function), "cls"}
        for node in ast.walk(user.function):
            match node:
                case ast.Attribute(value=ast.Name(id=holder), attr=attr) if holder in known:
                    yield from self._plain(attr)
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr):
                    yield from self._overridden(user.function, attr)
                case ast.Name(id=id) if id in user.module.functions:
                    yield Reached(user.module, user.module.functions[id], id, self)
                case _:
                    pass

    def _plain(self, name: str) -> Iterator[Reached]:
        found = self.methods.get(name)
        if found is not None and not _marks(found[2]) & _OUTSIDE:
            module, cls, function = found
            yield Reached(module, function, f"{cls}.{name}", self)

    def _overridden(self, function: Function, name: str) -> Iterator[Reached]:
        for module, cls in self.lineage:
            for each in cls.body:
                if not isinstance(each, Function) or each.name != name or each is function:
                    continue
                if not _marks(each) & _OUTSIDE:
                    yield Reached(module, each, f"{cls.name}.{name}", self)


def workflows_in(modules: Sequence[Module]) -> list[WorkflowClass]:
    """The workflow classes of these files: what inherits from ``engine.Workflow``, directly or
    through classes of these files."""
    program = _Program(modules)
    return [
        WorkflowClass(name, program.lineage(module, cls))
        for module in modules
        for name, cls in module.classes.items()
        if program.is_workflow(module, cls, frozenset())
    ]


def first_parameter(function: Function) -> str:
    """What the function calls its instance."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else ""


class _Program:
    def __init__(self, modules: Sequence[Module]) -> None:
        self._by_name: dict[str, tuple[Module, ast.ClassDef]] = {
            name: (module, cls) for module in modules for name, cls in module.classes.items()
        }

    def is_workflow(self, module: Module, cls: ast.ClassDef, seen: frozenset[str]) -> bool:
        for name in self._bases(module, cls):
            if name.startswith("engine.") and name.endswith(".Workflow"):
                return True
            base = self._find(module, name)
            if base is not None and name not in seen and self.is_workflow(*base, seen | {name}):
                return True
        return False

    def lineage(self, module: Module, cls: ast.ClassDef) -> list[tuple[Module, ast.ClassDef]]:
        """The class and its known bases, nearest first."""
        found = {cls: (module, cls)}
        waiting = [(module, cls)]
        while waiting:
            current = waiting.pop(0)
            for name in self._bases(*current):
                base = self._find(current[0], name)
                if base is not None and base[1] not in found:
                    found[base[1]] = base
                    waiting.append(base)
        return list(found.values())

    def _bases(self, module: Module, cls: ast.ClassDef) -> list[str]:
        bare = [base.value if isinstance(base, ast.Subscript) else base for base in cls.bases]
        return [name for each in bare if (name := module.name(each)) is not None]

    def _find(self, module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
        last = name.rpartition(".")[2]
        if last in module.classes and last == name:
            return module, module.classes[last]
        return self._by_name.get(last)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for each in node.names:
            first = each.name.partition(".")[0]
            yield (each.asname, each.name) if each.asname else (first, first)
    elif isinstance(node, ast.ImportFrom):
        origin = f"{'.' * node.level}{node.module or ''}"
        for each in node.names:
            all_of_engine = each.name == "*" and origin == engine.__name__
            for name in engine.__all__ if all_of_engine else [each.name]:
                yield each.asname or name, f"{origin}.{name}"


def _marks(function: Function) -> set[str]:
    """The last names of its decorators: ``activity`` of ``@engine.activity(retry=...)``."""
    found: set[str] = set()
    for each in function.decorator_list:
        bare = each.func if isinstance(each, ast.Call) else each
        match bare:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case _:
                pass
    return found
