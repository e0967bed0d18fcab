"""A process that owns shards and says so, for tests that stop and kill it: ``runner_process DSN``.

It prints a JSON line whenever what it owns has changed: its runner id, how many shards, and whether
it has been declared dead. It comes back under a new id when it has, and leaves on SIGTERM.
"""

import asyncio
import json
import logging
import signal
import sys
from functools import partial

from engine.storage.postgres import PostgresStorage
from tests.cluster.peers import GROUP, SHARDS, Pace, Peer, joined

PACE = Pace()


def tell(peer: Peer) -> None:
    line = {
        "runner": str(peer.id),
        "owned": len(peer.owned),
        "lost": peer.membership.lost.is_set(),
    }
    print(json.dumps(line), flush=True)  # noqa: T201 the test reads it


async def serve(dsn: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    while not stopped.is_set():
        async with PostgresStorage(dsn, shards_per_group=SHARDS) as storage:
            await storage.ensure_groups([GROUP])
            async with joined(storage, pace=PACE) as peer:
                peer.host.changed = partial(tell, peer)
                tell(peer)
                await first(stopped, peer.membership.lost)
            tell(peer)


async def first(*events: asyncio.Event) -> None:
    """Wait for any of them."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(serve(sys.argv[1]))
