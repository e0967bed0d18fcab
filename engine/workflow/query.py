"""A look into an execution: answered from its body in memory, or from one that is replayed for it.

From ``workflow.host``, which gets queries by the post; nothing of them is stored. A start or a
resolution that comes by the post is a question too: whether it would fit, if it were stored.
"""

import json
from dataclasses import dataclass
from typing import Any

from engine.cluster.answering import Answers
from engine.core.errors import ErrorDetails, InvalidPayload, NotRegistered
from engine.core.reply import Exit, Failure, Success
from engine.storage.protocol import LoadedExecution
from engine.workflow.body import Body
from engine.workflow.definition import Workflow, WorkflowDefinition
from engine.workflow.handlers import HandlerKind
from engine.workflow.replay import replayed
from engine.workflow.tags import deferred_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Somebody asks."""

    name: str
    payload: bytes
    answers: Answers

    def put_to(self, definition: WorkflowDefinition, body: Body) -> Exit:
        """What the body, drained, has to say."""
        handler = definition.handlers.get(self.name)
        try:
            if handler is None or handler.kind is not HandlerKind.QUERY:
                raise NotRegistered(
                    f"{definition.name} has no query named {self.name!r} in this version"
                )
            arguments, named = handler.signature.decode(self.payload)
            answer = body.ask(handler, arguments, named)
            return Success(handler.signature.result.encode(answer))
        except BaseException as error:  # noqa: BLE001 -- it is the answer
            return Failure(ErrorDetails.of(error))

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


def judge(definition: WorkflowDefinition, tag: str, payload: bytes) -> Exit:
    """By what a start or a resolution would not fit, in words; null when it would."""
    deferred, misfit = deferred_of(tag), None
    try:
        if deferred is None:
            definition.request.decode(payload)
        elif deferred[0] not in definition.deferreds:
            known = ", ".join(sorted(definition.deferreds)) or "none"
            misfit = (
                f"{definition.name} has no deferred named {deferred[0]!r} in this version; it has"
                f" {known}"
            )
        elif deferred[1]:
            definition.deferreds[deferred[0]].codec.decode(payload)
    except InvalidPayload as error:
        misfit = str(error)
    except Exception as error:  # noqa: BLE001 -- such as a deferred without a type
        return Failure(ErrorDetails.of(error))
    return Success(json.dumps(misfit).encode())
