"""What went wrong with the database, as the errors the engine raises.

From every module that talks to PostgreSQL. The address is host, port and database, never more of a
DSN: it ends up in messages and logs.
"""

import os
import ssl
from dataclasses import dataclass
from typing import NoReturn, Self
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from engine.core.errors import ConfigurationError, EngineError, NotGranted, StorageUnavailable
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
            # A password with one of /?# in it ends up behind what is taken for the host.
            behind = f"{parts.path}{parts.query}{parts.fragment}"
            if parts.scheme not in {"postgresql", "postgres"} or "@" in behind:
                raise ValueError
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
        return f"{self.host}:{self.port}/{self.database}" if self.port else self.host


def unconnected(error: Exception, dsn: str) -> NoReturn:
    """Raise what to say of an error that kept a DSN from being connected to. Never in the words of
    the driver where it reads the DSN: those may quote the password."""
    told = _of_connecting(error, dsn)
    raise told from None if isinstance(told, ConfigurationError) else error


def _of_connecting(error: Exception, dsn: str) -> EngineError:
    if isinstance(error, EngineError):
        return error
    if isinstance(error, asyncpg.ClientConfigurationError) and str(error).startswith(_TLS_TOLD):
        return ConfigurationError(f"the DSN's TLS settings cannot work: {error}")
    if isinstance(error, OSError) and (lacking := _unreadable_files(dsn)):
        return StorageUnavailable(
            f"the DSN's TLS settings name files that cannot be read here: {', '.join(lacking)}"
        )
    if isinstance(error, (asyncpg.ClientConfigurationError, ValueError)) and not isinstance(
        error, OSError
    ):
        return ConfigurationError(
            "the DSN cannot be read: it must look like postgresql://user@host:5432/database"
        )
    return unavailable(error, Address.of(dsn))


_TLS_TOLD = ("root certificate file", "`sslmode`", "`sslnegotiation`", "direct TLS")
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def _unreadable_files(dsn: str) -> list[str]:
    """Those that the DSN, or libpq's variables, name for TLS."""
    try:
        given = {name: each[-1] for name, each in parse_qs(urlsplit(dsn).query).items()}
    except ValueError:
        return []
    files = {name: given.get(name) or os.environ.get(f"PG{name.upper()}") for name in _TLS_FILES}
    return [
        f"{name}={file}" for name, file in files.items() if file and not os.access(file, os.R_OK)
    ]


def unavailable(error: BaseException, address: Address) -> StorageUnavailable:
    """The error to raise for one that means the database could not do the work."""
    match error:
        case StorageUnavailable():
            return error
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            what = (
                f"PostgreSQL at {address} refuses the login ({error}):"
                " check user, password and TLS settings in the DSN"
            )
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
        case ssl.SSLError():
            detail = getattr(error, "verify_message", "") or error.reason or str(error)
            what = (
                f"PostgreSQL at {address} and this process do not agree on TLS ({detail}): check"
                " sslmode, sslrootcert, sslcert and sslkey in the DSN, and the server's certificate"
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
