"""Volatile messages as ``storage.protocol`` has them, asked of both storages: from process to
process in the order they were sent, at most once."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from engine.core.ids import ShardId
from engine.storage.protocol import LaneSession, Post, Posted, PostKind, Received
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    THREE,
    TWO,
    Ear,
    Process,
    World,
    listening,
    next_id,
)

HOUR = timedelta(hours=1)


def parcel(to: Process | ShardId, body: bytes = b"", *, kind: PostKind = PostKind.REQUEST) -> Post:
    receiver = to.storage.identity if isinstance(to, Process) else to
    return Post(kind=kind, to=receiver, request_id=next_id(), body=body)


def as_received(post: Post) -> Received:
    """As it arrives; a shard's owner is its first."""
    shard = post.to if isinstance(post.to, tuple) else None
    return Received(
        kind=post.kind,
        shard=shard,
        request_id=post.request_id,
        body=post.body,
        epoch=None if shard is None else 1,
    )


async def bodies(process: Process) -> list[bytes]:
    return [received.body for received in await process.storage.take_post()]


async def test_each_process_has_a_name_of_its_own(world: World) -> None:
    one, two = await world.process(), await world.process()

    assert one.storage.identity != two.storage.identity
    assert one.storage.identity == one.runner


async def test_a_process_is_present_until_it_closes(world: World) -> None:
    asks, other = await world.process(), await world.process()
    both = {asks.storage.identity, other.storage.identity}
    await other.storage.take_post()

    assert await asks.storage.present([*both, uuid4()]) == both
    assert await asks.storage.present([]) == set()
    await other.registry.close()
    await other.storage.close()

    async def gone() -> bool:
        return await asks.storage.present(both) == {asks.storage.identity}

    await eventually(gone)


# --- to a process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(PostKind))
async def test_a_message_arrives_as_it_was_sent(world: World, kind: PostKind) -> None:
    sender, receiver = await world.process(), await world.process(register=False)
    post = parcel(receiver, b"\x00\xff any bytes", kind=kind)

    posted = await sender.storage.post([post])

    assert list(posted) == [Posted(runner=receiver.storage.identity, epoch=None)]
    assert list(await receiver.storage.take_post()) == [as_received(post)]


async def test_a_message_is_taken_once(world: World) -> None:
    sender, receiver = await world.process(), await world.process()
    await sender.storage.post([parcel(receiver)])

    await receiver.storage.take_post()

    assert list(await receiver.storage.take_post()) == []


async def test_a_heartbeat_says_whether_there_are_messages(world: World) -> None:
    sender, receiver = await world.process(), await world.process()
    assert not (await receiver.registry.beat(receiver.runner)).post

    await sender.storage.post([parcel(receiver)])

    assert (await receiver.registry.beat(receiver.runner)).post
    assert not (await sender.registry.beat(sender.runner)).post
    while await receiver.storage.take_post():
        pass
    assert not (await receiver.registry.beat(receiver.runner)).post


async def test_of_many_that_take_at_once_each_gets_others(world: World) -> None:
    sender, receiver = await world.process(), await world.process()
    sent = [b"%d" % n for n in range(50)]
    await sender.storage.post([parcel(receiver, body) for body in sent])

    taken = await asyncio.gather(*(bodies(receiver) for _ in range(4)))

    assert sorted(body for part in taken for body in part) == sorted(sent)


async def test_nobody_takes_the_post_of_another(world: World) -> None:
    sender, receiver, other = [await world.process() for _ in range(3)]
    await sender.storage.post([parcel(receiver, b"1")])

    assert await bodies(other) == []
    assert await bodies(sender) == []
    assert await bodies(receiver) == [b"1"]


async def test_a_process_may_write_to_itself(process: Process) -> None:
    await process.storage.post([parcel(process, b"1")])

    assert await bodies(process) == [b"1"]


async def test_posting_nothing_is_allowed(process: Process) -> None:
    assert list(await process.storage.post([])) == []


async def test_a_process_that_is_not_there_can_be_written_to(process: Process) -> None:
    nobody = uuid4()
    post = Post(kind=PostKind.EXIT, to=nobody, request_id=next_id(), body=b"")

    assert list(await process.storage.post([post])) == [Posted(runner=nobody)]


# --- order ----------------------------------------------------------------------------------------


async def test_messages_come_in_the_order_they_were_sent(world: World) -> None:
    sender, receiver = await world.process(), await world.process()
    sent = [b"%d" % n for n in range(40)]

    for start in range(0, 40, 8):
        await sender.storage.post([parcel(receiver, body) for body in sent[start : start + 8]])

    assert await bodies(receiver) == sent


