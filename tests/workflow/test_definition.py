"""What a workflow class may look like, and what is refused, when, and with which words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel

from engine import (
    ConfigurationError,
    Deferred,
    Entity,
    ExecutionFailed,
    InvalidPayload,
    Runner,
    Settings,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.testing import TestCluster
from engine.workflow.definition import definition_of

if TYPE_CHECKING:
    from decimal import Decimal

SECOND = timedelta(seconds=1)
A = TypeVar("A")
B = TypeVar("B")


class Plain:
    """No JSON form."""


def register(*prototypes: Any) -> Runner:
    return Runner(Settings(dsn="memory")).register(*prototypes)


# --- reserved names -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["now", "entity", "sleep", "random", "_body", "attempt"])
def test_a_step_of_a_reserved_name_is_refused_when_the_class_is_defined(name: str) -> None:
    async def step(self: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=rf"Mine\.{name} hides .*{name}.*{name}_"):
        type("Mine", (Workflow,), {name: activity(step)})


def test_an_attribute_of_a_reserved_name_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(ConfigurationError, match=r"uuid_"):
        type("Mine", (Workflow,), {"uuid": "u-1"})


def test_a_reserved_name_in_a_mixin_is_refused() -> None:
    class Clock:
        def now(self) -> str:
            return "noon"

    with pytest.raises(ConfigurationError, match=r"Clock\.now hides Workflow\.now.*now_"):

        class Mine(Clock, Workflow[int, int]):
            pass


def test_a_mixin_that_comes_after_the_workflow_hides_nothing() -> None:
    class Clock:
        def now(self) -> str:
            return "noon"

    class Mine(Workflow[int, int], Clock):
        pass

    assert Mine.now is Workflow.now


def test_an_attribute_of_the_object_that_hides_a_method_is_refused_at_registration() -> None:
    class Mine(Workflow[int, int]):
        def __init__(self) -> None:
            self.__dict__["random"] = 4

    with pytest.raises(ConfigurationError, match=r"self\.random .*random_"):
        register(Mine())


def test_a_step_cannot_take_the_place_of_an_option() -> None:
    async def step(self: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"version_"):
        type("Mine", (Workflow,), {"version": activity(step)})


def test_the_body_itself_cannot_be_a_step() -> None:
    async def step(self: Any, request: int) -> int:
        return request

    mine = type("Mine", (Workflow,), {"execute": activity(step)})
    with pytest.raises(ConfigurationError, match=r"Mine\.execute cannot be a step"):
        register(mine())


def test_a_handler_of_entities_on_a_workflow_is_refused() -> None:
    class Mine(Workflow[int, int]):
        @rpc
        async def ask(self) -> int:
            return 1

    with pytest.raises(ConfigurationError, match=r"Mine\.ask .*@rpc belong to an Entity"):
        register(Mine())


@pytest.mark.parametrize("name", ["", "a b", "1st", "a/b", "x" * 129, 7])
def test_a_name_that_could_not_be_stored_or_typed_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be named"):
        type("Mine", (Workflow,), {"name": name})


# --- steps ----------------------------------------------------------------------------------------


def test_two_steps_of_one_name_are_refused_with_the_way_out() -> None:
    class Mine(Workflow[int, int]):
        @activity(name="charge")
        async def one(self) -> None: ...

        @activity(name="charge")
        async def two(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"two steps named 'charge'.*name="):
        register(Mine())


def test_a_step_that_a_subclass_replaces_is_one_step() -> None:
    class Base(Workflow[int, int]):
        @activity
        async def one(self) -> int:
            return 1

    class Mine(Base):
        @activity
        async def one(self) -> int:
            return 2

    assert definition_of(Mine).steps["one"] is not definition_of(Base).steps["one"]


def test_steps_come_from_mixins_and_parents() -> None:
    class Notifying:
        @activity
        async def notify(self) -> None: ...

    class Base(Workflow[int, int]):
        done = Deferred(bool)

        @transaction
        async def record(self, tx: Transaction) -> None: ...

    class Mine(Notifying, Base):
        @activity
        def count(self) -> int:
            return 1

    definition = definition_of(Mine)
    assert sorted(definition.steps) == ["count", "notify", "record"]
    assert list(definition.deferreds) == ["done"]


def test_generators_are_no_steps() -> None:
    def items(self: Any) -> Iterator[int]:
        yield 1

    async def stream(self: Any) -> AsyncIterator[int]:
        yield 1

    for function in (items, stream):
        with pytest.raises(ConfigurationError, match=rf"{function.__name__} is a generator"):
            activity(function)


def test_a_transaction_that_is_not_async_is_refused() -> None:
    def store(self: Any, tx: Transaction) -> None: ...

    with pytest.raises(ConfigurationError, match=r"store must be 'async def'"):
        transaction(store)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_step_without_time_to_run_is_refused(seconds: int) -> None:
    async def charge(self: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"charge has a timeout that is not above zero"):
        activity(timeout=timedelta(seconds=seconds))(charge)


@pytest.mark.parametrize("options", [{"timeout": 3}, {"heartbeat_timeout": 3}, {"retry": 3}])
def test_an_option_that_is_a_number_is_refused_with_the_type_to_write(options: Any) -> None:
    async def charge(self: Any) -> None: ...

    wanted = "RetryPolicy" if "retry" in options else "timedelta"
    with pytest.raises(ConfigurationError, match=rf"charge has 3 as its \w+: write {wanted}\("):
        activity(**options)(charge)


def test_a_decorated_step_keeps_its_name_docstring_and_line() -> None:
    class Mine(Workflow[int, int]):
        @activity
        async def charge(self, cents: int) -> str:
            """Take the money."""
            return str(cents)

    assert (Mine.charge.__name__, Mine.charge.__doc__) == ("charge", "Take the money.")
    assert "test_definition.py:" in definition_of(Mine).steps["charge"].line


async def test_outside_a_body_a_step_is_a_plain_call() -> None:
    class Mine(Workflow[int, int]):
        @activity
        def double(self, n: int) -> int:
            return 2 * n

        @activity
        async def triple(self, n: int) -> int:
            return 3 * n

    assert await Mine().double(2) == 4
    assert await Mine().triple(n=2) == 6


# --- types ----------------------------------------------------------------------------------------


def _returning(annotation: Any) -> Any:
    async def fetch(self: Any) -> Any: ...

    fetch.__annotations__["return"] = annotation
    return fetch


UNFIT = [
    Plain,
    list[Plain],
    dict[str, Plain | None],
    Callable[[], int],
    type[int],
    dict[tuple[int, int], str],
    Awaitable[int],
]


@pytest.mark.parametrize("annotation", UNFIT, ids=str)
def test_a_result_that_json_cannot_carry_is_refused_at_registration(annotation: Any) -> None:
    mine = type("Mine", (Workflow,), {"fetch": activity(_returning(annotation))})

    with pytest.raises(ConfigurationError, match=r"the result of .*fetch has a type that JSON"):
        register(mine())


def test_an_argument_that_json_cannot_carry_is_refused_at_registration() -> None:
    class Mine(Workflow[int, int]):
        @activity
        async def charge(self, plain: Plain) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"the arguments of .*Mine\.charge has a type .*Plain"
    ):
        register(Mine())


@pytest.mark.parametrize("where", ["request", "result"])
def test_a_request_or_result_that_json_cannot_carry_is_refused(where: str) -> None:
    class Takes(Workflow[Plain, int]):
        async def execute(self, request: Plain) -> int:
            return 1

    class Gives(Workflow[int, Plain]):
        async def execute(self, request: int) -> Plain:
            return Plain()

    prototype = Takes() if where == "request" else Gives()
    with pytest.raises(ConfigurationError, match=rf"the {where} of (Takes|Gives) .*Plain"):
        register(prototype)


def test_a_deferred_that_json_cannot_carry_is_refused() -> None:
    class Mine(Workflow[int, int]):
        plain = Deferred(Plain)

    with pytest.raises(ConfigurationError, match=r"deferred .*Mine\.plain has a type that JSON"):
        register(Mine())


def test_a_deferred_without_a_type_is_refused_with_both_ways_to_write_one() -> None:
    class Mine(Workflow[int, int]):
        approved: Any = Deferred()

    with pytest.raises(
        ConfigurationError, match=r"Mine\.approved says no type; .*Deferred\(bool\).*\[int \| None"
    ):
        register(Mine())


def test_annotations_that_cannot_be_resolved_are_refused_with_the_reason() -> None:
    class Mine(Workflow[int, int]):
        @activity
        async def charge(self, amount: "Decimal") -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"annotations of .*charge .*'Decimal'.*not under TYPE_CHECKING"
    ):
        register(Mine())


def test_an_execute_that_cannot_be_resolved_is_refused_with_the_reason() -> None:
    class Mine(Workflow["Decimal", int]):
        async def execute(self, request: "Decimal") -> int:
            return 1

    with pytest.raises(ConfigurationError, match=r"Mine\.execute .*'Decimal'.*TYPE_CHECKING"):
        register(Mine())


class Base(Workflow[list[A], dict[str, B]], Generic[A, B]):
    async def execute(self, request: list[A]) -> dict[str, B]:
        return {}


class Turned(Base[B, A], Generic[A, B]):
    pass


class Concrete(Turned[int, bool]):
    pass


def test_a_generic_parent_takes_its_types_from_the_subclass() -> None:
    definition = definition_of(Concrete)

    assert definition.request.decode(b"[true]") == [True]
    with pytest.raises(InvalidPayload, match=r"the request of Concrete does not validate"):
        definition.request.decode(b'["a"]')
    assert definition.result.decode(b'{"a": 1}') == {"a": 1}
    with pytest.raises(InvalidPayload):
        definition.result.decode(b'{"a": "b"}')


def test_without_annotations_the_bases_say_the_types() -> None:
    class Mine(Workflow[int, bool]):
        async def execute(self, request):
            return True

    with pytest.raises(InvalidPayload):
        definition_of(Mine).request.decode(b'"a"')


async def test_a_result_that_cannot_be_stored_is_refused_before_the_step_ever_ran() -> None:
    ran: list[str] = []

    class Mine(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            await self.charge()
            return 1

        @activity
        async def charge(self) -> Plain:
            ran.append("charged")
            return Plain()

    with pytest.raises(ConfigurationError, match=r"charge .*Plain"):
        async with TestCluster(Mine()) as cluster:
            await cluster.client.start(Mine, 1)
    assert ran == []


# --- registration ---------------------------------------------------------------------------------


class Echo(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


class Model(BaseModel):
    id: str


@pytest.mark.parametrize(
    "thing",
    [Echo, "Echo", None, Model(id="a"), Echo.execute],
    ids=["class", "name", "none", "model", "method"],
)
def test_what_is_no_workflow_or_entity_is_not_registered(thing: object) -> None:
    with pytest.raises(ConfigurationError, match=r"register instances of .* such as Fulfil\("):
        register(thing)


def test_two_registrations_of_one_name_are_refused() -> None:
    class Other(Entity):
        name = "Echo"

    with pytest.raises(ConfigurationError, match=r"as version 1 of 'Echo'.*another name"):
        register(Echo(), Echo())
    with pytest.raises(ConfigurationError, match=r"two definitions .*'Echo'.*another name"):
        register(Echo(), Other())


@pytest.mark.parametrize(
    "thing",
    ["Echo", Echo(), Model, Workflow, None],
    ids=["name", "object", "model", "base", "none"],
)
async def test_starting_what_is_no_workflow_class_is_refused(thing: Any) -> None:
    async with TestCluster(Echo()) as cluster:
        with pytest.raises(ConfigurationError, match="is not a Workflow class"):
            await cluster.client.start(thing, "a")


async def test_a_workflow_without_a_body_fails_with_its_name() -> None:
    class Mine(Workflow[str, str]):
        pass

    with pytest.raises(NotImplementedError, match=r"Mine does not define execute\(\)"):
        await Mine().execute("a")
    with pytest.raises(ConfigurationError, match=r"Mine has no body: write 'async def execute"):
        register(Mine())


# --- the body's own methods -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    ["now()", "random()", "uuid()", "entity(Other, 'a')", "compensate(print)", "suspending"],
)
def test_outside_a_body_its_methods_say_where_they_belong(call: str) -> None:
    class Other(Entity):
        pass

    with pytest.raises(ConfigurationError, match=r"Echo\..* exists in the workflow's body only"):
        eval(f"echo.{call}", {"echo": Echo(), "Other": Other})


async def test_outside_a_body_sleeping_and_waiting_are_refused() -> None:
    class Mine(Workflow[str, str]):
        done = Deferred(bool)

    with pytest.raises(ConfigurationError, match="exists in the workflow's body only"):
        await Mine().sleep(SECOND)
    with pytest.raises(ConfigurationError, match="exists in the workflow's body only"):
        await Mine().done.wait()


@pytest.mark.parametrize("name", ["idempotency_key", "attempt"])
def test_outside_a_step_its_attributes_say_where_they_belong(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"self\.{name} exists inside a step only"):
        getattr(Echo(), name)


async def test_inside_a_step_the_body_is_out_of_reach() -> None:
    class Mine(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            return await self.look()

        @activity
        async def look(self) -> str:
            try:
                return str(self.now())
            except ConfigurationError as error:
                return str(error)

    async with TestCluster(Mine()) as cluster:
        said = await cluster.client.execute(Mine, "a")
    assert "what a step needs of it goes to the step as an argument" in said


async def test_executions_do_not_see_each_others_attributes() -> None:
    class Mine(Workflow[str, list[str]]):
        def __init__(self) -> None:
            self.tag = "prototype"

        async def execute(self, request: str) -> list[str]:
            before, self.tag = self.tag, request
            await asyncio.sleep(1)
            return [before, self.tag, await self.step()]

        @activity
        async def step(self) -> str:
            return self.tag

    async with TestCluster(Mine()) as cluster:
        runs = [await cluster.client.start(Mine, name) for name in ("a", "b")]
        await cluster.advance(2 * SECOND)
        assert [await run.join(SECOND) for run in runs] == [
            ["prototype", "a", "prototype"],
            ["prototype", "b", "prototype"],
        ]


def plain(self: Any, request: str) -> str:
    return request


async def sleeps(self: Any, request: str) -> str:
    await self.sleep(5)
    return request


async def waits(self: Any, request: str) -> str:
    await self.wait_until(lambda: False, timeout=5)
    return request


async def asks(self: Any, request: str) -> str:
    return str(await self.told.wait(timeout=2.5))


async def joins(self: Any, request: str) -> str:
    child: Any = await self.start_child(type(self), request, key="child")
    return str(await child.join(timeout=5))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (plain, "gave a str, which cannot be awaited: write 'async def execute'"),
        (sleeps, r"sleep\(\) takes a timedelta, not 5: write timedelta\(seconds=5\)"),
        (waits, "timeout= takes a timedelta, not 5"),
        (asks, r"timeout= takes a timedelta, not 2\.5"),
        (joins, "timeout= takes a timedelta, not 5"),
    ],
)
async def test_a_beginners_mistake_in_a_body_is_said_with_its_remedy(
    body: Callable[..., Any], said: str
) -> None:
    members = {"execute": body, "told": Deferred(bool)}
    mistaken: Any = type("Mistaken", (Workflow,), members)
    async with TestCluster(mistaken()) as cluster:
        with pytest.raises(ExecutionFailed, match=said):
            await cluster.client.execute(mistaken, "x", timeout=SECOND)


def test_a_key_that_is_no_classmethod_is_refused() -> None:
    class Plain(Workflow[str, str]):
        def key(self, request: str) -> str:  # type: ignore[override]
            return request

        async def execute(self, request: str) -> str:
            return request

    with pytest.raises(ConfigurationError, match=r"Plain\.key\(\) must be a classmethod"):
        definition_of(Plain)
