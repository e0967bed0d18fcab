"""What ``everything`` is told while it runs, how it ends, and what that may have left behind."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import asyncpg
import pytest

from engine import Client, JournalEvent, JournalKind, NoRunner, Status, UpdateRejected
from tests.eventually import eventually
from tests.workflow.everything import Declined, Everything, Job, Outside, Stock, Watch

How = Literal["succeed", "fail", "interrupt"]
T = TypeVar("T")
RECORDED = "select step from recorded where execution = $1 order by step"
SOMETIMES = {"slow", "late"}
"""A step that is cancelled may not have been begun."""


async def drive(client: Client, outside: Outside, job: Job) -> None:
    """Do what the execution asks for, each once."""
    execution = client.execution(Everything, job.id)
    await outside.value_of(job.id, "ask deferred")
    assert await execution.resolve(Everything.go, "go")
    assert not await execution.resolve(Everything.go, "again")
    await outside.value_of(job.id, "ask signals")
    await execution.signal(Everything.hear, "one")
    await execution.signal(Everything.hear, "two")
    await outside.value_of(job.id, "ask update")
    await execution.pause("for a while")

    async def stands() -> bool:
        return (await execution.describe()).status is Status.PAUSED

    await eventually(stands, every=0.001)
    await execution.resume()
    assert await answered(lambda: execution.query(Everything.state)) == ["one", "two"]
    with pytest.raises(UpdateRejected, match="not below zero"):
        await execution.update(Everything.add, -1)
    assert await execution.update(Everything.add, 3) == 3
    token = await outside.value_of(job.id, "pay")
    assert await client.complete(token, "paid")
    assert not await client.complete(token, "paid again")
    if job.how == "interrupt":

        async def waits() -> bool:
            return await answered(lambda: execution.query(Everything.last)) == "interrupt me"

        await eventually(waits, every=0.001)
        await execution.interrupt("enough")


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except NoRunner:
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """All that one run has left, without what differs from run to run."""

    ended: str
    journal: Counter[tuple[object, ...]]
    steps: frozenset[str]
    recorded: tuple[str, ...] | None
    children: tuple[str, str]
    held: int
    attributes: dict[str, object]


async def end_of(
    client: Client,
    outside: Outside,
    job: Job,
    history: list[JournalEvent],
    database: "asyncpg.Connection[Any] | None",
) -> End:
    """What is left, once each effect was seen to be there as often as it may."""
    execution = client.execution(Everything, job.id)
    notes = await outside.notes_of(job.id)
    keys = Counter((note.step, note.key) for note in notes)
    of_step = Counter(step for step, _ in keys)
    assert {step for step, number in of_step.items() if number > 1} == set(), keys
    assert len({key for _, key in keys}) == len(keys), keys
    draws = {note.value for note in notes if note.step == "draw"}
    assert len(draws) == 1, draws
    outcome: Any = await execution.poll()
    ended = repr(outcome)
    for drawn in draws.pop().split():
        ended = ended.replace(drawn, "drawn")
    if job.how == "fail":
        with pytest.raises(Declined) as raised:
            await execution.join()
        ended = repr(raised.value)
    infos = [
        await client.execution(Watch, f"{name} {job.id}").describe()
        for name in ("watch", "abandoned")
    ]
    recorded = None
    if database is not None:
        recorded = tuple(row["step"] for row in await database.fetch(RECORDED, job.id))
    return End(
        ended=ended.replace(job.id, "ID"),
        journal=Counter(shown(event, job) for event in history),
        steps=frozenset(of_step.keys() - SOMETIMES),
        recorded=recorded,
        children=(str(infos[0].status), str(infos[1].status)),
        attributes=dict((await execution.describe()).attributes),
        held=len(await client.entity(Stock, job.id).kept()),
    )


def shown(event: JournalEvent, job: Job) -> tuple[object, ...]:
    varies = event.name == "draw" or event.kind in {JournalKind.CONTINUED, JournalKind.ATTEMPT}
    payload = "" if varies or event.kind is JournalKind.COMPENSATING else repr(event.payload)
    payload = payload.replace(job.id, "ID")
    if len(payload) > 500:
        payload = f"{hash(payload)}"
    return (
        event.run,
        event.kind.name,
        event.name,
        event.ordinal,
        event.attempt,
        event.outcome,
        payload,
    )


def places(points: list[str], how: How, most: int) -> list[int]:
    """The points to die at: of ways that part at the end, those from there on. If that is too many,
    every so manieth, from a first one that is drawn: in time, all are."""
    first = 1 if how == "succeed" else points.index("after look") + 1
    step = -(-(len(points) + 1 - first) // most)
    return list(range(first + random.randrange(step), len(points) + 1, step))


def assert_all_done(how: How, end: End) -> None:
    """The run that nothing happens to does what it says."""
    said, held, undone = {
        "succeed": ("Succeeded(", 1, False),
        "fail": ("Declined(code=8)", 0, True),
        "interrupt": ("Interrupted(reason='enough')", 0, True),
    }[how]
    assert end.ended.startswith(said)
    assert end.held == held
    assert end.attributes == {"stage": "stamped"}
    assert ("undo second" in end.steps) is undone
    assert end.recorded in {None, ("first", "second")}
    assert end.children == ("interrupted", "succeeded")
    assert {kind for _, kind, *_ in end.journal} >= EVERY_KIND
    assert ("COMPENSATING" in {kind for _, kind, *_ in end.journal}) is undone


EVERY_KIND = {
    *("STEP", "ATTEMPT", "TIMER", "RESOLVED", "CALL"),
    *("SIGNAL", "UPDATE", "ANSWER", "CONTINUED", "POSTPONED"),
    *("PAUSED", "RESUMED", "PATCHED"),
}


def assert_same(end: End, expected: End, where: str) -> None:
    assert end.journal - expected.journal == Counter(), where
    assert expected.journal - end.journal == Counter(), where
    assert end == expected, where
