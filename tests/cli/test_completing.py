"""Steps that leave their end to others, ended from the command line."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from engine import RetryPolicy, Runner, Workflow, activity
from tests.cli.terminal import do, settings
from tests.eventually import eventually


class Inspect(Workflow[str, str]):
    """Asks somebody outside, twice at most."""

    async def execute(self, request: str) -> str:
        return await self.ask(request)

    @activity(retry=RetryPolicy(attempts=2, initial=timedelta(milliseconds=10)))
    async def ask(self, what: str) -> str:
        self.complete_later()


@asynccontextmanager
async def served(dsn: str) -> AsyncGenerator[None]:
    async with Runner(settings(dsn)).register(Inspect()):
        yield


async def command(id: str, dsn: str) -> str:
    """What ``why`` says would let it go on, once it waits."""
    said = ""

    async def waits() -> bool:
        nonlocal said
        said = (await do("why", id, "--table", dsn=dsn)).out
        return "outlast complete" in said and "suspended" in said

    await eventually(waits)
    return said.rpartition("to let it go on: outlast ")[2].strip()


async def test_complete_gives_a_step_its_result(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Inspect", '"roof"', "--key", "i-1", dsn=dsn)
        verb, token, _ = (await command("i-1", dsn)).split()
        done = await do(verb, token, '"sound"', dsn=dsn)
        again = await do(verb, token, '"leaky"', dsn=dsn)
        join = await do("join", "i-1", dsn=dsn)

    assert done.lines == [{"id": "Inspect/i-1", "step": "ask", "completed": True}]
    assert (again.code, again.out) == (1, "")
    assert "was completed before" in again.err
    assert join.out == '"sound"\n'


async def test_fail_lets_the_next_attempt_follow_and_then_the_step_fail(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Inspect", '"roof"', "--key", "i-1", dsn=dsn)
        _, first, _ = (await command("i-1", dsn)).split()
        failed = await do("fail", first, "too steep", "--table", dsn=dsn)

        async def next_attempt() -> bool:
            return first not in await command("i-1", dsn)

        await eventually(next_attempt)
        show = await do("show", "i-1", "--table", dsn=dsn)
        _, second, _ = (await command("i-1", dsn)).split()
        await do("fail", second, "still too steep", dsn=dsn)
        join = await do("join", "i-1", dsn=dsn)

    assert failed.out == "failed step ask of Inspect/i-1\n"
    assert "to be completed from outside" in show.out
    assert "too steep" in show.out
    assert (join.code, "still too steep" in join.err) == (1, True)


async def test_what_is_no_token_or_no_json_is_said(dsn: str) -> None:
    wrong = await do("complete", "abc", "1", dsn=dsn)
    typo = await do("complete", "abc", "{", dsn=dsn)

    assert (wrong.code, "'abc' is no token" in wrong.err) == (2, True)
    assert (typo.code, "the result is not JSON" in typo.err) == (2, True)
