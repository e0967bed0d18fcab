"""Dead letters of the in-memory database: requests whose exit is a defect.

Read by ``memory_rows``, which can deliver them again.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

from engine.core.envelope import EnvelopeRequest
from engine.core.ids import Snowflake
from engine.storage.entities import DeadFilter, DeadLetter
from engine.storage.protocol import StoredReply


def dead_letters(
    exits: Iterable[StoredReply],
    envelopes: Mapping[Snowflake, EnvelopeRequest],
    filter: DeadFilter,
    limit: int,
) -> list[DeadLetter]:
    """A page of what these exits ended, in their order, as far as it passes the filter."""
    letters = (
        _letter(envelopes[exit.request_id], exit) for exit in exits if exit.request_id in envelopes
    )
    return list(islice((each for each in letters if _passes(each, filter)), limit))


def _letter(envelope: EnvelopeRequest, exit: StoredReply) -> DeadLetter:
    return DeadLetter(
        request_id=envelope.request_id,
        shard=envelope.address.shard,
        entity_type=envelope.address.entity_type,
        entity_id=envelope.address.entity_id,
        tag=envelope.tag,
        payload=envelope.payload,
        error=exit.payload,
    )


def _passes(letter: DeadLetter, filter: DeadFilter) -> bool:
    return (
        filter.entity_type in (None, letter.entity_type)
        and filter.entity_id in (None, letter.entity_id)
        and filter.request_id in (None, letter.request_id)
        and (filter.after is None or letter.request_id < filter.after)
    )
