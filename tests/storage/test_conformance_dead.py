"""Dead letters as ``storage.protocol`` has them, asked of both storages: listed, found, and
delivered again."""

from collections.abc import Sequence

from engine.core.ids import Snowflake, entity_key
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.entities import DeadFilter, DeadLetter
from engine.storage.protocol import (
    Commit,
    InboxKind,
    LaneSession,
    SaveOutcome,
    SaveRequest,
)
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    chunk,
    defect,
    ids_of,
    interrupt,
    message,
    next_id,
    position_of,
    save_one,
    seqs_of,
    start,
    success,
    sweep_of,
    update,
)

STOCK = entity_key("Stock", "sku-1")


async def fail(lane: LaneSession, seqs: Sequence[int], times: int = 1) -> None:
    for _ in range(times):
        await lane.flush([Commit(shard=ONE, failed=list(seqs))])


async def bury(process: Process, lane: LaneSession, request: SaveRequest) -> SaveRequest:
    """Store a request that ends in a defect."""
    await save_one(process, request)
    rows = (await sweep_of(lane, limit=1000)).rows
    (seq,) = [row.seq for row in rows if row.envelope.request_id == request.envelope.request_id]
    await lane.flush([Commit(shard=ONE, replies=[defect(request)], settled=[seq])])
    return request


async def dead(process: Process, **filter: object) -> list[Snowflake]:
    letters = await process.storage.dead_letters(DeadFilter(**filter), limit=100)  # type: ignore[arg-type]
    return [letter.request_id for letter in letters]


async def test_a_dead_letter_tells_what_was_asked_and_what_went_wrong(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message(payload=b"\x00[1]"))

    (letter,) = await process.storage.dead_letters(DeadFilter(), limit=10)

    assert letter == DeadLetter(
        request_id=request.envelope.request_id,
        shard=ONE,
        entity_type="Stock",
        entity_id="sku-1",
        tag="reserve",
        payload=b"\x00[1]",
        error=defect(request).payload,
    )


async def test_only_defects_are_dead_letters(process: Process, lane: LaneSession) -> None:
    requests = [message() for _ in range(5)]
    await process.storage.save(requests)
    kinds = [ReplyKind.SUCCESS, ReplyKind.FAILURE, ReplyKind.INTERRUPTED, ReplyKind.CHUNK]
    replies = [success(each) for each in requests[:4]]
    await lane.flush(
        [
            Commit(
                shard=ONE,
                replies=[
                    type(reply)(
                        request_id=reply.request_id, sequence=0, kind=kind, payload=b'"why"'
                    )
                    for reply, kind in zip(replies, kinds, strict=True)
                ],
            )
        ]
    )

    assert await dead(process) == []


async def test_dead_letters_come_youngest_first_in_pages(
    process: Process, lane: LaneSession
) -> None:
    ids = [(await bury(process, lane, message())).envelope.request_id for _ in range(5)]

    first = await process.storage.dead_letters(DeadFilter(), limit=2)
    second = await process.storage.dead_letters(DeadFilter(after=first[-1].request_id), limit=2)
    third = await process.storage.dead_letters(DeadFilter(after=second[-1].request_id), limit=2)

    pages = [[letter.request_id for letter in page] for page in (first, second, third)]
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]


async def test_dead_letters_are_found_by_whom_they_were_for(
    process: Process, lane: LaneSession
) -> None:
    stock = await bury(process, lane, message())
    other = await bury(process, lane, message(entity="sku-2"))
    basket = await bury(process, lane, message(entity_type="Basket"))
    ids = [each.envelope.request_id for each in (stock, other, basket)]

    assert await dead(process, entity_type="Stock") == [ids[1], ids[0]]
    assert await dead(process, entity_id="sku-1") == [ids[2], ids[0]]
    assert await dead(process, entity_type="Stock", entity_id="sku-1") == [ids[0]]
    assert await dead(process, request_id=ids[2]) == [ids[2]]
    assert await dead(process, request_id=ids[2], entity_type="Stock") == []
    assert await dead(process, request_id=ids[1], after=ids[1]) == []
    assert await dead(process, request_id=next_id()) == []


