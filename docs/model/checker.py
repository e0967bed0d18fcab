"""An explicit-state model checker: every state that a model can reach, breadth first.

A model is its first state, its actions and what must hold. What is found is the shortest way there.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Generic[S]):
    """``steps`` gives the states that may follow one, each with the name of the action.
    ``broken`` names what does not hold in a state, or gives None. ``finished``: from every state
    one of these must stay within reach. ``alike`` is the same for states that differ by names
    alone, of which one is looked at."""

    first: S
    steps: Callable[[S], Iterable[tuple[str, S]]]
    broken: Callable[[S], str | None]
    finished: Callable[[S], bool]
    alike: Callable[[S], Hashable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What does not hold, and the actions that lead there."""

    what: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {n}. {step}" for n, step in enumerate(self.trace, 1))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``states``: how many were looked at, one of each kind unless something was found."""

    states: int
    finding: Finding | None


def check(model: Model[S]) -> Verdict:
    """Look at every state; at the first that is broken, stop."""
    known = {model.alike(model.first): model.first}
    came_from: dict[S, tuple[S, str] | None] = {model.first: None}
    before: dict[S, list[S]] = {}
    ends: list[S] = []
    todo = deque([model.first])
    while todo:
        state = todo.popleft()
        if what := model.broken(state):
            finding = Finding(what=what, trace=_trace(came_from, state))
            return Verdict(states=len(came_from), finding=finding)
        if model.finished(state):
            ends.append(state)
        for action, following in model.steps(state):
            seen = known.setdefault(model.alike(following), following)
            before.setdefault(seen, []).append(state)
            if seen not in came_from:
                came_from[seen] = (state, action)
                todo.append(seen)
    stuck = next(_cut_off(came_from, before, ends), None)
    if stuck is None:
        return Verdict(states=len(came_from), finding=None)
    finding = Finding(what="it can never finish from here", trace=_trace(came_from, stuck))
    return Verdict(states=len(came_from), finding=finding)


def _cut_off(states: Iterable[S], before: dict[S, list[S]], ends: Iterable[S]) -> Iterator[S]:
    """The states from which no end can be reached, in the order they were found."""
    alive, todo = set(ends), deque(ends)
    while todo:
        for state in before.get(todo.popleft(), ()):
            if state not in alive:
                alive.add(state)
                todo.append(state)
    return (state for state in states if state not in alive)


def _trace(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    steps: list[str] = []
    while (link := came_from[state]) is not None:
        state, action = link
        steps.append(action)
    return tuple(reversed(steps))
