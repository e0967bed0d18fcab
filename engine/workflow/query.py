"""A look into an execution: answered from its body in memory, or from one that is replayed for it.

From ``workflow.host``, which gets queries by the post; nothing of them is stored. A start or a
resolution that comes by the post asks whether it would fit, and does nothing else.
"""

from dataclasses import dataclass
from typing import Any

from engine.cluster.answering import Answers
from engine.core.errors import ErrorDetails, InvalidPayload, NotFound, NotRegistered
from engine.core.reply import Exit, Failure, Success
from engine.storage.protocol import LoadedExecution
from engine.workflow.body import Body
from engine.workflow.codes import Code
from engine.workflow.definition import Workflow, WorkflowDefinition
from engine.workflow.handlers import HandlerKind
from engine.workflow.replay import replayed
from engine.workflow.tags import deferred_of, query_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Somebody asks."""

    tag: str
    payload: bytes
    answers: Answers

    def put_to(self, definition: WorkflowDefinition, body: Body) -> Exit:
        """What the body, drained, has to say."""
        deferred = deferred_of(self.tag)
        try:
            if deferred is not None:
                return self._fits(definition, *deferred)
            return self._answer(definition, body, query_of(self.tag))
        except BaseException as error:  # noqa: BLE001 -- it is the answer
            return Failure(ErrorDetails.of(error))

    def _answer(self, definition: WorkflowDefinition, body: Body, name: str | None) -> Exit:
        if name is None:
            raise InvalidPayload(f"a workflow answers queries, not {self.tag!r}")
        handler = definition.handlers.get(name)
        if handler is None or handler.kind is not HandlerKind.QUERY:
            raise NotRegistered(f"{definition.name} has no query named {name!r} in this version")
        arguments, named = handler.signature.decode(self.payload)
        answer = body.ask(handler, arguments, named)
        return Success(handler.signature.result.encode(answer))

    def _fits(self, definition: WorkflowDefinition, name: str, resolved: bool) -> Exit:
        deferred = definition.deferreds.get(name)
        if deferred is None:
            known = ", ".join(sorted(definition.deferreds)) or "none"
            raise NotFound(
                f"{definition.name} has no deferred named {name!r} in this version; it has {known}"
            )
        if resolved:
            deferred.codec.decode(self.payload)
        return Success(b"null")

    def check_request(self, code: Code | None) -> None:
        """Say whether an execution that is started with this payload could begin."""
        if code is None:
            self.fail(NotRegistered("it is not registered here"))
            return
        try:
            code[0].request.decode(self.payload)
        except InvalidPayload as error:
            self.fail(error)
        else:
            self.answers.end(Success(b"null"))

    def fail(self, error: Exception) -> None:
        self.answers.end(Failure(ErrorDetails.of(error)))


def look_back(
    definition: WorkflowDefinition,
    prototype: Workflow[Any, Any],
    loaded: LoadedExecution,
    query: Query,
) -> None:
    """Answer from an execution as its journal leaves it. Call from the host's loop, outside of any
    task."""
    try:
        with replayed(definition, prototype, loaded) as body:
            exit = query.put_to(definition, body)
    except Exception as error:  # noqa: BLE001 -- such as a journal that fits the code no more
        query.fail(error)
    else:
        query.answers.end(exit)
