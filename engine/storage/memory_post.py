"""The table ``post`` of the in-memory database: volatile messages, until they are fetched.

``memory`` sends and fetches; nothing of it survives a stop of the database.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from engine.core.clock import Clock
from engine.core.ids import ShardId
from engine.storage.memory_shard import MemoryShard
from engine.storage.protocol import Post, Posted, Received


class MemoryPost:
    """Messages by the channel they are for, in the order they were sent."""

    def __init__(self, clock: Clock, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._clock = clock
        self._shards = shards
        self._boxes: dict[UUID, list[tuple[datetime, Received]]] = {}

    def send(self, messages: Sequence[Post]) -> list[Posted]:
        return [self._send(message) for message in messages]

    def take(self, channel: UUID) -> list[Received]:
        return [message for _, message in self._boxes.pop(channel, [])]

    def waits(self, channel: UUID) -> bool:
        return channel in self._boxes

    def sweep(self, older_than: timedelta) -> int:
        """Throw away what is that old; how many there were."""
        until, count = self._clock.now() - older_than, 0
        for channel, box in list(self._boxes.items()):
            kept = [(sent_at, message) for sent_at, message in box if sent_at > until]
            count += len(box) - len(kept)
            if kept:
                self._boxes[channel] = kept
            else:
                del self._boxes[channel]
        return count

    def clear(self) -> None:
        self._boxes.clear()

    def _send(self, message: Post) -> Posted:
        if isinstance(message.to, UUID):
            channel, shard, posted = message.to, None, Posted(runner=message.to)
        else:
            owned = self._shards.get(message.to)
            if owned is None or owned.runner is None:
                return Posted(runner=None)
            channel, shard = owned.runner, message.to
            posted = Posted(runner=channel, epoch=owned.epoch)
        received = Received(
            kind=message.kind,
            shard=shard,
            request_id=message.request_id,
            body=message.body,
            epoch=posted.epoch,
        )
        self._boxes.setdefault(channel, []).append((self._clock.now(), received))
        return posted
