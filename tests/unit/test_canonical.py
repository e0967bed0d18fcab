"""Equal values have equal bytes, whatever order their sets have in this process."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from engine.core.codec import Signature, ValueCodec

PROGRAM = """
from pydantic import BaseModel
from engine.core.codec import Signature, ValueCodec

class Leaf(BaseModel):
    tags: frozenset[str]

class Tree(BaseModel):
    name: str
    leaves: list[Leaf]
    by_name: dict[str, set[str]]
    pair: tuple[set[str], int]
    maybe: set[str] | None = None
    children: "list[Tree]" = []

def call(self, names: set[str], n: int = 1) -> None: ...

words = set("some words that hash in another order in each process".split())
tree = Tree(name="t", leaves=[Leaf(tags=frozenset(words))], by_name={"x": words},
            pair=(words, 3), maybe=words)
tree = Tree(name="root", leaves=[], by_name={}, pair=(set(), 1), children=[tree])
payload = ValueCodec(Tree, what="it").encode(tree)
assert ValueCodec(Tree, what="it").decode(payload) == tree
print(payload, Signature(call, what="call").encode((words,), {}))
"""


def test_sets_encode_alike_in_processes_that_hash_differently() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert "some" in printed.pop()


def test_lists_keep_their_order_also_beside_sets() -> None:
    class Both(BaseModel):
        ordered: list[int]
        either: list[int] | set[int]
        bag: set[int]

    codec: ValueCodec[Both] = ValueCodec(Both, what="it")
    payload = codec.encode(Both(ordered=[3, 1, 2], either=[9, 8], bag={2, 1}))
    assert payload == b'{"ordered":[3,1,2],"either":[9,8],"bag":[1,2]}'


@pytest.mark.parametrize("value", ["ä", "\u2028", "😀", 1e300, 12345678901234567890])
def test_what_is_in_a_set_comes_back_as_it_was(value: object) -> None:
    codec: ValueCodec[set[object]] = ValueCodec(set[type(value)], what="it")  # type: ignore[misc]
    assert codec.decode(codec.encode({value})) == {value}


def test_a_signature_without_sets_pays_nothing() -> None:
    def call(self: object, names: list[str]) -> None: ...

    assert Signature(call, what="call")._sort is None
