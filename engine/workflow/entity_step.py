"""A call of an entity from a workflow's body (a ``Call``)."""

from collections.abc import Callable

from engine.cluster.handle import EntityCall
from engine.core.envelope import ReplyTo
from engine.core.errors import ErrorDetails
from engine.core.ids import Snowflake
from engine.core.journal import Outcome
from engine.storage.protocol import SaveRequest
from engine.workflow.step import Step, step_error


class EntityStep:
    """One call on a handle, as a step."""

    __slots__ = ("call",)
    told = False

    def __init__(self, call: EntityCall) -> None:
        self.call: EntityCall = call

    @property
    def name(self) -> str:
        return self.call.name

    @property
    def group(self) -> str:
        return self.call.entity.shard_group

    @property
    def shared(self) -> bool:
        return self.call.options.key is not None or self.call.rpc.key is not None

    @property
    def waits(self) -> str:
        call = self.call
        return f"the reply of {call.entity.name}/{call.id} {call.rpc.name}"

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo,
        trace: str | None,
    ) -> SaveRequest:
        envelope = self.call.envelope(
            request_id, shards_in=shards_in, payload=payload, reply_to=reply_to, trace=trace
        )
        return SaveRequest(envelope=envelope)

    def decode(self, value: bytes) -> object:
        return self.call.rpc.signature.result.decode(value)

    def error(self, step: Step, outcome: Outcome, details: ErrorDetails) -> BaseException:
        return step_error(step, outcome, details)
