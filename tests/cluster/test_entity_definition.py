"""What an entity class may look like, what is refused, and what a handle reaches."""

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from engine import (
    ConfigurationError,
    Entity,
    InvalidPayload,
    NotRegistered,
    Runner,
    Settings,
    Workflow,
    rpc,
)
from engine.cluster.handle import CallOptions, EntityCall, call_on_handle, entity_handle
from engine.cluster.rpc_group import rpcs_of
from engine.testing import TestCluster

if TYPE_CHECKING:
    from decimal import Decimal


class Plain:
    """No JSON form."""


class Counter(Entity):
    def __init__(self) -> None:
        self.total = 0

    @rpc
    async def add(self, by: int, *, note: str = "") -> int:
        """Count up."""
        self.total += by
        return self.total

    @rpc(name="is-at", key=lambda n: f"at-{n}")
    async def at(self, n: int) -> bool:
        return self.total == n

    @rpc
    async def whoami(self) -> str:
        return self.entity_id

    async def secret(self) -> int:
        return self.total


def register(*prototypes: Any) -> Runner:
    return Runner(Settings(dsn="memory")).register(*prototypes)


async def nowhere(call: EntityCall) -> EntityCall:
    return call


# --- definitions ----------------------------------------------------------------------------------


def test_a_handler_of_a_reserved_name_is_refused_when_the_class_is_defined() -> None:
    async def handler(self: Any) -> str: ...

    with pytest.raises(ConfigurationError, match=r"Mine\.entity_id hides .*entity_id_"):
        type("Mine", (Entity,), {"entity_id": rpc(handler)})


@pytest.mark.parametrize("option", ["name", "concurrency", "max_idle", "shard_group"])
def test_a_handler_cannot_take_the_place_of_an_option(option: str) -> None:
    async def handler(self: Any) -> str: ...

    with pytest.raises(ConfigurationError, match=rf"Mine\.{option} hides .*{option}_"):
        type("Mine", (Entity,), {option: rpc(handler)})


def test_a_reserved_name_in_a_mixin_is_refused() -> None:
    class Named:
        def entity_id(self) -> str:
            return "me"

    with pytest.raises(ConfigurationError, match=r"Named\.entity_id hides Entity\.entity_id"):

        class Mine(Named, Entity):
            pass


def test_a_negative_concurrency_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Mine\.concurrency must be 0 \(any number\)"):
        type("Mine", (Entity,), {"concurrency": -1})


@pytest.mark.parametrize("name", ["", "a b", "1st", 7])
def test_a_name_that_could_not_be_stored_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be named"):
        type("Mine", (Entity,), {"name": name})


def test_two_handlers_of_one_name_are_refused_with_the_way_out() -> None:
    class Mine(Entity):
        @rpc(name="add")
        async def one(self) -> None: ...

        @rpc(name="add")
        async def two(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"two handlers named 'add'.*name= in @rpc"):
        register(Mine())


def test_handlers_come_from_mixins_and_parents_and_can_be_replaced() -> None:
    class Audited:
        @rpc
        async def audit(self) -> str:
            return "mixed in"

    class Mine(Audited, Counter):
        @rpc
        async def add(self, by: int, *, note: str = "") -> int:
            return -by

    assert sorted(rpcs_of(Mine)) == ["add", "audit", "is-at", "whoami"]
    assert rpcs_of(Mine)["add"] is not rpcs_of(Counter)["add"]


def test_handlers_are_async_and_answer_once() -> None:
    def plain(self: Any) -> int:
        return 1

    def items(self: Any) -> Iterator[int]:
        yield 1

    for function in (plain, items):
        with pytest.raises(ConfigurationError, match=rf"{function.__name__} must be 'async def'"):
            rpc(function)


def test_a_type_that_json_cannot_carry_is_refused_at_registration() -> None:
    class Takes(Entity):
        @rpc
        async def put(self, plain: list[Plain]) -> None: ...

    class Gives(Entity):
        @rpc
        async def get(self) -> Plain: ...

    with pytest.raises(ConfigurationError, match=r"the arguments of .*Takes\.put .*Plain"):
        register(Takes())
    with pytest.raises(ConfigurationError, match=r"the result of .*Gives\.get .*Plain"):
        register(Gives())


def test_annotations_that_cannot_be_resolved_are_refused_with_the_reason() -> None:
    class Mine(Entity):
        @rpc
        async def put(self, amount: "Decimal") -> None: ...

    with pytest.raises(ConfigurationError, match=r"Mine\.put .*'Decimal'.*not under TYPE_CHECK"):
        register(Mine())


