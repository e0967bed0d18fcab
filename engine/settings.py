"""Everything that can be set, from arguments or ``OUTLAST_…`` variables, checked at once."""

import getpass
import logging
import os
import re
import socket
import warnings
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, Self, get_args

from pydantic import (
    Field,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.core.codec_names import checked_codecs, codecs_named
from engine.core.durations import EXAMPLES, duration_from
from engine.core.errors import ConfigurationError
from engine.core.seal import Codec, Codecs

log: logging.Logger = logging.getLogger(__name__)


def _author() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:255]


with warnings.catch_warnings():
    # "schema" is the right name, whatever BaseModel had
    warnings.simplefilter("ignore", UserWarning)

    class Settings(BaseSettings):
        """Settings of a client or runner; each is also the variable ``OUTLAST_<NAME>``.

        Durations are ``timedelta``; in variables such as ``1h30m``, seconds or ISO 8601. Errors
        name the variable and the fix.

        >>> Settings(dsn="postgresql://app:secret@localhost/shop")
        Settings(dsn='postgresql://app:***@localhost/shop', schema='engine')
        >>> Settings(lanes=0)
        Traceback (most recent call last):
        engine.core.errors.ConfigurationError: lanes (variable OUTLAST_LANES): Input should be ...
        """

        model_config = SettingsConfigDict(env_prefix="OUTLAST_", extra="forbid", frozen=True)

        dsn: str = ""
        """Where PostgreSQL is: ``postgresql://user:password@host:port/database``. A direct or
        session-pooled connection: a transaction pooler goes into ``pool_dsn``."""
        pool_dsn: str | None = None
        """Another way to the same database for everything but lanes and LISTEN, such as a
        transaction pooler."""
        schema: str = "engine"  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
        """The PostgreSQL schema the engine's tables are in."""
        groups: Annotated[tuple[str, ...], NoDecode] = ("default",)
        """The shard groups a runner serves; in the variable, separated by commas."""
        shards_per_group: int = Field(default=300, ge=1, le=10_000)
        """The size of a shard group when it is created; it never changes afterwards."""
        weight: float = Field(default=1.0, gt=0, le=1000)
        """This runner's share of the shards, relative to its peers'."""
        lanes: int = Field(default=2, ge=1, le=32)
        """How many connections a runner writes through; each holds the locks of its shards."""
        pool_size: int = Field(default=10, ge=1, le=1000)
        """The most connections for reads, starts and user transactions, opened as needed."""
        notifications: bool = True
        """Whether to use LISTEN/NOTIFY. Without it everything works, only slower."""
        poll_interval: timedelta = Field(default=timedelta(seconds=5), gt=timedelta(0))
        """How often a lane and a waiter read the database while notifications arrive."""
        poll_interval_degraded: timedelta = Field(
            default=timedelta(milliseconds=250), gt=timedelta(0)
        )
        """How often they do while notifications do not arrive."""
        heartbeat_interval: timedelta = Field(default=timedelta(seconds=2), gt=timedelta(0))
        time_to_live: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
        """How old a runner's heartbeat may be before its peers end its sessions."""
        block_limit: timedelta = Field(default=timedelta(seconds=60), gt=timedelta(0))
        """How long code may block the event loop before the runner gives its shards up."""
        suspend_after: timedelta = Field(default=timedelta(seconds=1), ge=timedelta(0))
        """How long an execution that only waits stays in memory; not at all if it is to sleep for
        longer than twice that, and nobody can call it meanwhile."""
        grace_period: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
        """How long running steps and handlers may go on when a runner stops."""
        handover_limit: timedelta = Field(default=timedelta(seconds=5), ge=timedelta(0))
        """How long they may go on when a shard moves to another runner."""
        max_resident: int = Field(default=10_000, ge=1)
        """How many entities a runner keeps in memory at once. Idle ones make room for others; when
        all are busy, further ones wait in the database."""
        max_resident_executions: int = Field(default=10_000, ge=1)
        """The same for executions."""
        max_deliveries: int = Field(default=10, ge=4, le=1000)
        """After so many failed deliveries (its process or entity was lost with it in hand) a
        message is a dead letter, an execution without progress blocked. The first three are counted
        against all that was in hand, so fewer than four would blame the innocent."""
        unregistered_timeout: timedelta = Field(default=timedelta(minutes=5), gt=timedelta(0))
        """How long a message waits at a runner for its entity type to be registered before its
        callers are told that it is not."""
        stream_window: int = Field(default=64, ge=1, le=100_000)
        """How many elements of a stream are stored at most before its consumer has taken them."""
        stream_abandoned_after: timedelta = Field(default=timedelta(hours=1), gt=timedelta(0))
        """A stream that nobody takes an element of for so long is ended."""
        volatile_patience: timedelta = Field(
            default=timedelta(seconds=5), ge=timedelta(0), le=timedelta(hours=1)
        )
        """How long a volatile message waits for a runner to own its entity's shard, as it does
        while the shard moves, before its sender is told that there is none."""
        payload_limit: int = Field(default=64 << 20, ge=1024, le=128 << 20)
        """How many bytes one encoded value may have: the arguments of a message or start, a result,
        an element of a stream, an entity's state. A larger one is ``InvalidPayload`` to whoever
        made it, and one of more than half of that is reported in the log."""
        retention: timedelta | None = Field(default=timedelta(days=7), ge=timedelta(0))
        """How long executions are kept that have succeeded, and runs that one which goes on has
        left behind; in the variable ``never`` prunes nothing. A workflow's own ``retention`` goes
        before. With an execution goes all that it was told and has sent, and its key is free.
        Requests to entities that nobody's execution has sent are kept as long."""
        retention_failed: timedelta | None = Field(default=timedelta(days=30), ge=timedelta(0))
        """The same for those that failed, or were interrupted or terminated, and dead letters."""
        prune_interval: timedelta = Field(default=timedelta(hours=1), gt=timedelta(0))
        """How often a runner deletes what is kept no longer."""
        codec: Annotated[tuple[SkipValidation[Codec], ...], NoDecode] = Field(
            default=(), repr=False
        )
        """What encodes user values on their way into the database, such as
        ``engine.encryption.AesGcm``: one ``Codec`` or several, of which the first writes and each
        reads what has its number. In the variable ``module:attribute``, separated by commas; the
        attribute is a codec, or is called for one. All that use one schema need the same."""
        author: str = Field(default_factory=_author, min_length=1, max_length=255)
        """Who pauses, interrupts, terminates, retries and forks: it is kept in the history of the
        execution. The user and host of the process, unless told otherwise."""
        health_port: int | None = Field(default=None, ge=0, le=65_535)
        """Where a runner says over HTTP how it fares, at ``/live`` and ``/ready``; 0: at any free
        port, which the log names."""
        health_host: str = Field(default="127.0.0.1", min_length=1)
        """The address of that port: for probes from other machines ``0.0.0.0`` or ``::``."""
        statement_timeout: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
        """After so long a statement of ours is given up. The same in all processes of a schema: a
        runner takes it that what others have begun to store is stored after that, or never."""
        connect_timeout: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))

        def __init__(self, **values: Any) -> None:
            _look_for_misspelt()
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigurationError(_explain(error)) from None

        @field_validator("groups", mode="before")
        @classmethod
        def _split(cls, value: object) -> object:
            if isinstance(value, str):
                return tuple(part.strip() for part in value.split(",") if part.strip())
            return value

        @field_validator("codec", mode="before")
        @classmethod
        def _load_codecs(cls, value: object) -> object:
            return codecs_named(value) if isinstance(value, str) else checked_codecs(value)

        @field_validator("*", mode="before")
        @classmethod
        def _seconds(cls, value: object, info: ValidationInfo) -> object:
            """A duration from a variable is text: a plain number is seconds."""
            field = cls.model_fields[info.field_name or ""]
            optional = get_args(field.annotation) == (timedelta, NoneType)
            if value == "never" and optional:
                return None
            if isinstance(value, str) and (field.annotation is timedelta or optional):
                with suppress(ValueError, OverflowError):
                    return timedelta(seconds=float(value))
                with suppress(ValueError, OverflowError):
                    return duration_from(value)
            return value

        @model_validator(mode="after")
        def _agree(self) -> Self:
            if self.time_to_live < self.heartbeat_interval * 3:
                raise ValueError("time_to_live must be at least three times heartbeat_interval")
            if not self.groups:
                raise ValueError("groups must name at least one shard group, such as 'default'")
            return self

        def database(self) -> str:
            """The DSN, or ``ConfigurationError`` when there is none that could work."""
            if not self.dsn:
                raise ConfigurationError(
                    "no database is named: set OUTLAST_DSN or pass --dsn or Settings(dsn=...), for"
                    " example postgresql://user:password@localhost:5432/app; for a try without a"
                    " server, run 'outlast dev'"
                )
            return self.dsn

        def codecs(self) -> Codecs:
            """What its processes read and write values with."""
            return Codecs(self.codec)

        def __repr__(self) -> str:
            return f"Settings(dsn={without_password(self.dsn)!r}, schema={self.schema!r})"

        __str__ = __repr__


