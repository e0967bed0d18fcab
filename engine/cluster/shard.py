"""A shard while this runner owns it: its epoch, its pen, and what is in hand of it.

Made by ``cluster.delivery`` when a lane has acquired the shard; held by every piece of work of the
shard, which stops as soon as ``alive`` is false.
"""

from engine.core.errors import OwnershipLost
from engine.core.ids import RunnerId, ShardId
from engine.storage.lane import CommitSource, Lane
from engine.storage.protocol import Fence


class OwnedShard:
    """One epoch of one shard in this process.

    ``in_flight`` are the inbox rows handed out here; a row leaves only after the flush that
    deleted it. ``accepting`` is false while the shard is being given away.
    """

    __slots__ = ("accepting", "alive", "epoch", "generation", "id", "in_flight", "lane", "runner")

    def __init__(self, *, id: ShardId, epoch: int, lane: Lane, runner: RunnerId) -> None:
        self.id: ShardId = id
        self.epoch: int = epoch
        self.lane: Lane = lane
        self.runner: RunnerId = runner
        self.generation: int = lane.generation
        self.in_flight: set[int] = set()
        self.alive: bool = True
        self.accepting: bool = True

    def submit(self, source: CommitSource) -> None:
        """Queue a write of this epoch; ``OwnershipLost`` once the epoch is over."""
        if not self.alive:
            raise OwnershipLost(f"shard {self.id} is no longer owned here; the write is dropped")
        self.lane.submit(source, self.generation)

    @property
    def fence(self) -> Fence:
        return Fence(shard=self.id, epoch=self.epoch, runner=self.runner)
