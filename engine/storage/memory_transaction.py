"""A user transaction of the in-memory database: fenced as in PostgreSQL, but without SQL.

Opened by ``memory`` for one ``@transaction`` step.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from engine.core.errors import ConfigurationError, OwnershipLost, StorageUnavailable
from engine.core.journal import JournalRow
from engine.storage.memory_database import MemoryDatabase
from engine.storage.protocol import Fence
from engine.storage.transaction import Row

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class UserConnection:
    """Holds the shard's row from the check of the fence to the end, so that nobody takes the shard.

    Ending it from outside lets go of the row at once, and makes ``commit`` fail.
    """

    def __init__(self, database: MemoryDatabase, fence: Fence) -> None:
        self.runner = fence.runner
        self._database = database
        self._fence = fence
        self._open = False

    def __enter__(self) -> Self:
        fence = self._fence
        with self._database.mutex:
            shard = self._database.shards.get(fence.shard)
            if shard is None or (shard.epoch, shard.runner) != (fence.epoch, fence.runner):
                raise OwnershipLost(
                    "the shard has another owner by now; the transaction is rolled back"
                )
            shard.fences += 1
            self._database.sessions[self] = None
            self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()

    def terminate(self) -> None:
        with self._database.mutex:
            if self._open:
                self._open = False
                self._database.shards[self._fence.shard].fences -= 1
                self._database.sessions.pop(self, None)

    def commit(self, row: JournalRow) -> None:
        """Insert the step's journal row; ``BadBatch`` when its position is taken."""
        if not self._open:
            raise StorageUnavailable(
                "the connection of a user transaction was ended; nothing of it was done"
            )
        self._database.rows.executions.check_journal([row])
        self._database.rows.executions.add_journal([row])


class MemoryTransaction:
    """The handle of a ``@transaction`` step where there is no SQL: every use of it is refused."""

    async def execute(self, query: str, *args: object) -> str:
        _refuse()

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        _refuse()

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        _refuse()

    async def fetchval(self, query: str, *args: object) -> Any:
        _refuse()

    def session(self) -> "AbstractAsyncContextManager[AsyncSession]":
        _refuse()


def _refuse() -> NoReturn:
    raise ConfigurationError(
        "the in-memory storage runs no SQL: in this test replace the @transaction step by a stub,"
        " or use PostgreSQL (`TestCluster(dsn=…)`)"
    )
