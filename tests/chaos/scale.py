"""What is sent in the test of scale: the same in every process that computes it from one seed."""

import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESSES = 3
SENDERS = 48
"""In each process."""
CORRESPONDENTS = 4
"""So many senders write to one entity."""
ACKNOWLEDGED = struct.Struct("<HI")
"""What a sender notes in its process's file for each message: its number and the message's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many ``messages`` each of the ``entities`` gets, and how many runners are killed.

    ``pace`` is how long a sender pauses after each, in seconds: a few messages would all be sent
    before the first process is killed.
    """

    name: str
    entities: int
    messages: int
    kills: int
    limit: float
    pace: float = 0

    @property
    def total(self) -> int:
        return self.entities * self.messages


SCALES = {
    each.name: each
    for each in (
        Scale(name="small", entities=300, messages=20, kills=3, limit=120, pace=0.1),
        Scale(name="medium", entities=1000, messages=100, kills=9, limit=600),
        Scale(name="full", entities=10_000, messages=100, kills=30, limit=5400),
    )
}


@dataclass(frozen=True, slots=True)
class Message:
    """One change: the ``number``-th that this sender makes to the entity, from 1, and the one at
    this ``place`` of all that it sends, from 0."""

    sender: int
    place: int
    entity: int
    number: int
    amount: int


def plan(scale: Scale, seed: int) -> list[list[Message]]:
    """The messages of each sender, in the order in which it sends them."""
    chance = random.Random(seed)
    targets: list[list[int]] = [[] for _ in range(PROCESSES * SENDERS)]
    for entity in range(scale.entities):
        writers = chance.sample(targets, CORRESPONDENTS)
        for _ in range(scale.messages):
            chance.choice(writers).append(entity)
    return [list(_messages(sender, of, chance)) for sender, of in enumerate(targets)]


def _messages(sender: int, targets: list[int], chance: random.Random) -> Iterator[Message]:
    chance.shuffle(targets)
    sent: Counter[int] = Counter()
    for place, entity in enumerate(targets):
        sent[entity] += 1
        yield Message(sender, place, entity, sent[entity], chance.randrange(1, 1000))


def senders_of(process: int) -> range:
    """The senders that live in one process."""
    return range(process * SENDERS, (process + 1) * SENDERS)


def acknowledged(paths: Sequence[Path]) -> set[tuple[int, int]]:
    """Sender and place in its plan of each message that these files say was acknowledged."""
    return {
        (sender, place)
        for path in paths
        for sender, place in ACKNOWLEDGED.iter_unpack(path.read_bytes())
    }
