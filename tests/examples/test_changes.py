"""The program that shows how code changes while executions are under way."""

from engine.testing import TestCluster
from examples.changes import Onboard, OnboardOnline


class Before(Onboard):
    """As it was before the change."""

    name = "Onboard"

    async def execute(self, request: str) -> list[str]:
        done = [await self.welcome(request)]
        await self.signed.wait()
        return [*done, await self.activate(request)]


async def test_each_execution_ends_as_the_code_it_began_with_says() -> None:
    async with TestCluster(Before()) as cluster:
        await cluster.client.start(Before, "ada", key="ada")
        await cluster.settle()
        database = cluster.database
    async with TestCluster(Onboard(), database=database) as cluster:
        await cluster.client.start(Onboard, "bob", key="bob")
        await cluster.settle()
    async with TestCluster(Onboard(), OnboardOnline(), database=database) as cluster:
        await cluster.client.start(OnboardOnline, "eve", key="eve")
        results: dict[str, list[str]] = {}
        for name in ("ada", "bob", "eve"):
            execution = cluster.client.execution(Onboard, name)
            await execution.resolve(Onboard.signed, True)
            results[name] = await execution.join()
    assert results == {
        "ada": ["welcomed ada", "activated ada"],
        "bob": ["welcomed bob", "called bob", "activated bob"],
        "eve": ["activated eve"],
    }
