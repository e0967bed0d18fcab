"""Which expressions of a function are sets, as far as its source tells."""

import ast
from collections.abc import Iterable, Iterator

from engine.testing.program import Module, WorkflowClass, first_parameter

_MAKERS = frozenset({"set", "frozenset", "asyncio.all_tasks"})
_METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference"})
_TYPES = frozenset(
    {"set", "frozenset", "Set", "FrozenSet", "AbstractSet", "MutableSet", "typing.AbstractSet"}
)
_OPERATORS = ast.BitOr | ast.BitAnd | ast.BitXor | ast.Sub

Assignment = tuple[ast.AST, ast.expr | None, ast.expr | None]
"""A target, what is assigned to it, and its annotation."""


class Sets:
    """Knows the names of a function, and the attributes of its class, that are only ever sets."""

    def __init__(self, module: Module, function: ast.AST, owner: WorkflowClass | None) -> None:
        self._module = module
        self._instance = first_parameter(function) if isinstance(function, _FUNCTIONS) else ""
        self._names: set[str] = set()
        self._attributes: set[str] = set()
        if owner is not None:
            methods = [(first_parameter(method), method) for _, _, method in owner.methods.values()]
            self._attributes = self._only_sets(
                each for instance, method in methods for each in kept(method, instance)
            )
        waits = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and self._gives(node.value)
        ]
        self.tasks: set[str] = set()
        """The names of what ``asyncio.wait`` gave: tasks that exist already."""
        self.first_done: set[str] = set()
        for node in waits:
            names = [each.id for each in ast.walk(node.targets[0]) if isinstance(each, ast.Name)]
            if isinstance(node.value, ast.Await):
                self.tasks.update(names)
                if "FIRST_COMPLETED" in ast.unparse(node.value):
                    self.first_done.update(names[:1])
        for _ in range(2):  # a name may be assigned from another
            self._names = self._only_sets(
                (target.id, value, annotation)
                for target, value, annotation in assignments(function)
                if isinstance(target, ast.Name)
            )

    def has(self, node: ast.expr) -> bool:
        """Whether the expression is a set."""
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Name(id=id):
                return id in self._names
            case ast.Attribute(value=ast.Name(id=holder), attr=attr):
                return holder == self._instance and attr in self._attributes
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _METHODS:
                return self.has(value)
            case ast.Call(func=func):
                return self._module.name(func) in _MAKERS
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
                return any(self.has(each) or _is_view(each) for each in (left, right))
            case ast.IfExp(body=body, orelse=other):
                return self.has(body) or self.has(other)
            case ast.NamedExpr(value=value):
                return self.has(value)
            case _:
                return False

    def is_first_done(self, node: ast.expr) -> bool:
        """Whether it is the ``done`` of a wait for the first: the body's loop goes on after each
        event, so that there is one."""
        return isinstance(node, ast.Name) and node.id in self.first_done

    def _only_sets(
        self, assigned: Iterable[tuple[str, ast.expr | None, ast.expr | None]]
    ) -> set[str]:
        yes: set[str] = set()
        no: set[str] = set()
        for name, value, annotation in assigned:
            is_set = self._is_type(annotation) if annotation is not None else self._gives(value)
            (yes if is_set else no).add(name)
        return yes - no

    def _gives(self, value: ast.expr | None) -> bool:
        """Also each of the two that ``asyncio.wait`` gives."""
        if isinstance(value, ast.Await) and isinstance(value.value, ast.Call):
            return self._module.name(value.value.func) == "asyncio.wait"
        return value is not None and self.has(value)

    def _is_type(self, annotation: ast.expr) -> bool:
        bare = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        name = self._module.name(bare) or ""
        return name in _TYPES or name.rpartition(".")[2] in _TYPES


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _is_view(node: ast.expr) -> bool:
    """``keys()`` and ``items()``, whose combinations are sets."""
    match node:
        case ast.Call(func=ast.Attribute(attr="keys" | "items"), args=[]):
            return True
        case _:
            return False


def assignments(function: ast.AST) -> Iterator[Assignment]:
    """All in it; not what is assigned in place, as by ``+=``."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from _spread(target, value)
            case ast.AnnAssign(target=target, value=value, annotation=annotation):
                yield target, value, annotation
            case ast.NamedExpr(target=target, value=value):
                yield target, value, None
            case ast.arg(arg=name, annotation=annotation):
                yield ast.Name(id=name), None, annotation
            case (
                ast.For(target=target)
                | ast.AsyncFor(target=target)
                | ast.comprehension(target=target)
            ):
                yield from _spread(target, None)
            case ast.withitem(optional_vars=ast.expr() as target):
                yield from _spread(target, None)
            case _:
                pass


def kept(method: ast.AST, instance: str) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """What a method assigns to the attributes of ``instance``: name, value, annotation."""
    for target, value, annotation in assignments(method):
        match target:
            case ast.Attribute(value=ast.Name(id=holder), attr=attr) if holder == instance:
                yield attr, value, annotation
            case _:
                pass


def _spread(target: ast.expr, value: ast.expr | None) -> Iterator[Assignment]:
    """Of ``a, b = x, y`` each, and of ``a, b = await asyncio.wait(...)`` both."""
    if not isinstance(target, ast.Tuple | ast.List):
        waited = isinstance(value, ast.Await) and isinstance(target, ast.Name)
        yield target, None if waited else value, None
        return
    if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
        for each, part in zip(target.elts, value.elts, strict=True):
            yield from _spread(each, part)
        return
    for each in target.elts:
        yield each, value if isinstance(value, ast.Await) else None, None
