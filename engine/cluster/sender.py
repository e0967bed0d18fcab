"""The one way of a message to an entity out of a process.

From clients, ``Sharding`` and entity clients; on through the process's ``outbox``, or past it if
it is volatile.
"""

from dataclasses import replace

from engine.cluster.call import current_trace
from engine.cluster.outbox import Outbox
from engine.cluster.volatile import Volatile
from engine.core.codec import same_json
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import PayloadConflict
from engine.storage.protocol import Saved, SaveOutcome, SaveRequest


class Sender:
    """Sends requests, with the trace context of whoever sends them unless they have another."""

    def __init__(self, *, outbox: Outbox, volatile: Volatile) -> None:
        self._outbox = outbox
        self._volatile = volatile

    async def send(self, envelope: EnvelopeRequest, *, wait: bool = False) -> Saved:
        """Store a request; returns after its commit. With a key that is taken, what was stored
        before; ``PayloadConflict`` when that has another payload. ``wait`` registers this process
        as a waiter for its reply.

        A volatile request is not stored; see ``Volatile.send``. With ``wait``, wait for its reply
        at the reply board before this is called."""
        if envelope.trace is None and (trace := current_trace()) is not None:
            envelope = replace(envelope, trace=trace)
        if not envelope.persisted:
            await self._volatile.send(envelope, wait=wait)
            return Saved(outcome=SaveOutcome.CREATED, request_id=envelope.request_id)
        saved = await self._outbox.save(SaveRequest(envelope=envelope, wait=wait))
        if saved.payload is not None and not same_json(saved.payload, envelope.payload):
            address = envelope.address
            raise PayloadConflict(
                f"the key of this message to {address} {envelope.tag} was used before with other"
                f" arguments ({envelope.key!r}); use another key, or send the same"
            )
        return saved
