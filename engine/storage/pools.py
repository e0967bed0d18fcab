"""The pools of one process: for the engine's own statements, user transactions, volatile messages.

Made by ``postgres``; each is a few sessions with settings of their own, opened when needed.
"""

from uuid import UUID

from engine.storage.connect import OUR_PLANS, Connector
from engine.storage.pool import Pool

LOCK_TIMEOUT = {"lock_timeout": "100"}
_SHORT_LOCK_TIMEOUT = {"lock_timeout": "10"}
_NO_DISK = {"synchronous_commit": "off"}
_OWN_SESSIONS = 4


class Pools:
    """``size`` bounds the sessions of user transactions; the engine's own share up to four more,
    and volatile messages have one. ``apart`` finds out which keys are held by open transactions:
    it waits for each but a moment, and one that is not held after all is asked for again."""

    def __init__(self, *, connector: Connector, identity: UUID, size: int) -> None:
        ours = OUR_PLANS | LOCK_TIMEOUT
        self.own = Pool(
            connector=connector,
            identity=identity,
            role="pool",
            size=min(_OWN_SESSIONS, size),
            settings=ours,
        )
        self.user = Pool(
            connector=connector,
            identity=identity,
            role="user",
            size=size,
            settings={"statement_timeout": "0"},
        )
        # One session, so that what is sent on it keeps its order.
        self.post = Pool(
            connector=connector, identity=identity, role="post", size=1, settings=ours | _NO_DISK
        )

        self.apart = Pool(
            connector=connector,
            identity=identity,
            role="apart",
            size=1,
            settings=OUR_PLANS | _SHORT_LOCK_TIMEOUT,
        )

    def serve_transactions_only(self) -> None:
        for pool in (self.own, self.user, self.post, self.apart):
            pool.serve_transactions_only()

    async def close(self) -> None:
        for pool in (self.user, self.post, self.apart, self.own):
            await pool.close()