def given(settings: Settings | None) -> Settings:
    """Those given, or those of the environment. ``ConfigurationError`` for a DSN in their place,
    which is not repeated: it may hold a password."""
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(
            f"settings are a Settings, not a {type(settings).__name__}: write Settings(dsn=...),"
            " or set OUTLAST_DSN"
        )
    return settings


def without_password(text: str) -> str:
    """A DSN, or a text with one in it, that may be shown. Of a password that was not quoted, up to
    the last "@" of the text."""
    hidden = re.sub(r"(://[^:@/?#\s]*):.*@", r"\1:***@", text, flags=re.DOTALL)
    return re.sub(r"\b((?:ssl)?password)=[^&\s]*", r"\1=***", hidden, flags=re.IGNORECASE)


def _explain(error: ValidationError) -> str:
    lines: list[str] = []
    for each in error.errors(include_url=False, include_input=False):
        field = str(each["loc"][0]) if each["loc"] else ""
        name = f"{field} (variable OUTLAST_{field.upper()})" if field else "settings"
        if each["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no such setting; remove it")
        elif each["type"] == "time_delta_parsing":
            never = ", or never" if field.startswith("retention") else ""
            lines.append(f"{name}: it is not a duration; write {EXAMPLES}{never}")
        else:
            lines.append(f"{name}: {each['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


_told: set[str] = set()


def _look_for_misspelt() -> None:
    """Say so, once, if a variable is nearly a setting's: it would be passed over in silence."""
    known = [field.upper() for field in Settings.model_fields]
    for variable in os.environ:
        name = variable.removeprefix("OUTLAST_")
        if name in known or name == variable or variable in _told:
            continue
        _told.add(variable)
        if nearest := get_close_matches(name, known, n=1, cutoff=0.8):
            log.warning("%s is no setting: did you mean OUTLAST_%s?", variable, nearest[0])
