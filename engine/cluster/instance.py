"""One entity in memory: built from the prototype and its stored state, and rebuilt after a defect.

Made by ``cluster.entity_host`` on the first message of an id; its mailbox starts ``Handling``s.
"""

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from engine.cluster.entity import Entity, copy_of, is_kept
from engine.cluster.mailbox import Mailbox
from engine.cluster.message import Message
from engine.cluster.shard import OwnedShard
from engine.cluster.state import StateCell
from engine.core.clock import Alarm
from engine.core.ids import entity_key
from engine.storage.entities import StoredState

if TYPE_CHECKING:
    from engine.cluster.entity_host import EntityHost

log: logging.Logger = logging.getLogger(__name__)

_BACKOFF = timedelta(milliseconds=100)
_BACKOFF_LIMIT = timedelta(minutes=1)


class Instance:
    """A ``Resident``: the entity of one id, its mailbox and its state's cell.

    Messages wait until it is built. Of a state that has to be read, that is after the read.
    """

    def __init__(self, host: "EntityHost", shard: OwnedShard, id: str) -> None:
        self.host = host
        self.shard: OwnedShard = shard
        self.id: str = id
        self.key: int = entity_key(host.name, id)
        self.entity: Entity | None = None
        self.cell: StateCell | None = None
        prototype = host.prototype
        self.mailbox: Mailbox = Mailbox(
            capacity=prototype.mailbox_capacity,
            concurrency=prototype.concurrency,
            exclusive=host.state is not None,
            start=self._start,
        )
        self._gone = False
        self._held = False
        self._yielding = False
        self._rebuilding = False
        self._defects = 0
        self._alarm: Alarm | None = None
        self._idle_until = host.clock.now()
        self._build()

    # --- messages ---------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether its stored messages stay in the database for now: the mailbox is full, or was."""
        return self._held

    @property
    def yielding(self) -> bool:
        """Whether it takes nothing at all, since others wait for its place in memory."""
        return self._yielding

    def put(self, message: Message) -> None:
        self.host.residency.enter(self)
        self.mailbox.put(message)
        self._gauge()

    def _start(self, message: Message) -> None:
        self.host.start(self, message)
        self._gauge()

    def ended(self, message: Message) -> None:
        """A message's task has ended, or it has ended in the mailbox."""
        if self._gone or self._rebuilding:
            return
        self.mailbox.ended(message)
        self._gauge()
        if not self.mailbox.empty:
            return
        if self.entity is not None and is_kept(self.entity):
            self.host.residency.leave(self)
            self._unyield()
        elif self.host.residency.idle(self):
            self._unyield()
            self._idle_until = self.host.clock.now() + self.host.prototype.max_idle
            if self._alarm is None:
                self._alarm = self.host.clock.call_at(self._idle_until, self._look)

    def worked(self) -> None:
        """A handler has come to its end, which forgives what broke before."""
        self._defects = 0

    # --- residency (a Resident) -------------------------------------------------------------------

    def evict(self) -> None:
        self.host.reap(self)

    def give_way(self) -> None:
        self._yielding = True
        self._hold()

    def leave(self) -> list[Message]:
        """It is out of memory; gives what had not been started."""
        self._gone = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._held:
            self._release()
        self.host.residency.leave(self)
        return self.mailbox.clear()

    def _unyield(self) -> None:
        if self._yielding:
            self._yielding = False
            self._gauge()

    def _gauge(self) -> None:
        """Whenever there are more or fewer messages: a full mailbox leaves those that are stored
        where they are until it is half empty, one that gives way for as long as it does."""
        if self.mailbox.full:
            self._hold()
        elif self._held and not self._yielding and len(self.mailbox) <= self.mailbox.capacity // 2:
            self._release()

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self.shard.hold(self.key)

    def _release(self) -> None:
        self._held = False
        self.shard.release(self.key)

    def _look(self) -> None:
        """One alarm at a time, however many messages come: it is set anew when it was early."""
        self._alarm = None
        if self._gone or not self.mailbox.empty:
            return  # the end of its message sets the next
        if self.entity is not None and is_kept(self.entity):
            return
        if self.host.clock.now() < self._idle_until:
            self._alarm = self.host.clock.call_at(self._idle_until, self._look)
        else:
            self.host.reap(self)

    # --- building and breaking --------------------------------------------------------------------

    def _build(self) -> None:
        if self._gone:
            return
        if self.host.state is None:
            self._built(None)
        else:
            self.host.states.load(self.host.name, self.id, self._built)

    def _built(self, stored: StoredState | None) -> None:
        if self._gone:
            return
        try:
            self.entity = copy_of(self.host.prototype, self.id)
            if self.host.state is not None:
                self.cell = StateCell(self.host.state, stored)
        except Exception as error:  # noqa: BLE001 -- whatever the prototype or its model raises
            self.broke(None, error)
            return
        self.mailbox.resume()

    def broke(self, message: Message | None, error: BaseException) -> None:
        """The entity in memory is of no use: build another after a while, and handle again what was
        in hand. ``message`` is the one to blame; without it, the first that waits."""
        log.error(
            "an entity broke and is built anew",
            extra={"entity": f"{self.host.name}/{self.id}", "defects": self._defects + 1},
            exc_info=error,
        )
        if self._rebuilding:
            return
        self._rebuilding = True
        self._defects += 1
        self.mailbox.pause()
        running = list(self.mailbox.running)
        self.host.spawn(self._rebuild(message, error, running))

    async def _rebuild(
        self, blamed: Message | None, error: BaseException, running: list[Message]
    ) -> None:
        tasks = [each.task for each in running if each.task is not None]
        for each in running:
            # What a handler changed may be on its way into storage: the next state is read after.
            if each.task is not None and each is not blamed and not each.handled:
                each.task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._gone:
            return  # with its shard, and so are its messages
        for each in running:
            self.mailbox.ended(each)
        self.mailbox.put_back([each for each in running if not each.answered])
        waiting = self.mailbox.clear()
        suspect = blamed if blamed is not None else next(iter(waiting), None)
        self.mailbox.put_back(
            [
                each
                for each in waiting
                if not self.host.failed(each, error, each is suspect, running)
            ]
        )
        delay = min(_BACKOFF * 2 ** min(self._defects - 1, 20), _BACKOFF_LIMIT)
        self.host.clock.call_at(self.host.clock.now() + delay, self._build)
        self._rebuilding = False
        if self.mailbox.empty:
            self.evict()
        else:
            self.host.residency.enter(self)
            self._gauge()
