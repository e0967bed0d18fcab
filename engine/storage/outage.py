"""What went wrong with the database, as the errors the engine raises.

From every module that talks to PostgreSQL. The address is host, port and database, never more of a
DSN: it ends up in messages and logs.
"""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from engine.core.errors import NotGranted, StorageUnavailable
from engine.storage.rights import needed_for

# The connection is gone or unusable, and with it the answer to whatever was asked on it.
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.PostgresIOError,
    OSError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a DSN points, without who asks."""

    host: str
    port: str
    database: str

    @classmethod
    def of(cls, dsn: str) -> Self:
        """Read leniently: what cannot be read is left blank, since this is for messages."""
        try:
            parts = urlsplit(dsn)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            _, _, location = parts.netloc.rpartition("@")
            host, _, port = location.rpartition(":") if ":" in location else (location, "", "")
            return cls(
                unquote(host) or query.get("host", "") or "localhost",
                port or query.get("port", "") or "5432",
                unquote(parts.path.lstrip("/"))
                or query.get("dbname", "")
                or "the default database",
            )
        except ValueError:
            return cls("an unreadable address", "", "")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def unavailable(error: BaseException, address: Address) -> StorageUnavailable:
    """The error to raise for one that means the database could not do the work."""
    match error:
        case StorageUnavailable():
            return error
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            what = f"PostgreSQL at {address} refuses the login: check user and password in the DSN"
        case asyncpg.InvalidCatalogNameError():
            what = f"there is no such database at {address}: create it, or correct the DSN"
        case asyncpg.TooManyConnectionsError():
            what = (
                f"PostgreSQL at {address} has no connection left:"
                " raise max_connections or lower the pool sizes"
            )
        case asyncpg.InsufficientPrivilegeError():
            kind = needed_for(getattr(error, "query", None))
            kinds = kind.value if kind is not None else "worker|client|inspector"
            return NotGranted(
                f"the login may not do this at {address} ({error}):"
                f" 'outlast grants ROLE --as {kinds}' prints what it needs"
            )
        case TimeoutError() | OSError():
            detail = str(error) or type(error).__name__
            what = f"PostgreSQL at {address} cannot be reached ({detail}): is it running there?"
        case _:
            what = f"PostgreSQL at {address} failed: {type(error).__name__}: {error}"
    return StorageUnavailable(what)


def transient(error: BaseException) -> bool:
    """Whether a statement that failed may pass later just as it is: it met a lock."""
    return isinstance(
        error,
        (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError),
    )


def refused(error: BaseException) -> bool:
    """Whether a statement was refused for the rows it holds: nothing of it was written."""
    return isinstance(
        error,
        (
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.DataError,
            asyncpg.ProgramLimitExceededError,
            UnicodeError,
        ),
    ) or (isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError))
