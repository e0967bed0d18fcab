"""A workflow that changes while executions of it are under way: by a patch, and by a version."""

from datetime import timedelta

from engine import Deferred, Runner, Workflow, activity


class Onboard(Workflow[str, list[str]]):
    """Version 1, with a small change: new customers get a call before the contract."""

    signed = Deferred(bool)

    async def execute(self, request: str) -> list[str]:
        done = [await self.welcome(request)]
        if self.patched("call-first"):
            done.append(await self.call(request))
        await self.signed.wait(timeout=timedelta(days=30))
        return [*done, await self.activate(request)]

    @activity
    async def welcome(self, customer: str) -> str:
        return f"welcomed {customer}"

    @activity
    async def call(self, customer: str) -> str:
        return f"called {customer}"

    @activity
    async def activate(self, customer: str) -> str:
        return f"activated {customer}"


class OnboardOnline(Onboard):
    """Version 2: everything is different, so it is a class of its own."""

    name = "Onboard"
    version = 2

    async def execute(self, request: str) -> list[str]:
        await self.signed.wait(timeout=timedelta(days=1))
        return [await self.activate(request)]


def runner() -> Runner:
    """Serves who began with version 1 to their end, and starts others with version 2."""
    return Runner().register(Onboard(), OnboardOnline())
