"""Followers as ``storage.protocol`` has them, asked of both storages: executions that are told of
the end of another that they have not started."""

import asyncio
from datetime import UTC, datetime

from engine.core.ids import Snowflake
from engine.core.status import Status
from engine.storage.protocol import Commit, InboxKind, LaneSession, SaveRequest
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    save_one,
    start,
    success,
    sweep_of,
    update,
)

NOW = datetime.now(UTC)


def end_of(request: SaveRequest, *, run: int = 1) -> Commit:
    """The commit that ends an execution."""
    ended = update(request.envelope.request_id, Status.SUCCEEDED, run=run, finished_at=NOW)
    return Commit(shard=ONE, replies=[success(request, b"42")], execution=ended.execution)


async def told(lane: LaneSession) -> list[tuple[Snowflake | None, Snowflake, bytes]]:
    """Who is told of whose end, and what."""
    swept = await sweep_of(lane, ONE, TWO)
    return [
        (row.execution, row.envelope.request_id, row.reply.payload)
        for row in swept.rows
        if row.kind is InboxKind.REPLY and row.reply is not None
    ]


async def test_the_exit_of_an_execution_comes_to_the_inbox_of_each_follower_once(
    process: Process, lane: LaneSession
) -> None:
    followed = await save_one(process, start("followed"))
    id = followed.envelope.request_id
    followers = [await save_one(process, start(name, shard=TWO)) for name in ("one", "two")]
    ids = [each.envelope.request_id for each in followers]
    for follower in (*ids, *ids):
        assert await process.storage.follow(id, follower)

    await lane.flush([update(id, Status.SUSPENDED)])
    assert await told(lane) == []
    flushed = await lane.flush([end_of(followed)])

    assert flushed.followed == {id: [TWO, TWO]}
    assert sorted(await told(lane)) == [(each, id, b"42") for each in sorted(ids)]


async def test_what_has_ended_has_no_followers_any_more(
    process: Process, lane: LaneSession
) -> None:
    followed = await save_one(process, start("followed"))
    follower = (await save_one(process, start("one"))).envelope.request_id
    await lane.flush([end_of(followed)])

    assert not await process.storage.follow(followed.envelope.request_id, follower)
    assert not await process.storage.follow(Snowflake(7), follower)
    assert await told(lane) == []


async def test_a_follower_that_has_ended_is_told_as_well_since_it_may_be_retried_meanwhile(
    process: Process, lane: LaneSession
) -> None:
    followed, follower = [await save_one(process, start(name)) for name in ("followed", "one")]
    id, by = followed.envelope.request_id, follower.envelope.request_id
    assert await process.storage.follow(id, by)

    await lane.flush([end_of(follower)])
    flushed = await lane.flush([end_of(followed)])

    assert flushed.followed == {id: [ONE]}
    assert await told(lane) == [(by, id, b"42")]


async def test_who_follows_while_the_end_is_written_is_told_or_sees_it(
    process: Process, lane: LaneSession
) -> None:
    follower = (await save_one(process, start("follower"))).envelope.request_id
    for number in range(50):
        followed = await save_one(process, start(f"followed-{number}"))
        id = followed.envelope.request_id
        follows, flushed = await asyncio.gather(
            process.storage.follow(id, follower), lane.flush([end_of(followed)])
        )
        assert follows == (id in flushed.followed)
        if not follows:
            assert [each.payload for each in await process.storage.replies([id])] == [b"42"]
