"""``ReplyReceiver``: what a sender of a message holds in its hands.

Made by ``cluster.sharding``; waits at the process's reply board.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from typing import Any

from engine.cluster.replies import KeptReplies, ReplyBoard
from engine.core.ids import Snowflake
from engine.core.reply import Exit, Reply, ReplyChunk


class ReplyReceiver:
    """The answer of a request, to be awaited: ``exit = await receiver``.

    Of a stream, ``async for reply in receiver.replies()`` gives the chunks as well.
    """

    __slots__ = ("_board", "_kept", "request_id")

    def __init__(
        self, board: ReplyBoard, request_id: Snowflake, kept: KeptReplies | None = None
    ) -> None:
        self._board = board
        self._kept = kept
        self.request_id: Snowflake = request_id

    def __await__(self) -> Generator[Any, None, Exit]:
        if self._kept is not None:
            return asyncio.shield(self._kept.exit).__await__()
        return self._board.wait(self.request_id).__await__()

    async def replies(self, *, first: int | None = None) -> AsyncGenerator[Reply, None]:
        """The chunks from sequence ``first`` on (without it, those that are not acknowledged) and,
        last, the exit. The stream goes on as far as ``Sharding.ack_chunk`` says that they were
        taken. Of a volatile stream each chunk is given once, whatever ``first`` is."""
        with ExitStack() as stack:
            if self._kept is not None:
                reader = self._kept.reader
            else:
                reader = stack.enter_context(self._board.stream(self.request_id, first=first))
            while isinstance(reply := await reader.take(), ReplyChunk):
                yield reply
            yield reply
