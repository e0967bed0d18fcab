"""Store requests: one statement for all of them, or one in somebody else's transaction.

From ``postgres``; the statement is ``save.sql``, ``start.sql`` for one start, or ``open.sql`` for a
message that comes with the start of its execution. Keys and request ids decide what is new, so
every statement here may be run again when nobody knows whether it committed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import asyncpg

from engine.core.errors import ConfigurationError, InvalidPayload, StorageUnavailable
from engine.core.ids import Snowflake
from engine.storage.columns import (
    is_plain_start,
    opening_columns,
    request_columns,
    request_values,
    start_values,
)
from engine.storage.foreign import transaction_of
from engine.storage.groups import Groups, UnknownGroup
from engine.storage.outage import transient
from engine.storage.pool import Pool
from engine.storage.protocol import Saved, SaveOutcome, SaveRequest
from engine.storage.queries import alone
from engine.storage.storable import check_storable

_OUTCOMES = (
    SaveOutcome.CREATED,
    SaveOutcome.EXISTS,
    SaveOutcome.NO_TARGET,
    SaveOutcome.TARGET_FINISHED,
    SaveOutcome.NOT_OPENED,
)
_RACES = 5
_PARTS = 8
_FEW = 32

Answers = dict[Snowflake, Saved]


class Saving:
    """Saves batches on the pool, and on ``apart`` those that met a lock.

    ``channel`` is where this process hears of replies, if it does.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        apart: Pool,
        groups: Groups,
        learn_groups: Callable[[], Awaitable[None]],
        channel: str | None,
    ) -> None:
        self._pool = pool
        self._apart = apart
        self._groups = groups
        self._learn_groups = learn_groups
        self._channel = channel

    async def save(self, requests: Sequence[SaveRequest], *, apart: bool) -> Sequence[Saved]:
        """Store requests; answers in the order asked. See ``Storage.save``."""
        for request in requests:
            check_storable(request)
        answers: Answers = {}
        unique: dict[Snowflake, SaveRequest] = {}
        for request in requests:
            unique.setdefault(request.envelope.request_id, request)
        await self._learn(requests)
        plain = [request for request in unique.values() if request.opening is None]
        await self._save(plain, answers, apart=apart)
        opening = [request for request in unique.values() if request.opening is not None]
        for start in range(0, len(opening), _PARTS):  # each in a statement of its own
            some = opening[start : start + _PARTS]
            await asyncio.gather(*(self._save([each], answers, apart=apart) for each in some))
        if len(unique) == len(requests):
            return [answers[request.envelope.request_id] for request in requests]
        return await self._with_repeated(requests, answers)

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        """Store one request in the transaction that is open on the caller's connection."""
        check_storable(request)
        await self._learn([request])
        driver = await transaction_of(connection)
        queries = self._pool.queries
        name, arguments = self._statement_for([request])
        call = queries.call(name, *arguments)
        for _ in range(_RACES):
            answers = saved_from(await driver.fetch(*call))
            if answers:
                saved = answers[request.envelope.request_id]
                if saved.outcome is SaveOutcome.CREATED and self._channel is not None:
                    # The server keeps this back until the caller commits.
                    shard = self._groups.columns([request.envelope.address.shard])
                    await driver.fetch(*queries.call("ring", *shard, [], [], [], [], [], True))
                return saved
        raise _lost_every_race()

    async def _save(
        self, batch: Sequence[SaveRequest], answers: Answers, *, apart: bool = False
    ) -> None:
        for _ in range(_RACES):
            if not batch:
                return
            try:
                answers |= await self._statement(batch, self._apart if apart else self._pool)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                keyed = [r for r in batch if r.envelope.key is not None or r.opening is not None]
                if transient(error) and keyed and not apart:
                    answers |= {r.envelope.request_id: _blocked(r) for r in keyed}
                else:
                    await self._divide(batch, answers, error, apart=apart)
            batch = [r for r in batch if r.envelope.request_id not in answers]
        if batch:
            raise _lost_every_race()

    async def _divide(
        self, batch: Sequence[SaveRequest], answers: Answers, error: Exception, *, apart: bool
    ) -> None:
        """Part the batch until the one to blame is alone; the others go on without it."""
        if len(batch) > 1:
            size = 1 if len(batch) <= _FEW else -(-len(batch) // _PARTS)
            for start in range(0, len(batch), size):
                await self._save(batch[start : start + size], answers, apart=apart)
        elif transient(error):
            answers[batch[0].envelope.request_id] = _blocked(batch[0])
        else:
            raise InvalidPayload(f"PostgreSQL refused the request: {error}") from error

    async def _statement(self, batch: Sequence[SaveRequest], pool: Pool) -> Answers:
        reruns: list[None] = []
        name, arguments = self._statement_for(batch)
        rows = await pool.fetch(name, *arguments, again=lambda: reruns.append(None), locks=True)
        saved = saved_from(rows)
        return _own(saved, batch) if reruns else saved

    async def _with_repeated(
        self, requests: Sequence[SaveRequest], answers: Answers
    ) -> Sequence[Saved]:
        """A request id that was asked twice at once: the second finds what the first stored."""
        seen: set[Snowflake] = set()
        saved: list[Saved] = []
        for request in requests:
            request_id = request.envelope.request_id
            if request_id in seen and answers[request_id].outcome is not SaveOutcome.BLOCKED:
                again: Answers = {}
                await self._save([request], again)
                saved.append(again[request_id])
            else:
                saved.append(answers[request_id])
            seen.add(request_id)
        return saved

    def _statement_for(self, batch: Sequence[SaveRequest]) -> tuple[str, list[object]]:
        """The query's name and its arguments. One that has an opening comes alone."""
        first = batch[0]
        if first.opening is not None:
            columns = opening_columns(first, self._groups)
            return "open", [*columns, self._channel, first.alike]
        if len(batch) == 1 and is_plain_start(first):
            channel = self._channel if first.wait else None
            return "start", [*start_values(first, self._groups), channel]
        if len(batch) == 1:
            return alone("save"), [*request_values(first, self._groups), self._channel]
        return "save", [*request_columns(batch, self._groups), self._channel]

    async def _learn(self, requests: Iterable[SaveRequest]) -> None:
        names = {request.envelope.address.shard.group for request in requests}
        names |= {r.envelope.reply_to.shard.group for r in requests if r.envelope.reply_to}
        if all(name in self._groups for name in names):
            return
        await self._learn_groups()
        try:
            for name in names:
                self._groups.id(name)
        except UnknownGroup as error:
            raise ConfigurationError(
                f"there is no shard group {str(error)!r}: name it in the groups of a runner"
            ) from error


def saved_from(rows: Iterable[asyncpg.Record]) -> Answers:
    """The answers of ``save`` or ``open`` by the request id asked; those that lost a race have
    none."""
    return {
        row["asked"]: Saved(
            outcome=_OUTCOMES[int(row["outcome"])],
            request_id=row["found"],
            seq=row["seq"],
            payload=row["payload"],
            opened=_opened(row) if "opened" in row else None,
        )
        for row in rows
    }


def _opened(row: asyncpg.Record) -> Saved:
    outcome = SaveOutcome.CREATED if row["opened"] else SaveOutcome.EXISTS
    return Saved(outcome=outcome, request_id=row["execution"], payload=row["opening"])


def _blocked(request: SaveRequest) -> Saved:
    return Saved(outcome=SaveOutcome.BLOCKED, request_id=request.envelope.request_id)


def _own(answers: Mapping[Snowflake, Saved], batch: Sequence[SaveRequest]) -> Answers:
    """What a second run found to exist under its own request id, the first run has created."""
    found: Answers = {}
    for request in batch:
        asked = request.envelope.request_id
        if asked in answers:
            found[asked] = _created(answers[asked], asked)
            opening, opened = request.opening, found[asked].opened
            if opening is not None and opened is not None:
                opened = _created(opened, opening.envelope.request_id)
                found[asked] = replace(found[asked], opened=opened)
    return found


def _created(saved: Saved, asked: Snowflake) -> Saved:
    if saved.outcome is SaveOutcome.EXISTS and saved.request_id == asked:
        return Saved(outcome=SaveOutcome.CREATED, request_id=asked, opened=saved.opened)
    return saved


def _lost_every_race() -> StorageUnavailable:
    return StorageUnavailable(
        "a request's key was taken and given up again and again by others: try again"
    )
