"""Requests whose keys may be held by somebody's open transaction: asked again until they are not.

From the ``outbox``, which saves all others meanwhile; each is answered there once it is stored.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Self

from engine.core.errors import StorageUnavailable
from engine.storage.protocol import Saved, SaveRequest

Pending = tuple[SaveRequest, "asyncio.Future[Saved]"]

_PAUSE = (0.05, 0.5)


class BlockedRequests:
    """One statement at a time, whatever the number of held keys. What is new goes first, together;
    what was found to be held is tried one by one, round after round, with a pause between rounds.

    ``save`` stores requests on a session of their own and gives back, by ``hold``, those that are
    held. ``holds`` says whether a request would only find what another here has found. One that was
    ``left`` by its caller is not asked for again.
    """

    def __init__(
        self,
        save: Callable[[list[Pending]], Awaitable[None]],
        *,
        left: Callable[[SaveRequest, "asyncio.Future[Saved]"], bool],
    ) -> None:
        self._save = save
        self._left = left
        self._new: deque[Sequence[Pending]] = deque()
        self._round: deque[Pending] = deque()
        self._held: list[Pending] = []
        self._keys: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="blocked requests")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Those that are held still are refused: their transactions may stay open for ever."""
        self._closing = True
        self._wake.set()
        await self._group.__aexit__(None, None, None)
        new = [each for batch in self._new for each in batch]
        for _, answer in (*new, *self._round, *self._held):
            if not answer.done():
                answer.set_exception(
                    StorageUnavailable("the client was closed; nobody knows whether it was stored")
                )

    def holds(self, request: SaveRequest) -> bool:
        return self._keys[request.envelope.key] > 0 if request.envelope.key is not None else False

    def put(self, requests: Sequence[Pending]) -> None:
        """Find out which of these are held, and store the others."""
        self._new.append(requests)
        self._wake.set()

    def hold(self, request: Pending) -> None:
        """This one is held."""
        self._held.append(request)
        key = request[0].envelope.key
        if key is not None:
            self._keys[key] += 1

    async def _run(self) -> None:
        pause = _PAUSE[0]
        while not self._closing:
            if self._new:
                wanted = [each for each in self._new.popleft() if not self._left(*each)]
                if wanted:
                    await self._save(wanted)
                pause = _PAUSE[0]
            elif self._round:
                await self._try(self._round.popleft())
            else:
                await self._rest(pause if self._held else None)
                pause = min(pause * 2, _PAUSE[1])
                if not self._new:
                    self._round.extend(self._held)
                    self._held.clear()

    async def _try(self, request: Pending) -> None:
        key = request[0].envelope.key
        if not self._left(*request):
            await self._save([request])
        if key is not None:
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]

    async def _rest(self, seconds: float | None) -> None:
        self._wake.clear()
        if not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
