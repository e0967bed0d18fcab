"""Values behind codecs, on both storages: what the tables hold, what waits for a key, and what was
put in another's place. That all else is as without them the conformance suite shows."""

import dataclasses
import typing
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from engine.core.codec import same_json
from engine.core.errors import InvalidPayload, StorageUnavailable
from engine.core.journal import JournalKind
from engine.core.payload import PayloadLimit
from engine.core.seal import MARK, Codecs, is_sealed
from engine.core.status import Status
from engine.encryption import AesGcm
from engine.storage.entities import StateWrite
from engine.storage.protocol import (
    BadBatch,
    Commit,
    LaneSession,
    Post,
    PostKind,
    SaveOutcome,
    SaveRequest,
    Storage,
    StoredExecution,
)
from engine.storage.sealed import SealedLane, SealedStorage
from engine.storage.standings import MISFIT
from tests.storage.world import (
    ONE,
    Process,
    World,
    chunk,
    defect,
    event,
    interrupt,
    message,
    next_id,
    save_one,
    start,
    step,
    success,
    sweep_of,
    take_over,
    update,
)

SECRET = b'"a secret"'
DIGEST = 1_234_567_891  # no id, time or ciphertext has it by chance
KEY = Codecs([AesGcm({"a": b"k" * 32})])
NO_KEY = Codecs()
OTHER_KEY = Codecs([AesGcm({"b": b"x" * 32})])
PLAIN = {"settings", "attributes"}


class Failing:
    """Cannot encode what says so."""

    number = 101

    async def encode(self, payload: bytes, place: bytes) -> bytes:
        if b"bad" in payload:
            raise ConnectionError("no key service")
        return payload

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        return payload


@pytest.fixture
def rests(request: pytest.FixtureRequest) -> tuple[str | None, Codecs | None]:
    where = request.param if hasattr(request, "param") else "postgres"
    return request.getfixturevalue("dsn") if where == "postgres" else None, KEY


both = pytest.mark.parametrize("rests", ["memory", "postgres"], indirect=True)


@pytest.mark.parametrize(
    ("protocol", "covering"), [(Storage, SealedStorage), (LaneSession, SealedLane)]
)
def test_whatever_carries_a_value_passes_through_the_codecs(protocol: type, covering: type) -> None:
    methods = {
        name: typing.get_type_hints(method)
        for name, method in vars(protocol).items()
        if callable(method) and not name.startswith("_")
    }
    carrying = {name for name, hints in methods.items() if any(map(carries, hints.values()))}

    assert {"save", "load"} <= carrying or {"flush", "sweep", "dispatch"} <= carrying
    assert carrying - vars(covering).keys() == set()


