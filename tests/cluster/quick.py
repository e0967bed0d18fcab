"""An entity that answers at once, and what delivers to it."""

from engine import Entity, rpc
from engine.cluster.delivery import Delivery
from engine.testing import TestCluster


class Quick(Entity):
    @rpc
    async def hi(self) -> int:
        return 1


def delivery_of(cluster: TestCluster) -> Delivery:
    assert cluster.runner._incarnation is not None
    return cluster.runner._incarnation.delivery
