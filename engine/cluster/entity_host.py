"""Runs the messages of one entity type on one runner.

Rows come from ``cluster.delivery``; handlers run in tasks of the host; replies leave through the
shard's lane, or straight to the caller of a volatile message.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Hashable
from datetime import timedelta
from typing import Any

from engine.cluster.answering import Answers, StoredAnswers
from engine.cluster.by_shard import ByShard
from engine.cluster.delivery import Delivery, delivered_in_vain
from engine.cluster.entity import Entity, check_handlers
from engine.cluster.handling import Handling
from engine.cluster.handover import InHand
from engine.cluster.instance import Instance
from engine.cluster.message import Message
from engine.cluster.residency import Residency
from engine.cluster.shard import OwnedShard
from engine.cluster.state import state_of
from engine.cluster.state_loader import StateLoader
from engine.cluster.streams import Streams
from engine.cluster.write import settle, write
from engine.core.clock import Clock
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails, MailboxFull, OwnershipLost
from engine.core.ids import Snowflake, entity_key
from engine.core.payload import PayloadLimit
from engine.core.reply import RUNNER_LOST, Defect, Exit, Interrupted
from engine.storage.protocol import Commit, InboxKind, InboxRow


class EntityHost:
    """The entities of one type that are in memory (a ``MessageHost``).

    ``residency``, ``states`` and ``streams`` are shared by all types of the runner. ``done`` is
    told of each message that is not in hand here any more: its exit is stored, or its shard gone.
    """

    def __init__(
        self,
        prototype: Entity,
        *,
        delivery: Delivery,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        residency: Residency,
        states: StateLoader,
        streams: Streams,
        limit: PayloadLimit,
        done: Callable[[Message], None] | None = None,
    ) -> None:
        self.prototype = prototype
        self.name: str = prototype.name
        self.delivery = delivery
        self.clock = clock
        self.spawn = spawn
        self.residency = residency
        self.states = states
        self.streams = streams
        self.limit = limit
        self._done = done
        self.state = state_of(type(prototype))
        self._rpcs = check_handlers(type(prototype))
        self._instances: ByShard[str, Instance] = ByShard()
        self._messages: ByShard[Snowflake, Message] = ByShard()
        self._waiting: ByShard[str, Message] = ByShard()

    def __len__(self) -> int:
        return len(self._instances)

    def has(self, shard: OwnedShard, request_id: Snowflake) -> bool:
        """Whether the request is in hand here."""
        return self._messages.get(shard, request_id) is not None

    # --- messages in ------------------------------------------------------------------------------

    def deliver(self, shard: OwnedShard, row: InboxRow) -> None:
        if row.kind is InboxKind.INTERRUPT:
            self._interrupt(shard, row)
            return
        id = row.envelope.address.entity_id
        instance = self._instances.get(shard, id)
        waits = self._waiting.get(shard, id) is not None
        newcomer = instance is None and not waits
        if (
            waits
            or (instance is not None and instance.held)
            or (newcomer and self.residency.close_when_crowded())
        ):
            shard.give_back(row.seq, row.recipient)
            return
        message = self._message(
            shard,
            row.envelope,
            StoredAnswers(self.delivery, shard, row.envelope, row.seq),
            row,
        )
        if instance is None and not self.residency.room():
            self._wait(message)
        else:
            self._put(message, instance)

    def deliver_volatile(
        self, shard: OwnedShard, envelope: EnvelopeRequest, answers: Answers
    ) -> None:
        """Handle a message that is not stored; ``MailboxFull`` when it would have to wait
        elsewhere than in a mailbox. The request's id must be new."""
        instance = self._instances.get(shard, envelope.address.entity_id)
        if instance is not None and instance.mailbox.full:
            raise MailboxFull(
                f"the mailbox of {envelope.address} holds {instance.mailbox.capacity} messages;"
                " send again later, raise mailbox_capacity, or make the handler persisted"
            )
        if instance is not None and instance.yielding:
            raise MailboxFull(
                f"{envelope.address} leaves memory, where others wait for a place;"
                " send again later, raise max_resident, or make the handler persisted"
            )
        if instance is None and not self.residency.room():
            raise MailboxFull(
                f"{envelope.address} has no place in memory: all entities there are busy;"
                " send again later, raise max_resident, or make the handler persisted"
            )
        self._put(self._message(shard, envelope, answers), instance)

    def interrupt(self, shard: OwnedShard, request_id: Snowflake) -> None:
        """End a volatile request early."""
        message = self._messages.get(shard, request_id)
        if message is not None and message.interruptible:
            self._stop(message)

    def _message(
        self,
        shard: OwnedShard,
        envelope: EnvelopeRequest,
        answers: Answers,
        row: InboxRow | None = None,
    ) -> Message:
        rpc = self._rpcs.get(envelope.tag)
        message = Message(
            shard=shard,
            envelope=envelope,
            answers=answers,
            row=row,
            readonly=rpc is not None and rpc.readonly,
        )
        self._messages.put(shard, message.id, message)
        return message

    def _put(self, message: Message, instance: Instance | None) -> None:
        if instance is None:
            id = message.envelope.address.entity_id
            instance = Instance(self, message.shard, id)
            self._instances.put(message.shard, id, instance)
        instance.put(message)

    def _wait(self, message: Message) -> None:
        """Keep the first message of an entity that has no place; its others stay stored."""
        shard, id = message.shard, message.envelope.address.entity_id
        place: Hashable = (shard, self.name, id)
        self._waiting.put(shard, id, message)
        shard.hold(entity_key(self.name, id))

        def admit() -> None:
            waited = self._end_waiting(shard, id)
            if waited is not None:
                self._put(waited, None)

        self.residency.wait(place, admit)

    def _end_waiting(self, shard: OwnedShard, id: str) -> Message | None:
        message = self._waiting.take(shard, id)
        if message is not None:
            self.residency.forget((shard, self.name, id))
            shard.release(entity_key(self.name, id))
        return message

    # --- interrupts -------------------------------------------------------------------------------

    def _interrupt(self, shard: OwnedShard, row: InboxRow) -> None:
        message = self._messages.get(shard, row.envelope.request_id)
        if message is None:
            self.delivery.interrupt(shard, row)
        elif not message.interruptible:
            settle(self.delivery, shard, [row.seq])
        else:
            message.interrupted_by(row.seq)
            self._stop(message)

    def _stop(self, message: Message) -> None:
        if message.interrupted:
            return
        message.interrupted = True
        if message.task is not None:
            message.task.cancel()
            if message.begun:
                return  # its exit follows what its handler does about it
        id = message.envelope.address.entity_id
        instance = self._instances.get(message.shard, id)
        if self._waiting.get(message.shard, id) is message:
            self._end_waiting(message.shard, id)
        elif instance is not None:
            instance.mailbox.take_out(message)
        self._end(message, Interrupted())
        if instance is not None and message.task is None:
            instance.ended(message)

    def _end(self, message: Message, exit: Exit) -> None:
        """End a message that no handler has in hand."""
        message.answered = True
        if message.row is not None:
            seqs = message.answers.seqs if isinstance(message.answers, StoredAnswers) else []
            others = [seq for seq in seqs if seq != message.row.seq]
            self.delivery.unhandled.end(message.shard, message.row, exit, settled=others)
            self._forget(message)
        else:
            self.ended(message, message.answers.end(exit))

    # --- tasks ------------------------------------------------------------------------------------

    def start(self, instance: Instance, message: Message) -> None:
        message.begun = False
        message.task = self.spawn(Handling(instance, message, self._rpcs).run())
        message.task.add_done_callback(lambda _: self._task_ended(instance, message))

    def _task_ended(self, instance: Instance, message: Message) -> None:
        message.task = None
        instance.ended(message)

    def ended(self, message: Message, done: "asyncio.Future[None]") -> None:
        """The exit is on its way; once it is there the message is forgotten."""
        done.add_done_callback(lambda _: self._forget(message))

    def _forget(self, message: Message) -> None:
        if self._messages.get(message.shard, message.id) is message:
            self._messages.take(message.shard, message.id)
            if self._done is not None:
                self._done(message)

    def failed(
        self, message: Message, error: BaseException, suspect: bool, running: Collection[Message]
    ) -> bool:
        """The entity broke with this message waiting or in hand; whether that is its end."""
        if message.interrupted:
            exit: Exit = Interrupted()
        elif message.row is None:
            if message not in running:
                return False
            exit = Defect(ErrorDetails.of(error))
        elif suspect:
            message.failures += 1
            if message.failures < self.delivery.max_deliveries:
                self._count(message.shard, message.row.seq)
                return False
            exit = delivered_in_vain(message.envelope, message.failures, ErrorDetails.of(error))
        else:
            return False
        self._end(message, exit)
        return True

    def _count(self, shard: OwnedShard, seq: int) -> None:
        try:
            write(self.delivery, shard, Commit(shard=shard.id, failed=[seq]))
        except OwnershipLost:
            return

    # --- shards go --------------------------------------------------------------------------------

    def reap(self, instance: Instance) -> None:
        if self._instances.get(instance.shard, instance.id) is instance:
            self._instances.take(instance.shard, instance.id)
        instance.leave()

    def drop(self, shard: OwnedShard) -> None:
        for id in self._waiting.keys_of(shard):
            self._end_waiting(shard, id)
        for instance in self._instances.of(shard):
            self.reap(instance)
        for message in self._messages.of(shard):
            if message.task is not None:
                message.task.cancel()
            self._leave(message)
            self._forget(message)

    def _leave(self, message: Message) -> None:
        """A volatile message leaves with its shard: to the next owner if no handler has had it, to
        nobody else. (A stored one is the next owner's anyway.)"""
        if message.row is not None or message.answered:
            return
        if message.tried:
            self._end(message, _moved())
        else:
            message.answered = True
            message.answers.give_back()

    def in_hand(self, shard: OwnedShard) -> InHand:
        mine = [
            (each.task, each.stays)
            for each in self._messages.of(shard)
            if each.task is not None and each.id not in self.streams  # which end when they drain
        ]
        return InHand(
            running=[task for task, _ in mine], staying=[task for task, stays in mine if stays]
        )

    def keys(self, shard: OwnedShard) -> Collection[int]:
        return [each.key for each in self._instances.of(shard)]

    def stay(self, shard: OwnedShard) -> None:
        for instance in self._instances.of(shard):
            instance.mailbox.look()

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        mine = self._messages.of(shard)
        for instance in self._instances.of(shard):
            instance.mailbox.clear()
        for message in mine:
            if message.task is None:
                self._leave(message)
        tasks = {each.task for each in mine if each.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=grace.total_seconds())
        self.drop(shard)
        if tasks:
            # What a handler does when it is cancelled belongs to this epoch still.
            await asyncio.wait(tasks, timeout=_CANCELLED)


_CANCELLED = 1.0


def _moved() -> Exit:
    return Defect(
        ErrorDetails(
            RUNNER_LOST,
            "the entity's shard left its runner before this volatile message was answered; nobody"
            " knows how far it came",
        )
    )
