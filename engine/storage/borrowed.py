"""A SQLAlchemy session over a connection that stays somebody else's.

From ``user_transaction``. SQLAlchemy begins, commits and closes what it is given; here that is a
savepoint inside the transaction that is open already, and closing does nothing.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from engine.storage.session import Session

_lent: ContextVar[Session] = ContextVar("lent_to_sqlalchemy")


def borrowing_engine() -> AsyncEngine:
    """A SQLAlchemy engine whose connections are those lent to it; it asks the server about itself
    once, so it is worth keeping."""
    return create_async_engine("postgresql+asyncpg://", async_creator=_borrow, poolclass=NullPool)


@asynccontextmanager
async def borrowed_session(engine: AsyncEngine, session: Session) -> AsyncGenerator[AsyncSession]:
    """Lend the connection for the block: what is flushed in it is kept, an error takes it back."""
    token = _lent.set(session)
    try:
        async with AsyncSession(engine, expire_on_commit=False) as alchemy:
            yield alchemy
            await alchemy.commit()
    finally:
        _lent.reset(token)


async def _borrow() -> Any:
    return _Borrowed(_lent.get())


class _Borrowed:
    """The connection, except that it cannot be ended."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def set_type_codec(self, typename: str, **options: Any) -> None:
        """Once a connection: at each, asyncpg forgets its statements and looks the type up."""
        if typename not in self._session.codecs:
            await self._session.set_type_codec(typename, **options)
            self._session.codecs.add(typename)

    async def close(self, *, timeout: float | None = None) -> None:
        """Nothing: its owner closes it."""

    def terminate(self) -> None:
        """Nothing: its owner closes it."""
