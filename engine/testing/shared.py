"""Which lists, dicts and sets a function of a body has in common with other executions."""

import ast
from collections.abc import Iterable, Iterator, Set

from engine.testing.findings import Rule
from engine.testing.program import Function, Module, Reached, WorkflowClass, first_parameter
from engine.testing.sets import assignments, kept

_TYPES = frozenset({"dict", "list", "set", "deque", "defaultdict", "Counter", "OrderedDict"})
_CONSTRUCTORS = frozenset({"__init__", "__post_init__"})


class Shared:
    """Knows those of the module, and those that the class or ``__init__`` made once for all."""

    def __init__(self, reached: Reached, local: Set[str]) -> None:
        module = reached.module
        made = _assigned(module.tree.body)
        self._names = {name for name, value in made if _made(module, value)} - local
        self._instance = _instance(reached)
        self._attributes = {*_made_once(reached.owner)}.difference(*_made_anew(reached.owner))

    def rule(self, node: ast.expr) -> Rule | None:
        """What it breaks to change this; None when nothing."""
        match node:
            case ast.Name(id=id) if id in self._names:
                return Rule.SHARED
            case ast.Attribute(value=ast.Name(id=holder), attr=attr):
                shared = holder == self._instance and attr in self._attributes
                return Rule.PROTOTYPE if shared else None
            case _:
                return None

    def rule_of_element(self, node: ast.expr) -> Rule | None:
        """What it breaks to put something into this, or into what is in it."""
        while isinstance(node, ast.Subscript):
            node = node.value
        return self.rule(node)


def _made_once(owner: WorkflowClass) -> Iterator[str]:
    seen: set[str] = set()
    for module, cls in owner.lineage:
        own = list(_assigned(cls.body))
        yield from (name for name, value in own if name not in seen and _made(module, value))
        seen.update(name for name, _ in own)
        for each in cls.body:
            if isinstance(each, Function) and each.name in _CONSTRUCTORS:
                for attr, value, _ in kept(each, first_parameter(each)):
                    if _made(module, value):
                        yield attr


def _made_anew(owner: WorkflowClass) -> Iterator[set[str]]:
    """What each function of the body gives to the execution's own object."""
    for each in owner.reached():
        yield {attr for attr, _, _ in kept(each.function, _instance(each))}


def _instance(reached: Reached) -> str:
    """What a function calls the execution's object; empty when it is no method of its class."""
    method = any(reached.function in cls.body for _, cls in reached.owner.lineage)
    static = any(
        isinstance(each, ast.Name) and each.id == "staticmethod"
        for each in reached.function.decorator_list
    )
    return first_parameter(reached.function) if method and not static else ""


def _assigned(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    """The names that these statements give values to, with these."""
    for each in statements:
        if isinstance(each, ast.Assign | ast.AnnAssign):
            for target, value, _ in assignments(each):
                if isinstance(target, ast.Name):
                    yield target.id, value


def _made(module: Module, value: ast.expr | None) -> bool:
    """Whether it makes a list, dict or set."""
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="field") | ast.Attribute(attr="field"), keywords=keywords):
            made = [each.value for each in keywords if each.arg == "default_factory"]
            return any(_is_type(module, each) for each in made)
        case ast.Call(func=func):
            return _is_type(module, func)
        case _:
            return False


def _is_type(module: Module, node: ast.expr) -> bool:
    name = module.name(node.value if isinstance(node, ast.Subscript) else node)
    return name is not None and name.removeprefix("collections.") in _TYPES
