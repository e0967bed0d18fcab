"""The handle a ``@transaction`` step gets: the user's SQL in the transaction of its journal row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncSession


class Transaction(Protocol):
    """SQL that commits together with the step's journal row, or not at all.

    Arguments are ``$1``, ``$2``, … as in asyncpg; rows are mappings that also take an index. The
    engine begins and ends the transaction: what the step raises rolls it back.
    """

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement and return its status, such as ``INSERT 0 1``."""
        ...

    async def fetch(self, query: str, *args: object) -> Sequence["Row"]:
        """All rows."""
        ...

    async def fetchrow(self, query: str, *args: object) -> "Row | None":
        """The first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        ...

    def session(self) -> "AbstractAsyncContextManager[AsyncSession]":
        """A SQLAlchemy session in the same transaction: ``async with tx.session() as session``."""
        ...


class Row(Protocol):
    """A row of a result."""

    def __getitem__(self, key: int | str, /) -> Any: ...
    def __len__(self) -> int: ...
