"""The tree of errors that is drawn is the tree that is."""

import re

from engine.core import errors
from engine.core.errors import EngineError


def test_the_drawing_holds_every_error_below_its_parent() -> None:
    drawn: list[tuple[int, str]] = [
        (match.start(2), match[2])
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"([ │├└─]*)(\w+)(?:\s{2,}|$)", line)) and match[1]
    ]

    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for depth, name in drawn:
        while above and above[-1][0] >= depth:
            above.pop()
        parents[name] = above[-1][1] if above else ""
        above.append((depth, name))

    defined = {
        name: thing
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, EngineError)
    }
    assert set(parents) == set(defined)
    for name, parent in parents.items():
        assert not parent or issubclass(defined[name], defined[parent])
