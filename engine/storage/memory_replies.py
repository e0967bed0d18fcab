"""The tables ``replies`` and ``acks`` of the in-memory database: chunks, exits, acknowledgements.

Changed by ``memory_rows`` on behalf of owners, and by ``memory`` for those who take chunks.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from engine.core.envelope import AckChunk
from engine.core.ids import Snowflake
from engine.core.reply import ReplyKind
from engine.storage.protocol import NewReply, StoredReply, StreamPosition

_PAGE = 1000


class MemoryReplies:
    """Replies by request and sequence, and how far each stream was acknowledged."""

    def __init__(self) -> None:
        self._replies: dict[Snowflake, dict[int, StoredReply]] = {}
        self._exits: dict[Snowflake, StoredReply] = {}
        self._acked: dict[Snowflake, int] = {}

    def add(self, reply: NewReply) -> bool:
        """Store a reply that is not there yet; whether it became the request's exit."""
        # INVARIANT reply-once: the first exit stored is the exit; what comes later changes nothing.
        if reply.request_id in self._exits:
            return False
        stored = self._replies.setdefault(reply.request_id, {})
        if reply.sequence in stored:
            return False
        row = StoredReply(
            request_id=reply.request_id,
            sequence=reply.sequence,
            kind=reply.kind,
            payload=reply.payload,
        )
        stored[reply.sequence] = row
        if reply.kind is ReplyKind.CHUNK:
            return False
        self._exits[reply.request_id] = row
        return True

    def of(
        self, requests: Sequence[Snowflake], after: Mapping[Snowflake, int] | None = None
    ) -> list[StoredReply]:
        """By request and sequence; a page behind ``after`` of the requests that are in it."""
        seen = after or {}
        found: list[StoredReply] = []
        for request_id in sorted(set(requests)):
            stored = sorted(self._replies.get(request_id, {}).items())
            if request_id in seen:
                later = (reply for at, reply in stored if at > seen[request_id])
                found += islice(later, _PAGE)
            else:
                found += (reply for _, reply in stored)
        return found

    def exit(self, request_id: Snowflake) -> StoredReply | None:
        return self._exits.get(request_id)

    def position(self, request_id: Snowflake) -> StreamPosition:
        """How far a stream has come; one that has no chunks is at its start."""
        acked = self._acked.get(request_id, -1)
        return StreamPosition(
            next_sequence=max(acked, self._last_chunk(request_id)) + 1, acked=acked
        )

    def acknowledge(self, ack: AckChunk) -> None:
        """Delete the chunks up to it. Of chunks that were never stored nothing is acknowledged."""
        taken = min(ack.sequence, self._last_chunk(ack.request_id))
        if taken <= self._acked.get(ack.request_id, -1):
            return
        self._acked[ack.request_id] = taken
        stored = self._replies[ack.request_id]
        for sequence in [at for at in stored if at <= taken and _is_chunk(stored[at])]:
            del stored[sequence]

    def dead(self) -> Iterator[StoredReply]:
        """The exits that are defects, youngest request first."""
        ids = (id for id, exit in self._exits.items() if exit.kind is ReplyKind.DEFECT)
        return (self._exits[id] for id in sorted(ids, reverse=True))

    def take_back(self, request_id: Snowflake) -> bool:
        """Forget the request's exit if that is a defect; whether it was."""
        exit = self._exits.get(request_id)
        if exit is None or exit.kind is not ReplyKind.DEFECT:
            return False
        del self._exits[request_id]
        del self._replies[request_id][exit.sequence]
        return True

    def forget(self, request_id: Snowflake) -> None:
        """Forget all of a request's replies."""
        self._exits.pop(request_id, None)
        self._replies.pop(request_id, None)
        self._acked.pop(request_id, None)

    def reopen(self, request_id: Snowflake) -> None:
        """Forget the request's exit, whatever it was."""
        exit = self._exits.pop(request_id)
        del self._replies[request_id][exit.sequence]

    def _last_chunk(self, request_id: Snowflake) -> int:
        stored = self._replies.get(request_id, {})
        return max((at for at, reply in stored.items() if _is_chunk(reply)), default=-1)


def _is_chunk(reply: StoredReply) -> bool:
    return reply.kind is ReplyKind.CHUNK