async def test_the_ways_of_writing_to_a_process_keep_one_order(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender = await world.process()
    await lane.acquire([TWO])
    posts = [
        parcel(ONE, b"0"),
        parcel(process, b"1", kind=PostKind.ACK),
        parcel(TWO, b"2"),
        parcel(ONE, b"3", kind=PostKind.INTERRUPT),
        parcel(process, b"4"),
    ]

    await sender.storage.post(posts)

    assert list(await process.storage.take_post()) == [as_received(post) for post in posts]


async def test_each_senders_order_is_kept_beside_others(world: World) -> None:
    receiver = await world.process()
    senders = [await world.process(register=False) for _ in range(3)]

    async def send(sender: Process, name: int) -> None:
        for n in range(10):
            await sender.storage.post([parcel(receiver, b"%d:%d" % (name, n))])

    await asyncio.gather(*(send(sender, name) for name, sender in enumerate(senders)))

    arrived = await bodies(receiver)
    for name in range(3):
        mine = [body for body in arrived if body.startswith(b"%d:" % name)]
        assert mine == [b"%d:%d" % (name, n) for n in range(10)]


# --- to the owner of a shard ----------------------------------------------------------------------


async def test_a_message_for_a_shard_goes_to_its_owner(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender = await world.process()
    post = parcel(ONE, b"1")

    posted = await sender.storage.post([post])

    assert list(posted) == [Posted(runner=process.runner, epoch=1)]
    assert list(await process.storage.take_post()) == [as_received(post)]


async def test_a_message_for_a_shard_that_nobody_owns_is_not_sent(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender = await world.process()
    unknown = ShardId("nowhere", 1)

    posted = await sender.storage.post([parcel(TWO), parcel(ONE, b"1"), parcel(unknown)])

    assert list(posted) == [
        Posted(runner=None),
        Posted(runner=process.runner, epoch=1),
        Posted(runner=None),
    ]
    await lane.acquire([TWO])
    assert await bodies(process) == [b"1"]


async def test_a_message_for_a_shard_that_was_released_is_not_sent(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender = await world.process()
    await lane.release([ONE])

    assert list(await sender.storage.post([parcel(ONE)])) == [Posted(runner=None)]


async def test_a_message_tells_which_ownership_it_was_for(
    world: World, process: Process, lane: LaneSession
) -> None:
    await lane.release([ONE])
    successor, second = await world.runner_with_lane()
    await second.acquire([ONE])

    posted = await process.storage.post([parcel(ONE, b"1")])

    assert list(posted) == [Posted(runner=successor.runner, epoch=2)]
    assert [each.epoch for each in await successor.storage.take_post()] == [2]


async def test_the_next_owner_does_not_get_what_was_sent_to_the_last(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender, (successor, second) = await world.process(), await world.runner_with_lane()
    await sender.storage.post([parcel(ONE, b"1")])

    lane.terminate()
    await eventually(lambda: second.acquire([ONE]))

    assert await bodies(successor) == []
    assert await bodies(process) == [b"1"]
    await sender.storage.post([parcel(ONE, b"2")])
    assert await bodies(successor) == [b"2"]
    assert await bodies(process) == []


async def test_one_batch_reaches_several_owners(
    world: World, process: Process, lane: LaneSession
) -> None:
    other, second = await world.runner_with_lane()
    await second.acquire([TWO, THREE])
    sender = await world.process(register=False)

    posts = [parcel(TWO, b"2"), parcel(ONE, b"1"), parcel(THREE, b"3")]
    posted = await sender.storage.post(posts)

    assert [each.runner for each in posted] == [other.runner, process.runner, other.runner]
    assert await bodies(process) == [b"1"]
    assert await bodies(other) == [b"2", b"3"]


# --- the doorbell ---------------------------------------------------------------------------------


async def test_the_receiver_of_a_message_is_rung_and_nobody_else(
    world: World, process: Process, lane: LaneSession
) -> None:
    sender, other = await world.process(), await world.process()
    ears = [await listening(each) for each in (process, other, sender)]

    await sender.storage.post([parcel(ONE)])
    await eventually(lambda: ears[0].post)
    await sender.storage.post([parcel(other)])
    await eventually(lambda: ears[1].post)

    assert ears[2].post == 0
    assert ears[0].shards == set()


async def test_every_message_finds_the_receiver_awake(world: World) -> None:
    sender, receiver = await world.process(), await world.process()
    taken: list[bytes] = []
    ear = await listening(receiver)

    for n in range(20):
        await sender.storage.post([parcel(receiver, b"%d" % n)])
        await eventually(lambda: _rung(ear))
        taken += await bodies(receiver)

    assert taken == [b"%d" % n for n in range(20)]


def _rung(ear: Ear) -> bool:
    rung, ear.post = ear.post, 0
    return rung > 0


async def test_post_arrives_without_the_doorbell(world: World) -> None:
    sender, deaf = await world.process(), await world.process(notifications=False)

    await sender.storage.post([parcel(deaf, b"1")])
    await deaf.storage.post([parcel(sender, b"2")])

    assert await bodies(deaf) == [b"1"]
    assert await bodies(sender) == [b"2"]


# --- what nobody fetches --------------------------------------------------------------------------


async def test_what_nobody_fetches_is_thrown_away(world: World) -> None:
    sender, gone, slow = [await world.process() for _ in range(3)]
    await sender.storage.post([parcel(gone), parcel(gone), parcel(slow)])

    assert await sender.storage.sweep_post(HOUR) == 0
    assert [len(await slow.storage.take_post()) for _ in range(2)] == [1, 0]

    async def swept() -> bool:
        return await sender.storage.sweep_post(timedelta(microseconds=1)) == 2

    await eventually(swept)
    assert list(await gone.storage.take_post()) == []
    assert await sender.storage.sweep_post(timedelta(0)) == 0
