"""What a command works with: the settings it was given, the storage behind them, its output."""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import Output

if TYPE_CHECKING:
    from engine.node import Node
    from engine.settings import Settings
    from engine.storage.postgres import PostgresStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of one command. ``dsn`` and ``schema`` are those of the options, else None."""

    dsn: str | None
    schema: str | None
    output: Output

    def settings(self, **overrides: object) -> "Settings":
        """The settings of options and variables; ``ConfigurationError`` where they cannot work."""
        from engine.settings import Settings

        if "OUTLAST_CODEC" in os.environ and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # it may name a module here, as APP may
        given = {"dsn": self.dsn, "schema": self.schema, **overrides}
        return Settings(**{name: value for name, value in given.items() if value is not None})

    def export(self) -> None:
        """Make the options this process's variables: for an APP that makes its own settings."""
        for name, value in (("OUTLAST_DSN", self.dsn), ("OUTLAST_SCHEMA", self.schema)):
            if value is not None:
                os.environ[name] = value

    def silent_before(self, storage: "PostgresStorage") -> datetime:
        """A runner without a later sign of life may be dead."""
        return database_now(storage) - self.settings().time_to_live

    @asynccontextmanager
    async def storage(self) -> AsyncGenerator["PostgresStorage"]:
        """The storage, checked and open; reading it needs SELECT only."""
        from engine.storage.sealed import sealed

        storage = self.unchecked_storage()
        async with storage:
            yield sealed(storage, self.settings().codecs())

    def unchecked_storage(self) -> "PostgresStorage":
        """The storage before anything is asked of the server."""
        from engine.storage.postgres import PostgresStorage

        settings = self.settings()
        return PostgresStorage(
            settings.database(),
            schema=settings.schema,
            pool_dsn=settings.pool_dsn,
            notifications=False,
            statement_timeout=settings.statement_timeout,
            connect_timeout=settings.connect_timeout,
        )

    @asynccontextmanager
    async def node(self, *, notifications: bool = True) -> AsyncGenerator["Node"]:
        """A place in the cluster to write from, or to wait at: without notifications, waiting for
        a reply needs SELECT only."""
        from engine.node import Node

        log = logging.getLogger("engine")
        level = log.level
        if notifications:  # whoever only sends need not hear how its doorbell fares
            log.setLevel(logging.ERROR)
        try:
            async with Node(self.settings(notifications=notifications)) as node:
                yield node
        finally:
            log.setLevel(level)


def database_now(storage: "PostgresStorage") -> datetime:
    """The database's time, which stored times are compared with."""
    return storage.clock.now()
