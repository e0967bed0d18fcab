"""Handlers that several entities share, as mixins."""

from typing import Any

import pytest

from engine import ConfigurationError, Entity, rpc
from engine.cluster.rpc_group import rpcs_of
from engine.testing import TestCluster


class Counting:
    """Needs no base of the engine's, and keeps its own attributes."""

    total: int = 0

    @rpc
    async def add(self, by: int) -> int:
        self.total += by
        return self.total


class Auditing:
    def __init__(self) -> None:
        self.log: tuple[str, ...] = ()

    @rpc(name="audit-log")
    async def audit(self) -> list[str]:
        return [*self.log]

    def noted(self, what: str) -> None:
        self.log = (*self.log, what)


class Till(Counting, Auditing, Entity):
    @rpc
    async def add(self, by: int) -> int:
        self.noted(f"{self.entity_id} {by}")
        return await super().add(by)


class Meter(Entity, Counting):
    """The mixin may come after the base as well."""


async def test_an_entity_answers_to_the_handlers_of_its_groups_and_to_its_own(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Till(), Meter(), **where) as cluster:
        till, meter = cluster.client.entity(Till, "t-1"), cluster.client.entity(Meter, "m-1")
        assert [await till.add(2), await till.add(3), await meter.add(7)] == [2, 5, 7]
        assert await till.audit() == ["t-1 2", "t-1 3"]


def test_a_group_of_groups_is_one() -> None:
    class Both(Counting, Auditing):
        @rpc
        async def reset(self) -> None: ...

    class Desk(Both, Entity):
        pass

    assert sorted(rpcs_of(Desk)) == ["add", "audit-log", "reset"]


def test_two_groups_with_a_handler_of_one_name_are_refused_until_the_entity_decides() -> None:
    class Tallying:
        @rpc
        async def add(self, by: int) -> int:
            return by

    class Torn(Counting, Tallying, Entity):
        pass

    class Decided(Counting, Tallying, Entity):
        @rpc
        async def add(self, by: int) -> int:
            return await Tallying.add(self, by)

    with pytest.raises(ConfigurationError, match=r"Torn gets 'add' from .*Counting and from .*Tal"):
        rpcs_of(Torn)
    assert rpcs_of(Decided)["add"].function.__qualname__.endswith("Decided.add")


def test_a_plain_method_of_one_group_hides_no_handler_of_another() -> None:
    class Adding:
        def add(self, by: int) -> int:
            return by

    class Torn(Adding, Counting, Entity):
        pass

    with pytest.raises(ConfigurationError, match=r"'add' from .*Adding and from .*Counting"):
        rpcs_of(Torn)


def test_a_group_behind_the_base_cannot_lose_a_handler_to_it() -> None:
    class Heading:
        @rpc
        async def headers(self) -> list[str]:
            return []

    lost = type("Lost", (Entity, Heading), {})

    with pytest.raises(ConfigurationError, match=r"Lost gets 'headers' from Entity and from"):
        rpcs_of(lost)


def test_a_handler_is_not_replaced_by_a_method_that_is_none() -> None:
    class Silent(Till):
        async def add(self, by: int) -> int:
            return by

    with pytest.raises(ConfigurationError, match=r"Silent\.add replaces a handler of .*mark it @r"):
        rpcs_of(Silent)


def test_two_groups_may_not_share_a_tag() -> None:
    class Adding:
        @rpc(name="add")
        async def plus(self, by: int) -> int:
            return by

    class Torn(Counting, Adding, Entity):
        pass

    with pytest.raises(ConfigurationError, match="two handlers named 'add'"):
        rpcs_of(Torn)
