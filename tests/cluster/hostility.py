"""Settings that leave no room. What holds must hold under them too, only slower.

``pytest --hostile=one-shard,one-lane`` runs the behaviour suite under a combination; the option may
be given several times, ``--hostile=all`` is the sum of them and ``--hostile=`` stands for none.
Without it, some of it runs under two combinations.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from engine import Entity

VARIABLE = "HOSTILE_ENTITIES"
"""What the processes of a hostile cluster are told of their entities, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostility:
    """Settings of runners, and class attributes of the entities that they serve."""

    name: str = ""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    entities: Mapping[str, float] = field(default_factory=dict[str, float])

    def __or__(self, other: "Hostility") -> "Hostility":
        return Hostility(
            name=f"{self.name},{other.name}".strip(","),
            settings={**self.settings, **other.settings},
            entities={**self.entities, **other.entities},
        )

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of the cluster's processes."""
        return {VARIABLE: json.dumps(dict(self.entities))}


HOSTILITIES = {
    each.name: each
    for each in (
        Hostility(name="one-shard", settings={"shards_per_group": 1}),
        Hostility(name="one-lane", settings={"lanes": 1}),
        Hostility(name="mailbox-of-one", entities={"mailbox_capacity": 1}),
        Hostility(name="two-residents", settings={"max_resident": 2, "max_resident_executions": 2}),
        Hostility(name="no-notifications", settings={"notifications": False}),
        Hostility(name="evicted-at-once", settings={"suspend_after": 0}, entities={"max_idle": 0}),
    )
}


def combination(text: str) -> Hostility:
    """The sum of those named, ``all`` of them or, of an empty text, none."""
    names = list(HOSTILITIES) if text == "all" else [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in HOSTILITIES]
    if unknown:
        raise ValueError(f"no such hostility: {unknown}; there are {[*HOSTILITIES, 'all']}")
    summed = Hostility()
    for name in names:
        summed |= HOSTILITIES[name]
    return Hostility(name=text, settings=summed.settings, entities=summed.entities)


def harden(entities: Iterable[type[Entity]], told: str) -> None:
    """Give entity classes the attributes that a cluster's processes were told of."""
    attributes: dict[str, float] = json.loads(told)
    for name, value in attributes.items():
        for entity in entities:
            setattr(entity, name, timedelta(seconds=value) if name == "max_idle" else value)
