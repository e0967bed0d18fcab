"""Stubs: other functions for the steps of a workflow, in one ``TestCluster`` and nowhere else."""

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from engine.core.errors import ConfigurationError
from engine.workflow.activity import StepDefinition, step_method, step_of
from engine.workflow.definition import Workflow

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Stub:
    """A step, and what does its work instead."""

    step: StepDefinition
    function: Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class StubbedStep(Generic[P, R]):
    """A step that is to be stubbed. Made by ``stub``."""

    step: StepDefinition

    @overload
    def by(self, instead: Callable[P, Awaitable[R]], /) -> Stub: ...
    @overload
    def by(self, instead: Callable[P, R], /) -> Stub: ...
    def by(self, instead: Callable[..., Any], /) -> Stub:
        """What does the work: a function, ``async`` or not, of the arguments that callers of the
        step pass (neither ``self`` nor a transaction), and of its result."""

        async def work(*args: Any, **kwargs: Any) -> Any:
            result = instead(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return Stub(self.step, work)


def stub(step: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> StubbedStep[P, R]:
    """Let another function do the work of a step, in the ``TestCluster`` it is given to:
    ``stub(Fulfil.charge).by(lambda cents: "paid")``.

    All else of the step stays: its name in the journal, its retries, its time-out. It takes two
    calls because so a type checker compares the function with the step.
    """
    definition = step_of(step)
    if definition is None:
        raise ConfigurationError(
            f"{step!r} is not a step: give the method of the class that is marked @activity or"
            " @transaction, as in stub(Fulfil.charge).by(fake)"
        )
    return StubbedStep(definition)


def stubbed(prototypes: Sequence[Any], stubs: Sequence[Stub]) -> list[Any]:
    """The prototypes with their stubs in place; ``ConfigurationError`` for a stub of none."""
    if not stubs:
        return list(prototypes)
    used: set[StepDefinition] = set()
    made = [_stubbed(each, stubs, used) for each in prototypes]
    for each in stubs:
        if each.step not in used:
            raise ConfigurationError(
                f"no workflow of this cluster has the step {each.step.function.__qualname__} that"
                " is to be stubbed; give the step of a class that is registered here"
            )
    return made


def _stubbed(prototype: Any, stubs: Sequence[Stub], used: set[StepDefinition]) -> Any:
    """The prototype, as one of a subclass made for it if any stub is for it."""
    cls = prototype.__class__
    if not isinstance(prototype, Workflow):
        return prototype
    members: dict[str, Any] = {}
    for attribute in dir(cls):
        found = step_of(getattr(cls, attribute, None))
        for each in stubs:
            if found is not None and found is each.step:
                members[attribute] = step_method(found.done_by(each.function))
                used.add(found)
    if not members:
        return cast("object", prototype)
    names = {"name": cls.name, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    subclass: Any = type(cls.__name__, (cls,), {**members, **names})
    made: Any = object.__new__(subclass)
    made.__dict__.update(vars(prototype))
    return made