async def test_a_revived_request_is_delivered_as_if_for_the_first_time(
    process: Process, lane: LaneSession
) -> None:
    request = message(payload=b"again")
    await save_one(process, request)
    await fail(lane, await seqs_of(lane), 5)
    await lane.flush([Commit(shard=ONE, replies=[defect(request)], settled=await seqs_of(lane))])

    assert list(await process.storage.revive([request.envelope.request_id])) == [ONE]

    (row,) = (await sweep_of(lane)).rows
    assert (row.kind, row.envelope, row.execution) == (InboxKind.REQUEST, request.envelope, None)
    assert (row.failures, row.trial) == (0, False)
    assert list(await process.storage.replies([request.envelope.request_id])) == []
    assert await dead(process) == []


async def test_a_revived_request_gets_its_exit(process: Process, lane: LaneSession) -> None:
    request = await bury(process, lane, message())
    await process.storage.revive([request.envelope.request_id])

    await lane.flush(
        [Commit(shard=ONE, replies=[success(request, b"5")], settled=await seqs_of(lane))]
    )

    (exit,) = await process.storage.replies([request.envelope.request_id])
    assert (exit.kind, exit.payload) == (ReplyKind.SUCCESS, b"5")
    assert await seqs_of(lane) == []


async def test_a_revived_request_can_be_held_and_interrupted(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message())
    await process.storage.revive([request.envelope.request_id])

    assert ids_of(await sweep_of(lane, held=(STOCK,))) == []
    assert await process.storage.interrupt([interrupt(request)]) == [True]
    rows = (await sweep_of(lane)).rows
    assert [(row.kind, row.target) for row in rows] == [
        (InboxKind.REQUEST, None),
        (InboxKind.INTERRUPT, rows[0].seq),
    ]


async def test_what_is_not_dead_is_not_revived(process: Process, lane: LaneSession) -> None:
    waiting, done = await save_one(process, message()), await save_one(process, message())
    run = await save_one(process, start("o-1"))
    await lane.flush([Commit(shard=ONE, replies=[success(done)])])
    before = await seqs_of(lane)

    asked = [*(each.envelope.request_id for each in (waiting, done, run)), next_id()]
    assert list(await process.storage.revive(asked)) == []
    assert list(await process.storage.revive([])) == []

    assert await seqs_of(lane) == before
    (exit,) = await process.storage.replies([done.envelope.request_id])
    assert exit.kind is ReplyKind.SUCCESS


async def test_a_dead_letter_is_revived_once(process: Process, lane: LaneSession) -> None:
    request = await bury(process, lane, message())
    id = request.envelope.request_id

    first = await process.storage.revive([id, id])
    second = await process.storage.revive([id])

    assert (list(first), list(second)) == ([ONE], [])
    assert ids_of(await sweep_of(lane)) == [id]


async def test_the_shards_of_all_that_were_revived_are_named(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    here, there = await bury(process, lane, message()), await save_one(process, message(shard=TWO))
    await lane.flush([Commit(shard=TWO, replies=[defect(there)])])

    asked = [here.envelope.request_id, there.envelope.request_id, next_id()]
    assert set(await process.storage.revive(asked)) == {ONE, TWO}


async def test_an_execution_that_ended_in_a_defect_is_no_dead_letter(
    process: Process, lane: LaneSession
) -> None:
    run = await bury(process, lane, start("o-1"))
    id = run.envelope.request_id
    await lane.flush([update(id, Status.FAILED)])

    assert await dead(process) == []
    assert await dead(process, request_id=id) == []
    assert list(await process.storage.revive([id])) == []

    (exit,) = await process.storage.replies([id])
    assert exit.kind is ReplyKind.DEFECT
    assert await seqs_of(lane) == []


async def test_a_revived_stream_goes_on_behind_its_chunks(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    replies = [chunk(request, 0), chunk(request, 1), defect(request, sequence=2)]
    await lane.flush([Commit(shard=ONE, replies=replies, settled=await seqs_of(lane))])

    await process.storage.revive([request.envelope.request_id])

    stored = await process.storage.replies([request.envelope.request_id])
    assert [reply.kind for reply in stored] == [ReplyKind.CHUNK, ReplyKind.CHUNK]
    assert (await position_of(process, request)).next_sequence == 2


async def test_the_key_of_a_revived_request_stays_taken(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message(key="reserve/1"))
    await process.storage.revive([request.envelope.request_id])

    (again,) = await process.storage.save([message(key="reserve/1")])

    assert (again.outcome, again.request_id) == (SaveOutcome.EXISTS, request.envelope.request_id)
