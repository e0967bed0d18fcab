"""A message with the start of its execution, as ``storage.protocol`` has it, on both storages."""

import asyncio
from dataclasses import replace

import pytest

from engine.core.errors import InvalidPayload
from engine.core.status import Status
from engine.storage.protocol import (
    Commit,
    ExecutionUpdate,
    LaneSession,
    Saved,
    SaveOutcome,
    SaveRequest,
)
from tests.storage.world import ONE, Process, World, event, save_one, start, sweep_of


def opening(
    id: str = "o-1",
    *,
    key: str | None = None,
    message: bytes = b"true",
    payload: bytes = b"{}",
    joins: bool = True,
) -> SaveRequest:
    told = event(id, key=key, payload=message)
    return replace(told, opening=start(id, payload=payload), joins=joins)


async def save(process: Process, request: SaveRequest) -> Saved:
    (saved,) = await process.storage.save([request])
    return saved


def outcomes(saved: Saved) -> tuple[SaveOutcome, SaveOutcome]:
    assert saved.opened is not None
    return saved.outcome, saved.opened.outcome


async def test_both_are_stored_the_start_first(process: Process, lane: LaneSession) -> None:
    request = opening()
    assert request.opening is not None
    begun = request.opening.envelope

    saved = await save(process, request)

    assert outcomes(saved) == (SaveOutcome.CREATED, SaveOutcome.CREATED)
    assert saved.opened is not None
    assert saved.opened.request_id == begun.request_id
    first, second = (await sweep_of(lane)).rows
    assert (first.envelope, second.envelope) == (begun, request.envelope)
    assert first.execution == second.execution == begun.request_id
    assert (first.seq, second.seq) == (first.seq, saved.seq)
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert (found.request_id, found.status) == (begun.request_id, Status.SCHEDULED)


async def test_an_execution_that_is_there_is_told(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))

    saved = await save(process, opening())

    assert outcomes(saved) == (SaveOutcome.CREATED, SaveOutcome.EXISTS)
    assert saved.opened is not None
    assert (saved.opened.request_id, saved.opened.payload) == (run.envelope.request_id, b"{}")
    assert len((await sweep_of(lane)).rows) == 2


@pytest.mark.parametrize(
    "request_", [opening(payload=b'{"other": 1}'), opening(joins=False)], ids=["other", "new"]
)
async def test_one_that_must_not_be_joined_is_not_told(
    process: Process, lane: LaneSession, request_: SaveRequest
) -> None:
    run = await save_one(process, start("o-1"))

    saved = await save(process, request_)

    assert outcomes(saved) == (SaveOutcome.NOT_OPENED, SaveOutcome.EXISTS)
    assert saved.opened is not None
    assert saved.opened.payload == b"{}"
    assert [row.envelope for row in (await sweep_of(lane)).rows] == [run.envelope]


async def test_one_that_has_ended_is_neither_told_nor_started(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    ended = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED)
    await lane.flush([Commit(shard=ONE, execution=ended)])
    request = opening()

    saved = await save(process, request)

    assert outcomes(saved) == (SaveOutcome.TARGET_FINISHED, SaveOutcome.EXISTS)
    assert await process.storage.request(request.envelope.request_id) is None


async def test_a_message_of_a_key_is_stored_once(process: Process, lane: LaneSession) -> None:
    first = await save(process, opening(key="k"))
    again = await save(process, opening(key="k", message=b"false"))

    assert outcomes(first) == (SaveOutcome.CREATED, SaveOutcome.CREATED)
    assert outcomes(again) == (SaveOutcome.EXISTS, SaveOutcome.EXISTS)
    assert (again.request_id, again.payload) == (first.request_id, b"true")
    assert len((await sweep_of(lane)).rows) == 2


async def test_the_same_request_again_changes_nothing(process: Process, lane: LaneSession) -> None:
    request = opening()
    first = await save(process, request)
    again = await save(process, request)

    assert again.request_id == first.request_id
    assert again.outcome is SaveOutcome.EXISTS
    assert len((await sweep_of(lane)).rows) == 2


async def test_of_many_processes_one_starts_it_and_all_tell_it(
    world: World, process: Process, lane: LaneSession
) -> None:
    others = [await world.process() for _ in range(3)]
    requests = [[opening(key=f"k{n}") for n in range(5)] for _ in others]
    saved = await asyncio.gather(
        *(
            other.storage.save([request])
            for other, mine in zip(others, requests, strict=True)
            for request in mine
        )
    )

    results = [each for (each,) in saved]
    opened = [each.opened for each in results if each.opened is not None]
    assert sum(each.outcome is SaveOutcome.CREATED for each in opened) == 1
    assert len({each.request_id for each in opened}) == 1
    assert sum(each.outcome is SaveOutcome.CREATED for each in results) == 5  # of three each
    assert len((await sweep_of(lane)).rows) == 6


async def test_what_cannot_be_stored_of_the_start_is_refused(process: Process) -> None:
    request = opening()
    bad = start("o-\0")
    with pytest.raises(InvalidPayload, match="character that cannot be stored"):
        await process.storage.save([replace(request, opening=bad)])
    assert await process.storage.find("Fulfil", "o-1") is None
