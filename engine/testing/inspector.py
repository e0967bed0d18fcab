"""Look through one function that runs in a workflow's body for what a replay cannot repeat."""

import ast
from collections.abc import Iterator, Sequence
from typing import Final

from engine.testing.findings import Finding, Rule
from engine.testing.outside import FILE_METHODS, rule_of
from engine.testing.program import Reached, first_parameter
from engine.testing.sets import Sets
from engine.testing.shared import Shared

_ORDER_FREE = frozenset({"sorted", "set", "frozenset", "len", "sum", "min", "max", "any", "all"})
_IN_ORDER = frozenset({"list", "tuple", "iter", "enumerate", "zip", "map", "filter", "next"})
_AWAITED = frozenset(
    {"sleep", "sleep_until", "run_child", "start_child", "wait_until", "continue_as_new", "submit"}
)
_BUILTINS = frozenset({"open", "input", "hash", "id"})
_MUTATORS = (
    *("append", "appendleft", "add", "update", "pop", "popitem", "clear", "extend", "insert"),
    *("setdefault", "remove", "discard"),
)
_LONGEST: Final = 60


class Inspector(ast.NodeVisitor):
    """Collects ``findings``, with the last line of each."""

    def __init__(self, reached: Reached) -> None:
        self.findings: list[tuple[Finding, int]] = []
        self._reached = reached
        self._module = reached.module
        self._owner = reached.owner
        self._self = first_parameter(reached.function)
        self._sets = Sets(reached.module, reached.function, reached.owner)
        self._locals = {*_bound(reached.function)}
        self._shared = Shared(reached, self._locals)
        self._order_free = False

    def inspect(self) -> "Inspector":
        for each in self._reached.function.body:
            self.visit(each)
        return self

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            self._look_at_await(node.test)
        super().visit(node)

    # --- calls ------------------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name is not None:
            rule = rule_of(name, has_arguments=bool(node.args or node.keywords))
            if rule is not None:
                self._add(rule, node, f"{name}()")
        if isinstance(node.func, ast.Attribute):
            self._look_at_method(node, node.func)
        self._look_at_order(node, name)
        before, self._order_free = self._order_free, name in _ORDER_FREE
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.visit(argument)
        self._order_free = before
        self.visit(node.func)

    def _look_at_method(self, node: ast.Call, method: ast.Attribute) -> None:
        holder = method.value
        if method.attr == "run_in_executor":
            self._add(Rule.THREADS, node, "run_in_executor()")
        elif method.attr in FILE_METHODS and self._dotted(method) is None:
            self._add(Rule.IO, node, f"{method.attr}()")
        elif method.attr in FILE_METHODS and isinstance(holder, ast.Name):
            self._add(Rule.IO, node, f"{holder.id}.{method.attr}()")
        elif method.attr == "pop" and not node.args and self._sets.has(holder):
            if self._sets.is_first_done(holder):
                return
            self._add(Rule.SET_ORDER, node, _shown(node))
        elif method.attr in _MUTATORS and (rule := self._shared.rule(holder)) is not None:
            self._add(rule, node, f"{_shown(method)}()")

    def _look_at_order(self, node: ast.Call, name: str | None) -> None:
        joins = isinstance(node.func, ast.Attribute) and node.func.attr == "join"
        ordered = name in _IN_ORDER or joins
        for argument in node.args:
            value = argument.value if isinstance(argument, ast.Starred) else argument
            spread = isinstance(argument, ast.Starred) and name not in _ORDER_FREE
            if (spread or (ordered and not self._order_free)) and self._sets.has(value):
                self._add(Rule.SET_ORDER, value, _shown(value))

    # --- iteration --------------------------------------------------------------------------------

    def visit_For(self, node: ast.For) -> None:
        harmless = self._sets.is_first_done(node.iter) or _only_cancels(node.body)
        if self._sets.has(node.iter) and not harmless:
            self._add(Rule.SET_ORDER, node.iter, _shown(node.iter))
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._look_at_generators(node, node.generators)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._look_at_generators(node, node.generators)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._look_at_generators(node, node.generators)

    def _look_at_generators(self, node: ast.AST, generators: Sequence[ast.comprehension]) -> None:
        free, self._order_free = self._order_free, False
        for each in generators:
            if not free and self._sets.has(each.iter):
                self._add(Rule.SET_ORDER, each.iter, _shown(each.iter))
        self.generic_visit(node)
        self._order_free = free

    # --- statements -------------------------------------------------------------------------------

    def visit_Expr(self, node: ast.Expr) -> None:
        self._look_at_await(node.value)
        match node.value:
            case ast.Await(value=ast.Call(func=func, args=[ast.Starred(value=ast.Name(id=id))])):
                if self._dotted(func) == "asyncio.gather" and id in self._sets.tasks:
                    return  # they run already, and nobody looks at the results
            case _:
                pass
        self.generic_visit(node)

    def _look_at_await(self, node: ast.expr) -> None:
        """At what is dropped, or asked whether it is true, which every coroutine is."""
        match node:
            case ast.UnaryOp(operand=operand):
                self._look_at_await(operand)
            case ast.BoolOp(values=parts):
                for each in parts:
                    self._look_at_await(each)
            case ast.Compare(left=left, comparators=parts):
                for each in (left, *parts):
                    self._look_at_await(each)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=holder), attr=attr)):
                runs = (
                    attr in _AWAITED or self._owner.is_step(attr) or self._owner.is_coroutine(attr)
                )
                if holder == self._self and runs:
                    self._add(Rule.NOT_AWAITED, node, f"{holder}.{attr}()")
                elif self._dotted(node.func) == "asyncio.sleep":
                    self._add(Rule.NOT_AWAITED, node, "asyncio.sleep()")
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id=holder)) as deferred, attr="wait"
                )
            ) if holder == self._self and deferred.attr in self._owner.deferreds:
                self._add(Rule.NOT_AWAITED, node, f"{holder}.{deferred.attr}.wait()")
            case _:
                pass

    def visit_Global(self, node: ast.Global) -> None:
        self._add(Rule.SHARED, node, f"global {', '.join(node.names)}")

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._look_at_target(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Attribute) and (rule := self._shared.rule(node.target)):
            self._add(rule, node, _shown(node.target))
        self._look_at_target(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._look_at_target(target)
        self.generic_visit(node)

    def _look_at_target(self, target: ast.expr) -> None:
        match target:
            case ast.Subscript() if (rule := self._shared.rule_of_element(target)) is not None:
                self._add(rule, target, _shown(target))
            case ast.Attribute(value=ast.Name(id=id)) if id not in self._locals and (
                id in self._module.classes or id == "cls"
            ):
                self._add(Rule.SHARED, target, _shown(target))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="type"))):
                self._add(Rule.SHARED, target, _shown(target))
            case _:
                pass

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._dotted(node) == "os.environ":
            self._add(Rule.IO, node, "os.environ")
        self.generic_visit(node)

    # --- names ------------------------------------------------------------------------------------

    def _dotted(self, node: ast.expr) -> str | None:
        """The name of something imported or built in; None for what the function made itself."""
        first: ast.expr = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if not isinstance(first, ast.Name) or first.id in self._locals:
            return None
        name = self._module.name(node)
        if first.id in self._module.imports:
            return name
        defined = first.id in self._module.functions or first.id in self._module.classes
        known = _BUILTINS | _ORDER_FREE | _IN_ORDER
        return name if name in known and not defined else None

    def _add(self, rule: Rule, node: ast.stmt | ast.expr, what: str) -> None:
        finding = Finding(
            file=self._module.file,
            line=node.lineno,
            column=node.col_offset + 1,
            code=rule.code,
            what=what,
            message=rule.sentence,
            fix=rule.fix,
            where=self._reached.where,
        )
        self.findings.append((finding, node.end_lineno or node.lineno))


def _only_cancels(statements: Sequence[ast.stmt]) -> bool:
    """Whether a loop does nothing but to cancel tasks: in any order it is the same."""
    return all(
        isinstance(each, ast.Expr)
        and isinstance(each.value, ast.Call)
        and isinstance(each.value.func, ast.Attribute)
        and each.value.func.attr == "cancel"
        for each in statements
    )


def _bound(function: ast.AST) -> Iterator[str]:
    """The names that a function gives values to, its parameters included."""
    for node in ast.walk(function):
        match node:
            case ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if node is not function:
                    yield name
            case ast.ExceptHandler(name=str() as name):
                yield name
            case _:
                pass


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
