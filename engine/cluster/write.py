"""One commit of an owner's shard, with a future that tells what became of it.

Queued in the shard's lane (a ``CommitSource``); afterwards ``cluster.delivery`` wakes who waits.
"""

import asyncio
from collections.abc import Sequence

from engine.cluster.delivery import Delivery
from engine.cluster.shard import OwnedShard
from engine.core.errors import OwnershipLost
from engine.storage.protocol import BadBatch, Commit, Flushed


class Overtaken(Exception):
    """The request had its exit already, so that the state that came with another was not saved."""


class Write:
    """A ``CommitSource``. ``done`` gives None once the commit is durable, ``BadBatch`` when it was
    refused for good, ``Overtaken`` when its exit was, and its states with that; it never ends when
    the shard is lost first, so await it only in work that is cancelled then."""

    __slots__ = ("_commit", "_delivery", "_shard", "done")

    def __init__(self, delivery: Delivery, shard: OwnedShard, commit: Commit) -> None:
        self._delivery = delivery
        self._shard = shard
        self._commit = commit
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def collect(self) -> Commit:
        return self._commit

    def committed(self, flushed: Flushed) -> None:
        self._delivery.committed(self._shard, self._commit, flushed)
        if self._commit.states and self._commit.exit in flushed.overtaken:
            self._fail(Overtaken(f"request {self._commit.exit} has its exit already"))
        elif not self.done.done():
            self.done.set_result(None)

    def refused(self, error: BadBatch) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # not everybody looks


def write(delivery: Delivery, shard: OwnedShard, commit: Commit) -> "asyncio.Future[None]":
    """Queue a commit; ``OwnershipLost`` when the shard is no longer owned here."""
    source = Write(delivery, shard, commit)
    shard.submit(source)
    return source.done


def settle(delivery: Delivery, shard: OwnedShard, seqs: Sequence[int]) -> None:
    """Delete inbox rows that need nothing else; a lost shard's are its next owner's."""
    try:
        write(delivery, shard, Commit(shard=shard.id, settled=list(seqs)))
    except OwnershipLost:
        return