def carries(hint: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether a value of this type may hold one of a user's, or an error's words."""
    if hint in seen:
        return False
    if dataclasses.is_dataclass(hint):
        if hint is StoredExecution:
            return True
        fields = typing.get_type_hints(hint)
        return any(
            name not in PLAIN and (bytes in parts(each) or carries(each, seen | {hint}))
            for name, each in fields.items()
        )
    return any(carries(each, seen) for each in parts(hint))


def parts(hint: Any) -> tuple[Any, ...]:
    """What a generic type is made of, at any depth."""
    found: list[Any] = []
    for each in typing.get_args(hint):
        inner = each if isinstance(each, list) else [each]
        for part in typing.cast("list[Any]", inner):
            found += [part, *parts(part)]
    return (*found, hint) if hint is bytes else tuple(found)


async def fill(process: Process, lane: LaneSession) -> SaveRequest:
    """One of each thing that has a value."""
    run = await save_one(process, start("o-1", payload=SECRET))
    id = run.envelope.request_id
    asked = await save_one(process, message(payload=SECRET))
    dead = await save_one(process, message(payload=SECRET))
    await save_one(process, event("o-1", payload=SECRET))
    rows = [
        replace(step(id, 1, payload=SECRET), digest=DIGEST),
        replace(step(id, 2, payload=b""), digest=DIGEST),
    ]
    kind = JournalKind.PATCHED
    rows.append(replace(step(id, 3, payload=b"true"), kind=kind))
    state = StateWrite(entity_type="Stock", entity_id="sku-1", version=1, payload=SECRET)
    replies = [chunk(asked, 0, SECRET), success(asked, SECRET, sequence=1)]
    replies.append(defect(dead, message="a secret"))
    await lane.flush([Commit(shard=ONE, journal=rows, replies=replies, states=[state])])
    await lane.flush([update(id, Status.BLOCKED, waiting=f"{MISFIT}calls it with a secret")])
    return run


async def dump(sql: asyncpg.Connection) -> dict[str, str]:
    """All rows of all tables, as text."""
    tables = await sql.fetch("select tablename from pg_tables where schemaname = 'engine'")
    found: dict[str, str] = {}
    for (table,) in tables:
        rows = await sql.fetch(f'select t.*, t::text as as_text from engine."{table}" t')
        found[table] = "\n".join(str(dict(row)) for row in rows)
    return found


async def test_no_table_holds_a_value_that_can_be_read(
    process: Process, lane: LaneSession, sql: asyncpg.Connection
) -> None:
    run = await fill(process, lane)
    post = Post(kind=PostKind.REQUEST, to=ONE, request_id=next_id(), body=SECRET)
    await process.storage.post([post])

    held = await dump(sql)

    hidden = (SECRET.decode(), SECRET.hex(), "a secret", str(DIGEST))
    assert [name for name, text in held.items() if any(each in text for each in hidden)] == []
    assert all(held[name] for name in ("envelopes", "replies", "journal", "entity_states", "post"))
    rows = await process.storage.history(run.envelope.request_id)
    assert [(row.payload, row.digest) for row in rows] == [
        (SECRET, DIGEST),
        (b"", DIGEST),
        (b"true", 0),
    ]
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert found.waiting == f"{MISFIT}calls it with a secret"
    (standing,) = await process.storage.standings()
    assert standing.misfits == 1
    assert [each.body for each in await process.storage.take_post()] == [SECRET]


async def test_a_function_says_which_codec_and_can_be_insisted_on(
    process: Process, lane: LaneSession, sql: asyncpg.Connection, world: World
) -> None:
    await fill(process, lane)
    number = "engine.codec_of(payload)"
    for table in ("envelopes", "replies", "entity_states"):
        assert await sql.fetch(f"select distinct {number} from engine.{table}") == [(1,)]
        await sql.execute(f"alter table engine.{table} add constraint c check ({number} = 1)")

    await save_one(process, message(payload=SECRET))
    world.codecs = None
    bare = await world.process()
    with pytest.raises(InvalidPayload, match="check constraint"):
        await bare.storage.save([message()])

    plain = f"select distinct {number}, length(payload) from engine.journal where kind = 18"
    assert await sql.fetch(plain) == [(0, 4)]


SWAPS = {
    "envelopes": "request_id in ({0}, {1})",
    "replies": "request_id in ({0}, {1})",
    "journal": "position in (1, 2)",
    "entity_states": "entity_type = 'Stock'",
}


async def test_a_value_in_the_place_of_another_is_not_read(
    process: Process, lane: LaneSession, sql: asyncpg.Connection
) -> None:
    asked = [await save_one(process, message(payload=b"%d" % n, entity=f"e{n}")) for n in (1, 2)]
    ids = [each.envelope.request_id for each in asked]
    states = [
        StateWrite(entity_type="Stock", entity_id=f"e{n}", version=1, payload=b"%d" % n)
        for n in (1, 2)
    ]
    await lane.flush(
        [
            Commit(shard=ONE, replies=[success(each) for each in asked]),
            Commit(shard=ONE, states=states),
            Commit(shard=ONE, journal=[step(ids[0], n, payload=b"%d" % n) for n in (1, 2)]),
        ]
    )

    for table, which in SWAPS.items():
        await sql.execute(
            f"update engine.{table} t set payload = o.payload from engine.{table} o"
            f" where o.ctid <> t.ctid and t.{which.format(*ids)} and o.{which.format(*ids)}"
        )

    stored = [await process.storage.request(id) for id in ids]
    replies = await process.storage.replies(ids)
    rows = await process.storage.history(ids[0])
    kept = await process.storage.states([("Stock", "e1"), ("Stock", "e2")])
    found = [*stored, *replies, *rows, *kept.values()]
    assert len(found) == 8
    assert all(each is not None and is_sealed(each.payload) for each in found)


async def test_a_request_sent_to_another_entity_or_handler_is_not_read(
    process: Process, lane: LaneSession, sql: asyncpg.Connection
) -> None:
    requests = [await save_one(process, message(entity=entity)) for entity in ("a", "b", "c", "d")]
    ids = [each.envelope.request_id for each in requests]
    await sql.execute("update engine.envelopes set entity_id = 'c' where entity_id = 'a'")
    await sql.execute("update engine.envelopes set tag = 'release' where entity_id = 'b'")

    rows = (await sweep_of(lane)).rows

    # What follows for the entity does not overtake what is addressed to it now.
    assert [row.envelope.request_id for row in rows] == [ids[3]]


@both
async def test_messages_wait_in_order_for_an_owner_that_has_the_key(
    world: World, process: Process, lane: LaneSession, caplog: pytest.LogCaptureFixture
) -> None:
    await save_one(process, start("o-1", payload=b"1"))
    for entity, payload in (("a", b"2"), ("b", b"3"), ("a", b"4")):
        await save_one(process, message(entity=entity, payload=payload))
    await save_one(process, event("o-1", payload=b"5"))

    world.codecs = OTHER_KEY
    one = await world.process()
    await one.storage.save([message(entity="a", payload=b"6"), message(entity="c", payload=b"7")])
    successor = await take_over(world, lane)
    run, readable = (await sweep_of(successor)).rows
    (again,) = (await sweep_of(successor, in_flight=(run.seq,))).rows

    # What starts an execution is delivered, to be blocked where everybody sees it.
    assert (run.told, is_sealed(run.envelope.payload)) == ("run", True)
    assert readable.envelope.payload == again.envelope.payload == b"7"
    assert "with key 'a'" in str([vars(record) for record in caplog.records])

    world.codecs = Codecs([AesGcm({"a": b"k" * 32, "b": b"x" * 32})])
    rows = (await sweep_of(await take_over(world, successor))).rows

    assert [row.envelope.payload for row in rows] == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


async def test_what_is_interrupted_or_freed_needs_no_key(
    world: World, process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message(payload=SECRET))
    await process.storage.interrupt([interrupt(request)])
    world.codecs = NO_KEY

    rows = (await sweep_of(await take_over(world, lane))).rows

    assert [row.kind.name for row in rows] == ["INTERRUPT"]


@both
async def test_an_execution_is_joined_by_the_same_bytes_alone(process: Process) -> None:
    begun = await save_one(process, start("o-1", payload=SECRET))

    def opening(payload: bytes, *, joins: bool = True) -> SaveRequest:
        return replace(event("o-1"), opening=start("o-1", payload=payload), joins=joins)

    same, other, never = await process.storage.save(
        [opening(SECRET), opening(b"{}"), opening(SECRET, joins=False)]
    )

    assert [each.outcome for each in (same, other, never)] == [
        SaveOutcome.CREATED,
        SaveOutcome.NOT_OPENED,
        SaveOutcome.NOT_OPENED,
    ]
    for each in (same, other, never):
        assert each.opened is not None
        assert (each.opened.request_id, each.opened.payload) == (begun.envelope.request_id, SECRET)


@both
async def test_a_key_that_is_taken_gives_the_value_that_is_there(
    world: World, process: Process
) -> None:
    stored = await save_one(process, message(key="k", payload=b"[1, 2]", entity="a"))

    (saved,) = await process.storage.save([message(key="k", payload=b"[1,2]", entity="b")])
    assert (saved.request_id, saved.payload) == (stored.envelope.request_id, b"[1, 2]")

    world.codecs = NO_KEY
    bare = await world.process()
    (saved,) = await bare.storage.save([message(key="k", payload=b"[1,2]", entity="a")])
    assert saved.payload is not None
    with pytest.raises(InvalidPayload, match=r"with key 'a'.*OUTLAST_CODEC"):
        same_json(saved.payload, b"[1,2]")


@both
async def test_a_codec_that_cannot_encode_costs_what_it_was_asked_for_alone(world: World) -> None:
    world.codecs = Codecs([Failing()])
    process, lane = await world.runner_with_lane()
    await lane.acquire([ONE])
    request = await save_one(process, message())

    with pytest.raises(StorageUnavailable, match="codec 101 could not encode"):
        await process.storage.save([message(payload=b'"bad"')])
    with pytest.raises(BadBatch) as refused:
        await lane.flush([Commit(shard=ONE, replies=[success(request, b'"bad"')])])
    assert refused.value.transient

    await lane.flush([Commit(shard=ONE, replies=[success(request)])])
    (reply,) = await process.storage.replies([request.envelope.request_id])
    assert reply.payload == b"1"


def test_no_value_begins_as_a_frame() -> None:
    with pytest.raises(InvalidPayload, match="the payload of x begins as only"):
        PayloadLimit(1024).check(MARK + b"\1", "the payload of", "x")
