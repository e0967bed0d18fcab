"""Store requests: one statement for all of them, or one in somebody else's transaction.

From ``postgres``; the statement is ``save.sql``. Keys and request ids decide what is new, so every
statement here may be run again when nobody knows whether it committed.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from uuid import UUID

import asyncpg

from engine.core.errors import ConfigurationError, InvalidPayload, StorageUnavailable
from engine.core.ids import Snowflake
from engine.storage.columns import request_columns
from engine.storage.connect import OUR_PLANS, Connector
from engine.storage.foreign import transaction_of
from engine.storage.groups import Groups, UnknownGroup
from engine.storage.outage import LOST, refused, transient, unavailable
from engine.storage.pool import Pool
from engine.storage.protocol import Saved, SaveOutcome, SaveRequest
from engine.storage.storable import check_storable

_OUTCOMES = (
    SaveOutcome.CREATED,
    SaveOutcome.EXISTS,
    SaveOutcome.NO_TARGET,
    SaveOutcome.TARGET_FINISHED,
)
_RACES = 5
_PARTS = 8

Answers = dict[Snowflake, Saved]


class Saving:
    """Saves batches on the pool. ``channel`` is where this process hears of replies, if it does."""

    def __init__(
        self,
        *,
        pool: Pool,
        identity: UUID,
        groups: Groups,
        learn_groups: Callable[[], Awaitable[None]],
        channel: str | None,
    ) -> None:
        self._pool = pool
        self._identity = identity
        self._groups = groups
        self._learn_groups = learn_groups
        self._channel = channel

    async def save(self, requests: Sequence[SaveRequest], *, patient: bool) -> Sequence[Saved]:
        """Store requests; answers in the order asked. See ``Storage.save``."""
        for request in requests:
            check_storable(request)
        answers: Answers = {}
        unique: dict[Snowflake, SaveRequest] = {}
        for request in requests:
            unique.setdefault(request.envelope.request_id, request)
        await self._learn(requests)
        if patient:
            for request in unique.values():
                answers |= await self._save_patiently(request)
        else:
            await self._save(list(unique.values()), answers)
        if len(unique) == len(requests):
            return [answers[request.envelope.request_id] for request in requests]
        return await self._with_repeated(requests, answers)

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        """Store one request in the transaction that is open on the caller's connection."""
        check_storable(request)
        await self._learn([request])
        driver = await transaction_of(connection)
        query = self._pool.queries["save"]
        for _ in range(_RACES):
            rows = await driver.fetch(query, *self._arguments([request]))
            answers = saved_from(rows)
            if answers:
                saved = answers[request.envelope.request_id]
                if saved.outcome is SaveOutcome.CREATED and self._channel is not None:
                    # The server keeps this back until the caller commits.
                    shard = self._groups.columns([request.envelope.address.shard])
                    await driver.fetch(self._pool.queries["ring"], *shard, [], [], [], [], [])
                return saved
        raise _lost_every_race()

    async def _save(self, batch: Sequence[SaveRequest], answers: Answers) -> None:
        for _ in range(_RACES):
            if not batch:
                return
            try:
                answers |= await self._statement(batch)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                await self._divide(batch, answers, error)
            batch = [r for r in batch if r.envelope.request_id not in answers]
        if batch:
            raise _lost_every_race()

    async def _divide(
        self, batch: Sequence[SaveRequest], answers: Answers, error: Exception
    ) -> None:
        """Part the batch until the one to blame is alone; the others go on without it."""
        if len(batch) > 1:
            size = -(-len(batch) // _PARTS)
            for start in range(0, len(batch), size):
                await self._save(batch[start : start + size], answers)
        elif transient(error):
            request_id = batch[0].envelope.request_id
            answers[request_id] = Saved(outcome=SaveOutcome.BLOCKED, request_id=request_id)
        else:
            raise InvalidPayload(f"PostgreSQL refused the request: {error}") from error

    async def _statement(self, batch: Sequence[SaveRequest]) -> Answers:
        reruns: list[None] = []
        rows = await self._pool.fetch(
            "save", *self._arguments(batch), again=lambda: reruns.append(None), locks=True
        )
        saved = saved_from(rows)
        return _own(saved) if reruns else saved

    async def _save_patiently(self, request: SaveRequest) -> Answers:
        """Wait for the transaction that holds the key, on a session that nobody else needs.

        It may be the request's own: one of a lost connection that is still committing.
        """
        rerun = False
        for _ in range(_RACES):
            try:
                rows = await self._wait(request)
            except LOST as error:
                if rerun:
                    raise unavailable(error, self._pool.connector.address) from error
                rerun = True
                continue
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if refused(error):
                    raise InvalidPayload(f"PostgreSQL refused the request: {error}") from error
                raise unavailable(error, self._pool.connector.address) from error
            saved = saved_from(rows)
            if saved:
                return _own(saved)
        raise _lost_every_race()

    async def _wait(self, request: SaveRequest) -> Sequence[asyncpg.Record]:
        settings = OUR_PLANS | {"lock_timeout": "0", "statement_timeout": "0"}
        connector: Connector = self._pool.connector
        query = self._pool.queries["save"]
        waiting = Pool(
            connector=connector,
            identity=self._identity,
            role="patient",
            size=1,
            settings=settings,
        )
        try:
            async with waiting.session() as session:
                return await waiting.run(session, query, *self._arguments([request]), within=None)
        finally:
            await waiting.close()

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

    def _arguments(self, batch: Sequence[SaveRequest]) -> list[object]:
        return [*request_columns(batch, self._groups), self._channel]

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
    """The answers of ``save`` by the request id asked; those that lost a race have none."""
    return {
        row["asked"]: Saved(
            outcome=_OUTCOMES[int(row["outcome"])],
            request_id=row["found"],
            seq=row["seq"],
            payload=row["payload"],
        )
        for row in rows
    }


def _own(answers: Mapping[Snowflake, Saved]) -> Answers:
    """What a second run found to exist under its own request id, the first run has created."""
    return {
        asked: Saved(outcome=SaveOutcome.CREATED, request_id=asked)
        if saved.outcome is SaveOutcome.EXISTS and saved.request_id == asked
        else saved
        for asked, saved in answers.items()
    }


def _lost_every_race() -> StorageUnavailable:
    return StorageUnavailable(
        "a request's key was taken and given up again and again by others: try again"
    )
