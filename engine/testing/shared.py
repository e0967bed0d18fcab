"""Which lists, dicts and sets a function of a body has in common with other executions."""

import ast
from collections.abc import Iterable, Iterator, Set

from engine.testing.findings import Rule
from engine.testing.program import Function, Reached, WorkflowClass, first_parameter
from engine.testing.sets import assignments

_TYPES = frozenset({"dict", "list", "set", "deque", "defaultdict", "Counter", "OrderedDict"})
_CONSTRUCTORS = frozenset({"__init__", "__post_init__"})


class Shared:
    """Knows those of the module, and those that the class or ``__init__`` made once for all."""

    def __init__(self, reached: Reached, local: Set[str]) -> None:
        self._names = {*_assigned(reached.module.tree.body)} - local
        self._instance = first_parameter(reached.function)
        self._attributes = {*_made_once(reached.owner)}.difference(*_made_anew(reached.owner))

    def rule(self, node: ast.expr) -> Rule | None:
        """What it breaks to change this; None when nothing."""
        while isinstance(node, ast.Subscript):
            node = node.value
        match node:
            case ast.Name(id=id) if id in self._names:
                return Rule.SHARED
            case ast.Attribute(value=ast.Name(id=holder), attr=attr):
                shared = holder == self._instance and attr in self._attributes
                return Rule.PROTOTYPE if shared else None
            case _:
                return None


def _made_once(owner: WorkflowClass) -> Iterator[str]:
    for _, cls in owner.lineage:
        yield from _assigned(cls.body)
        for each in cls.body:
            if isinstance(each, Function) and each.name in _CONSTRUCTORS:
                yield from (attr for attr, value in _kept(each) if _is_container(value))


def _made_anew(owner: WorkflowClass) -> Iterator[set[str]]:
    """What each function of the body gives to the execution's own object."""
    for each in owner.reached():
        yield {attr for attr, _ in _kept(each.function)}


def _kept(method: Function) -> Iterator[tuple[str, ast.expr | None]]:
    """What a method assigns to attributes of its instance."""
    instance = first_parameter(method)
    for target, value, _ in assignments(method):
        match target:
            case ast.Attribute(value=ast.Name(id=holder), attr=attr) if holder == instance:
                yield attr, value
            case _:
                pass


def _assigned(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The names of the lists, dicts and sets that these statements make."""
    for each in statements:
        if isinstance(each, ast.Assign | ast.AnnAssign):
            for target, value, _ in assignments(each):
                if isinstance(target, ast.Name) and _is_container(value):
                    yield target.id


def _is_container(value: ast.expr | None) -> bool:
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="field") | ast.Attribute(attr="field"), keywords=keywords):
            return any(each.arg == "default_factory" and _is_type(each.value) for each in keywords)
        case ast.Call(func=func):
            return _is_type(func)
        case _:
            return False


def _is_type(node: ast.expr) -> bool:
    match node.value if isinstance(node, ast.Subscript) else node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _TYPES
        case _:
            return False
