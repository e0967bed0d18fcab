"""Reads the states of entities that come into memory, many at once.

From ``cluster.instance``; each is read after its shard was acquired, so nobody else can write it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from engine.core.retry import again_in
from engine.core.seal import unreadable
from engine.storage.entities import StoredState
from engine.storage.protocol import Storage

log: logging.Logger = logging.getLogger(__name__)
_READ = 500

Loaded = Callable[[StoredState | None], None]


class StateLoader:
    """One read is in flight at most; what is asked for meanwhile is the next one's."""

    def __init__(
        self,
        *,
        storage: Storage,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._storage = storage
        self._spawn = spawn
        self._wanted: list[tuple[tuple[str, str], Loaded]] = []
        self._reading = False

    def load(self, entity_type: str, entity_id: str, loaded: Loaded) -> None:
        """Call back with what is stored, None when it was never saved."""
        self._wanted.append(((entity_type, entity_id), loaded))
        if not self._reading:
            self._reading = True
            self._spawn(self._read())

    async def _read(self) -> None:
        failures = 0
        try:
            while self._wanted:
                batch, self._wanted = self._wanted[:_READ], self._wanted[_READ:]
                try:
                    states = await self._storage.states(sorted({key for key, _ in batch}))
                    failures = 0
                except Exception as error:  # noqa: BLE001 -- who is not loaded never goes on
                    failures += 1
                    if failures == 1:
                        log.warning("cannot load states, trying again", extra={"error": str(error)})
                    self._wanted = batch + self._wanted
                    await asyncio.sleep(again_in(failures))
                    continue
                for key, loaded in batch:
                    state = states.get(key)
                    if state is not None and (told := unreadable(state.payload)) is not None:
                        # Its messages wait for an owner that has the key.
                        log.error(
                            "an entity cannot begin here",
                            extra={"entity_type": key[0], "entity_id": key[1], "why": told},
                        )
                        continue
                    try:
                        loaded(state)
                    except Exception:
                        log.exception("an entity cannot begin here", extra={"entity_id": key[1]})
        finally:
            self._reading = False
