"""The handlers of an entity class: its own, and those of the groups it is composed of.

A group is any class with ``@rpc`` methods that an entity inherits from, another entity or a plain
mixin. Read by ``cluster.entity`` when the class is registered or called.
"""

from engine.cluster.rpc import RpcDefinition, rpc_of
from engine.core.errors import ConfigurationError


def rpcs_of(entity: type) -> dict[str, RpcDefinition]:
    """The handlers by tag; ``ConfigurationError`` where two groups have one of the same name and
    the entity does not say which it means."""
    found: dict[str, RpcDefinition] = {}
    for attribute in dir(entity):
        definition = _handler(entity, attribute)
        if definition is not None:
            other = found.setdefault(definition.name, definition)
            if other is not definition:
                raise ConfigurationError(
                    f"{entity.__qualname__} has two handlers named {definition.name!r};"
                    " give one of them another name= in @rpc"
                )
    return found


def _handler(entity: type, name: str) -> RpcDefinition | None:
    """The handler behind an attribute, if it is one for every class that defines it."""
    definers = [cls for cls in entity.__mro__ if name in vars(cls)]
    if not definers:
        return None
    first = definers[0]
    definition = rpc_of(vars(first)[name])
    for other in definers[1:]:
        hidden = rpc_of(vars(other)[name])
        if definition is None and hidden is None:
            continue
        if not issubclass(first, other):
            raise ConfigurationError(
                f"{entity.__qualname__} gets {name!r} from {first.__qualname__} and from"
                f" {other.__qualname__}, and one would hide the other's handler; rename one, or"
                f" define {name!r} in {entity.__qualname__}, where it may call either"
            )
        if definition is None and callable(vars(first)[name]):
            raise ConfigurationError(
                f"{first.__qualname__}.{name} replaces a handler of {other.__qualname__} and is"
                " none itself; mark it @rpc too, or rename it"
            )
    return definition