@pytest.mark.parametrize("thing", [Counter, "Counter", Plain()], ids=["class", "name", "object"])
def test_what_is_no_entity_is_not_registered(thing: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be registered; register instances"):
        register(thing)


def test_two_registrations_of_one_name_are_refused() -> None:
    class Other(Workflow[int, int]):
        name = "Counter"

    for other in (Counter(), Other()):
        with pytest.raises(ConfigurationError, match=r"two definitions .*'Counter'.*another name"):
            register(Counter(), other)


def test_the_prototype_has_no_id_and_says_where_ids_are() -> None:
    with pytest.raises(ConfigurationError, match=r"Counter is a prototype.*inside its handlers"):
        _ = Counter().entity_id


async def test_on_the_entity_itself_a_handler_is_a_plain_method() -> None:
    counter = Counter()

    assert await counter.add(2) == 2
    assert await counter.add(by=3, note="x") == 5
    assert (counter.add.__name__, counter.add.__doc__) == ("add", "Count up.")
    assert list(inspect.signature(counter.add).parameters) == ["by", "note"]


# --- handles --------------------------------------------------------------------------------------


async def test_a_call_on_a_handle_is_a_message_with_name_arguments_and_options() -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    options = CallOptions(deliver_at=when, key="once")
    handle = entity_handle(Counter, "c-1", nowhere, options=options)

    call: Any = await handle.add(1, note="x")

    assert (call.name, call.id, call.args, call.kwargs) == (
        "Counter.add",
        "c-1",
        (1,),
        {"note": "x"},
    )
    assert (call.options.deliver_at, call.options.key) == (when, "once")


@pytest.mark.parametrize("name", ["secret", "concurrency", "entity_id"])
def test_what_is_no_handler_cannot_be_reached_through_a_handle(name: str) -> None:
    handle = entity_handle(Counter, "c-1", nowhere)

    with pytest.raises(
        NotRegistered, match=rf"Counter\.{name} is not marked @rpc.*mark the method"
    ):
        getattr(handle, name)


@pytest.mark.parametrize("name", ["total", "missing"])
def test_a_handle_has_no_state(name: str) -> None:
    handle = entity_handle(Counter, "c-1", nowhere)

    assert not hasattr(handle, name)
    with pytest.raises(AttributeError, match=rf"Counter has no handler '{name}'"):
        getattr(handle, name)


def test_a_handle_does_not_run_the_entitys_constructor() -> None:
    class Costly(Counter):
        def __init__(self) -> None:
            raise AssertionError("made for a handle")

    assert isinstance(entity_handle(Costly, "c-1", nowhere), Costly)


def test_handles_do_not_register_or_change_the_entitys_class() -> None:
    before = sorted(rpcs_of(Counter))
    handle = entity_handle(Counter, "c-1", nowhere)

    assert sorted(rpcs_of(Counter)) == before
    assert type(handle).name == "Counter"
    assert type(entity_handle(Counter, "c-2", nowhere)) is type(handle)


@pytest.mark.parametrize("id", ["", "a\x00b", "a\nb", 7, None])
def test_an_id_that_could_not_be_stored_is_refused(id: Any) -> None:
    with pytest.raises(InvalidPayload, match=r"the id of a Counter must be a non-empty printable"):
        entity_handle(Counter, id, nowhere)


@pytest.mark.parametrize(
    "thing",
    [Counter(), "Counter", Plain, Entity, None],
    ids=["object", "name", "class", "base", "none"],
)
def test_a_handle_on_what_is_no_entity_class_is_refused(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not an Entity class"):
        entity_handle(thing, "c-1", nowhere)


@pytest.mark.parametrize(
    "method",
    [Counter().add, Counter.add, print, [].append, lambda: None, "add"],
    ids=["prototype", "function", "builtin", "bound", "lambda", "text"],
)
def test_telling_anything_but_a_handles_handler_is_refused_with_an_example(method: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"client\.tell\(client\.entity\(Stock"):
        call_on_handle(method, (), {})


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent() -> None:
    async with TestCluster(Counter()) as cluster:
        counter = cluster.client.entity(Counter, "c-1")
        wrong: Any = "one"
        with pytest.raises(InvalidPayload, match=r"arguments of Counter\.add .*by: .*integer"):
            await counter.add(wrong)
        with pytest.raises(TypeError, match="missing a required argument: 'by'"):
            await getattr(counter, "add")()  # noqa: B009 -- past the type checkers
        assert await counter.add(1) == 1
        assert await counter.whoami() == "c-1"
