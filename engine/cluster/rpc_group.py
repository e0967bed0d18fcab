"""The handlers of an entity class: its own, and those of the groups it is composed of.

A group is any class with ``@rpc`` methods that an entity inherits from, another entity or a plain
mixin. Read by ``cluster.entity`` when the class is registered or called.
"""

from engine.cluster.rpc import RpcDefinition, rpc_of
from engine.core.composed import composed


def rpcs_of(entity: type) -> dict[str, RpcDefinition]:
    """The handlers by tag; ``ConfigurationError`` where two groups have one of the same name and
    the entity does not say which it means."""
    return composed(entity, rpc_of, what="handler", mark="@rpc")
