"""Volatile messages of one process: what it sends, what it is answered, and by whom.

Made by ``engine.node``; its requests come from ``cluster.sender``. Composes ``cluster.volatile``
with what brings its messages out and in.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Self

from engine.cluster.lookout import Lookout
from engine.cluster.postbox import Postbox
from engine.cluster.postman import Postman
from engine.cluster.replies import ReplyBoard
from engine.cluster.volatile import Volatile
from engine.storage.protocol import Storage


class Mail:
    """``patience`` is how long a request waits for its shard to have an owner, ``ttl`` how long an
    owner may be without a sign of life."""

    def __init__(
        self,
        *,
        storage: Storage,
        replies: ReplyBoard,
        patience: timedelta,
        poll: Callable[[], timedelta],
        ttl: timedelta,
    ) -> None:
        self.postbox: Postbox = Postbox(storage=storage)
        self.volatile: Volatile = Volatile(
            storage=storage, replies=replies, postbox=self.postbox, patience=patience
        )
        self._postman = Postman(storage=storage, receive=self.volatile.receive)
        self._lookout = Lookout(
            storage=storage, volatile=self.volatile, postman=self._postman, poll=poll, ttl=ttl
        )
        self.volatile.watched = self._lookout.begin
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.postbox)
            await stack.enter_async_context(self._postman)
            await stack.enter_async_context(self._lookout)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def rung(self) -> None:
        """The doorbell says that something has come."""
        self._postman.rung()

    def restored(self) -> None:
        """The doorbell was out: something may have come meanwhile."""
        if self.volatile.under_way:
            self._postman.rung()

    def topology_rung(self) -> None:
        """Runners came or went, or shards were released."""
        self._lookout.topology_rung()
