"""A first message to an execution that is started by it, if it is not there: ``client.with_start``.

Both are stored in one transaction, by ``by_name.Opening``.
"""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from engine import by_name
from engine.client_execution import ClientExecution
from engine.core.errors import ConfigurationError
from engine.core.ids import Snowflake
from engine.workflow.definition import WorkflowDefinition
from engine.workflow.execution import Execution

if TYPE_CHECKING:
    from engine.node import Node

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class WithStart(Generic[T]):
    """Made by ``client.with_start``, which asks nothing of the database."""

    def __init__(
        self,
        node: "Node",
        definition: WorkflowDefinition,
        opening: by_name.Opening,
        message_key: str | None,
    ) -> None:
        self._node = node
        self._definition = definition
        self._opening = opening
        self._message_key = message_key

    async def signal(
        self, handler: Callable[Concatenate[Any, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Execution[T]:
        """Start the execution, unless it is there, and signal it; returns once both is durable."""
        message = self._execution().signal_message(handler, args, kwargs)
        return self._execution(await self._opening.signal(self._node, message))

    @overload
    async def update(
        self,
        handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def update(
        self, handler: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def update(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Start the execution, unless it is there, update it, and wait for the answer. The
        execution stays when the update is refused. Not with ``connection=``: nobody would answer
        before your transaction commits."""
        connection: object = self._opening.connection
        if connection is not None:
            raise ConfigurationError(
                "an update is answered after your transaction has committed, so it cannot be"
                " awaited within: signal with connection=, or update without"
            )
        execution = self._execution()
        message = execution.update_message(handler, args, kwargs)
        return execution.answer_of(handler, await self._opening.ask(self._node, message))

    def _execution(self, request_id: Snowflake | None = None) -> ClientExecution[T]:
        id = self._opening.start.id
        return ClientExecution(self._node, self._definition, id, request_id, key=self._message_key)
