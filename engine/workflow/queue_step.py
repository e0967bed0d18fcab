"""An item that a workflow's body submits to a queue, and whose result it waits for (a ``Call``)."""

from collections.abc import Callable
from datetime import datetime

from engine.cluster.queue import QueueDefinition, Terms
from engine.core.envelope import ReplyTo
from engine.core.errors import ErrorDetails
from engine.core.ids import Snowflake
from engine.core.journal import Outcome
from engine.storage.protocol import SaveRequest
from engine.workflow.step import Step, step_error


class QueueStep:
    """One item, as a step."""

    __slots__ = ("deliver_at", "id", "queue", "terms")
    told = False

    def __init__(
        self, queue: QueueDefinition, terms: Terms, id: str | None, deliver_at: datetime | None
    ) -> None:
        self.queue: QueueDefinition = queue
        self.terms: Terms = terms
        self.id: str | None = id
        self.deliver_at: datetime | None = deliver_at

    @property
    def name(self) -> str:
        return self.queue.name

    @property
    def group(self) -> str:
        return self.queue.group

    @property
    def shared(self) -> bool:
        return self.id is not None

    @property
    def waits(self) -> str:
        return f"an item of queue {self.queue.name} ('outlast queues show {self.queue.name}')"

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo,
        trace: str | None,
    ) -> SaveRequest:
        envelope = self.queue.request(
            request_id,
            shards_in=shards_in,
            payload=payload,
            terms=self.terms,
            id=self.id,
            deliver_at=self.deliver_at,
            reply_to=reply_to,
            trace=trace,
        )
        return SaveRequest(envelope=envelope)

    def decode(self, value: bytes) -> object:
        return self.queue.signature.result.decode(value)

    def error(self, step: Step, outcome: Outcome, details: ErrorDetails) -> BaseException:
        return step_error(step, outcome, details)
