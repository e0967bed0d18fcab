"""A transaction that the caller of the engine has open on a connection of his own.

From ``saving``: a start in it happens if and only if the caller commits.
"""

from typing import Protocol, cast

import asyncpg

from engine.core.errors import ConfigurationError


class Driver(Protocol):
    """What is needed of an asyncpg connection, or of a pool's proxy for one."""

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]: ...
    def is_in_transaction(self) -> bool: ...


async def transaction_of(connection: object) -> Driver:
    """The asyncpg connection under what the caller handed in, with his transaction open on it.

    ``ConfigurationError`` for other kinds of connection, and when no transaction is open: the
    start would not wait for any commit.
    """
    if isinstance(connection, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
        driver = cast("Driver", connection)
    else:
        driver = await _under_sqlalchemy(connection)
    if not driver.is_in_transaction():
        raise ConfigurationError(
            "no transaction is open on the connection: begin one, or leave the connection out"
        )
    return driver


async def _under_sqlalchemy(connection: object) -> Driver:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    if isinstance(connection, AsyncSession):
        connection = await connection.connection()
    if not isinstance(connection, AsyncConnection):
        raise ConfigurationError(
            f"a {type(connection).__qualname__} cannot carry a start: hand in an asyncpg connection"
            " or a SQLAlchemy AsyncSession or AsyncConnection over asyncpg"
        )
    raw = (await connection.get_raw_connection()).driver_connection
    if not isinstance(raw, asyncpg.Connection):
        raise ConfigurationError(
            f"the SQLAlchemy connection uses {connection.dialect.driver}, not asyncpg: make its"
            " engine from a postgresql+asyncpg:// URL"
        )
    driver = cast("Driver", raw)
    if not driver.is_in_transaction():
        # SQLAlchemy sends BEGIN with the first statement only.
        await connection.exec_driver_sql("select 1")
    return driver
