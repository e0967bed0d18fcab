"""A shard while this runner owns it: its epoch, its pen, and what is in hand of it.

Made by ``cluster.delivery`` when a lane has acquired the shard; held by every piece of work of the
shard, which stops as soon as ``alive`` is false.
"""

from engine.cluster.handover import Handover
from engine.core.errors import OwnershipLost
from engine.core.ids import RunnerId, ShardId
from engine.storage.lane import CommitSource, Lane
from engine.storage.protocol import Fence, Recipient


class OwnedShard:
    """One epoch of one shard in this process.

    ``in_flight`` are the inbox rows handed out here; a row leaves only after the flush that
    deleted it, or when it is given back. ``held`` are entities and executions whose requests are
    to stay in the inbox for now. ``leaving`` is set while the shard is being handed over, and
    ``accepting`` is false from when it is served no more.

    INVARIANT order: ``passed_over`` are those of whom a row was given back since the last sweep
    began. What that sweep reads of them came later, so it is left for the next one as well.

    ``behind``: there may be rows in the inbox that were not read yet and are older than what is
    sent now, so nothing may be delivered from memory. It ends with a sweep that has read all, from
    ``begin_sweep`` on.
    """

    __slots__ = (
        "_missed",
        "accepting",
        "alive",
        "behind",
        "epoch",
        "generation",
        "held",
        "id",
        "in_flight",
        "lane",
        "leaving",
        "passed_over",
        "runner",
    )

    def __init__(self, *, id: ShardId, epoch: int, lane: Lane, runner: RunnerId) -> None:
        self.id: ShardId = id
        self.epoch: int = epoch
        self.lane: Lane = lane
        self.runner: RunnerId = runner
        self.generation: int = lane.generation
        self.in_flight: set[int] = set()
        self.held: set[int] = set()
        self.passed_over: set[Recipient] = set()
        self.behind: bool = True
        self._missed: bool = True
        self.alive: bool = True
        self.accepting: bool = True
        self.leaving: Handover | None = None

    def submit(self, source: CommitSource) -> None:
        """Queue a write of this epoch; ``OwnershipLost`` once the epoch is over."""
        if not self.alive:
            raise OwnershipLost(f"shard {self.id} is no longer owned here; the write is dropped")
        self.lane.submit(source, self.generation)

    def hold(self, key: int) -> None:
        """Leave this entity's or execution's requests in the inbox until ``release``."""
        self.held.add(key)
        self.fall_behind()

    def release(self, key: int) -> None:
        """Its requests may be read again."""
        self.held.discard(key)
        self.fall_behind()
        if self.alive:
            self.lane.ring((self.id,))

    def give_back(self, seq: int, recipient: Recipient) -> None:
        """A row that cannot be taken now: it stays in the inbox and is read again later, and so is
        what came for the same recipient after it."""
        self.in_flight.discard(seq)
        self.passed_over.add(recipient)
        self.fall_behind()

    def fall_behind(self) -> None:
        """There are rows that the sweep under way, if any, does not read."""
        self.behind = self._missed = True

    def begin_sweep(self) -> None:
        self.passed_over.clear()
        self._missed = bool(self.held)

    def end_sweep(self, *, more: bool) -> None:
        """Its rows are about to be delivered; with ``more`` there are others."""
        self.behind = more or self._missed

    @property
    def fence(self) -> Fence:
        return Fence(shard=self.id, epoch=self.epoch, runner=self.runner)
