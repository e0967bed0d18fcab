"""The executions of a runner: which are in memory, which are being loaded, which may leave it.

Rows come from ``cluster.delivery``. A fresh execution begins at once; one with a past is loaded
with its journal and replayed; an idle one is suspended.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from engine.cluster.answering import Answers
from engine.cluster.delivery import Delivery
from engine.cluster.handover import InHand
from engine.cluster.residency import Residency
from engine.cluster.shard import OwnedShard
from engine.cluster.write import write
from engine.core.clock import Alarm, Clock
from engine.core.envelope import EnvelopeRequest, Interrupt
from engine.core.errors import (
    ErrorDetails,
    InvalidPayload,
    NotFound,
    NotRegistered,
    OwnershipLost,
    StorageUnavailable,
)
from engine.core.ids import EntityAddress, ShardId, Snowflake, SnowflakeGenerator
from engine.core.journal import JournalKind, JournalRow
from engine.core.payload import PayloadLimit
from engine.core.reply import Exit, Failure, Terminated
from engine.core.retry import again_in
from engine.core.status import Status
from engine.storage.pauses import Pause
from engine.storage.protocol import (
    UNDECIDED,
    BadBatch,
    Commit,
    ExecutionUpdate,
    InboxKind,
    InboxRow,
    LoadedExecution,
    Storage,
    StoredExecution,
    exit_reply,
)
from engine.workflow.body import TOO_LATE
from engine.workflow.codes import Codes, needed
from engine.workflow.definition import Workflow, WorkflowDefinition
from engine.workflow.outgoing import Services
from engine.workflow.pause import EXECUTION, ends_pause, pauses_of
from engine.workflow.query import Query, judge, look_back
from engine.workflow.repair import ABANDONED
from engine.workflow.resident import ResidentExecution
from engine.workflow.step_threads import StepThreads
from engine.workflow.tags import (
    INTERRUPT,
    PAUSE,
    RUN,
    TERMINATE,
    decode_reason,
    deferred_of,
    encode_order,
    query_of,
    update_of,
)
from engine.workflow.waiting_executions import WaitingExecutions

log: logging.Logger = logging.getLogger(__name__)
_LOAD = 200
_AGAIN = 1.0


class ExecutionHost:
    """Runs the executions of the shards owned here (an ``ExecutionsHost`` of delivery).

    ``suspend_after``: how long an execution may wait in memory with nothing to do; less when there
    are ``max_resident`` and others want a place, or when it is to sleep for longer than twice that.
    """

    def __init__(
        self,
        *,
        delivery: Delivery,
        storage: Storage,
        clock: Clock,
        ids: SnowflakeGenerator,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        await_exit: Callable[[Snowflake], Awaitable[Exit]],
        renew_lease: Callable[[], Awaitable[None]],
        threads: StepThreads,
        limit: PayloadLimit,
        suspend_after: timedelta,
        max_resident: int,
    ) -> None:
        self._delivery = delivery
        self._storage = storage
        self._clock = clock
        self._spawn = spawn
        self._suspend_after = suspend_after
        self._residency = Residency(max_resident)
        self._places: dict[Snowflake, _Place] = {}
        self._waiting = WaitingExecutions(self._residency)
        self._services = Services(
            clock=clock,
            delivery=delivery,
            storage=storage,
            ids=ids,
            spawn=spawn,
            call_soon=asyncio.get_running_loop().call_soon,
            await_exit=await_exit,
            renew_lease=renew_lease,
            threads=threads,
            limit=limit,
        )
        self._codes = Codes()
        self._residents: dict[Snowflake, ResidentExecution] = {}
        self._by_shard: dict[OwnedShard, set[ResidentExecution]] = defaultdict(set)
        self._by_place: dict[tuple[str, str], ResidentExecution] = {}
        self._loading: dict[Snowflake, list[tuple[OwnedShard, InboxRow]]] = {}
        self._to_load: list[Snowflake] = []
        # what executions were told before they are due to begin
        self._early: dict[Snowflake, list[tuple[OwnedShard, InboxRow]]] = {}
        # the messages of executions that are paused, which stay in the inbox
        self._paused: dict[Snowflake, tuple[OwnedShard, list[int]]] = {}
        self._pauses: Mapping[str, Pause] = {}
        self._loader: asyncio.Task[None] | None = None
        # ids the sweep must not call due: in memory with a wake_at, or not served here
        self._not_due: dict[OwnedShard, set[Snowflake]] = defaultdict(set)
        self._idle: dict[ResidentExecution, datetime] = {}
        self._idle_alarm: Alarm | None = None

    def register(self, prototype: Workflow[Any, Any]) -> None:
        """Serve a workflow, or another version of it; executions that waited for it go on."""
        definition = self._codes.register(prototype)
        slept = {shard.id for shard, executions in self._not_due.items() if executions}
        self._not_due.clear()
        for version in (UNDECIDED, definition.version):
            self._delivery.unpark(needed(definition.name, version))
        self._delivery.ring(slept)

    def pause(self, pauses: Mapping[str, Pause]) -> None:
        """These are paused as a whole, or were: their executions come to a stand, or go on."""
        before, self._pauses = self._pauses, pauses
        changed = {
            name
            for name in {*before, *pauses} & self._codes.names
            if _paused(before, name) is not _paused(pauses, name)
        }
        for resident in list(self._residents.values()) if changed else ():
            name = resident.place[0]
            if name in changed and _paused(pauses, name):
                pause = pauses[name]
                resident.pause(encode_order(pause.reason, pause.by))
            elif name in changed:
                resident.resume()
        resumed = [name for name in changed if not _paused(pauses, name)]
        if resumed:
            self._not_due.clear()
        for name in resumed:
            self._delivery.unpark(name)
        if resumed:
            self._delivery.ring(self._delivery.owned())

    def resumption(self, workflow: str) -> bytes:
        pause = self._pauses.get(workflow)
        return encode_order("", "") if pause is None else encode_order(pause.reason, pause.by)

    def _runs(self, execution: StoredExecution) -> bool:
        """Whether it can run here now."""
        served = self._codes.of(execution) is not None
        return served and not _paused(self._pauses, execution.workflow)

    def served(self) -> Collection[WorkflowDefinition]:
        """The workflows that are registered here, each in its newest version."""
        return self._codes.newest

    def __len__(self) -> int:
        return len(self._residents)

    # --- the delivery's side ---------------------------------------------------------------------

    def deliver(self, shard: OwnedShard, row: InboxRow) -> None:
        id = row.execution
        assert id is not None
        resident = self._residents.get(id)
        if resident is not None:
            resident.arrive(row)
            return
        loading = self._loading.get(id)
        if loading is None and id in self._early:
            if row.envelope.request_id != id and not _ends(row):
                self._early[id].append((shard, row))
                return
            loading = self._loading_again(id)
        if loading is not None:
            loading.append((shard, row))
            return
        if id in self._waiting:
            self._waiting.leave_stored(id, shard, row)
            return
        if id in self._paused:
            if ends_pause(row):
                self._read_again(id)
                self._load(id, [(shard, row)])
            else:
                self._keep(id, shard, row)
            return
        state = row.state
        if state is None or state.status.finished:
            self.settle(shard, [row.seq], late=[row])
        elif (
            shard.without_starts
            and state.status is Status.SCHEDULED
            and row.envelope.request_id != id
        ):
            shard.give_back(row.seq, id)  # its start stands before it
        elif not self._runs(state):
            self._put_by(state, shard, row)
        elif self._residency.room():
            self._admit(id, shard, row, state)
        else:
            self._waiting.add(id, shard, lambda: self._admit(id, shard, row, state))

    def _put_by(self, state: StoredExecution, shard: OwnedShard, row: InboxRow) -> None:
        """Nothing of its workflow, or of its version, runs here now; what ends there and then needs
        no run."""
        if row.told == TERMINATE:
            self._spawn(self._terminate(shard, row))
            return
        name, because = state.workflow, "is paused"
        if self._codes.of(state) is None:
            name, because = needed(name, state.version), "is not registered here"
        self._delivery.parking.park(name, shard, row, forever=True, because=because)

    def _keep(self, id: Snowflake, shard: OwnedShard, row: InboxRow) -> None:
        """A message to one that is paused stays in the inbox, and of it here only its number."""
        if row.told == PAUSE:
            self.settle(shard, [row.seq])
        else:
            self._paused[id][1].append(row.seq)

    def _read_again(self, id: Snowflake) -> None:
        """It is paused no more: read what came for it."""
        shard, seqs = self._paused.pop(id)
        for seq in seqs:
            shard.give_back(seq, id)
        if seqs and shard.alive:
            shard.lane.ring((shard.id,))

    def _admit(
        self, id: Snowflake, shard: OwnedShard, row: InboxRow, state: StoredExecution
    ) -> None:
        """There is a place for it in memory."""
        if not shard.alive or not shard.accepting:
            return
        if state.started_at is None and row.envelope.request_id == id:
            fresh = LoadedExecution(execution=state, envelope=row.envelope, journal=())
            self._begin(shard, fresh, [row])
        else:
            self._load(id, [(shard, row)])

    # --- queries (a VolatileHost of the reception) ------------------------------------------------

    def deliver_volatile(
        self, shard: OwnedShard, envelope: EnvelopeRequest, answers: Answers, /
    ) -> None:
        """Let somebody look into an execution, wherever it stands."""
        if envelope.tag == RUN or deferred_of(envelope.tag) is not None:
            self._spawn(self._judge(envelope, answers))
            return
        name = query_of(envelope.tag)
        query = Query(name=name or envelope.tag, payload=envelope.payload, answers=answers)
        if name is None:
            query.fail(InvalidPayload(f"a workflow answers queries, not {envelope.tag!r}"))
            return
        resident = self._by_place.get((envelope.address.entity_type, envelope.address.entity_id))
        if resident is not None:
            resident.ask(query)
        else:
            self._spawn(self._look_back(shard, envelope.address, query))

    def interrupt(self, shard: OwnedShard, request_id: Snowflake, /) -> None:
        """A query is answered at once or not at all."""

    async def _judge(self, envelope: EnvelopeRequest, answers: Answers) -> None:
        """Say whether what somebody means to store would fit; of what was started before, the
        start is judged by what is stored of it."""
        address, tag = envelope.address, envelope.tag
        try:
            found = await self._storage.find(address.entity_type, address.entity_id)
        except (StorageUnavailable, TimeoutError, OSError) as error:
            answers.end(Failure(ErrorDetails.of(error)))
            return
        newest = self._codes.newest_of(address.entity_type)
        code = newest if found is None else self._codes.of(found)
        if code is None or (found is None) is not (tag == RUN):
            nobody = NotRegistered("nobody can say here whether it fits")
            answers.end(Failure(ErrorDetails.of(nobody)))
        else:
            answers.end(judge(code[0], tag, envelope.payload))

    async def _look_back(self, shard: OwnedShard, address: EntityAddress, query: Query) -> None:
        """Replay an execution that is not in memory, for a query alone."""
        try:
            found = await self._storage.find(address.entity_type, address.entity_id)
            ids = [] if found is None else [found.request_id]
            loaded = await self._storage.load(ids)
        except (StorageUnavailable, TimeoutError, OSError) as error:
            query.fail(error)
            return
        if not loaded:
            query.fail(NotFound(f"there is no execution {address.entity_type}/{address.entity_id}"))
            return
        resident = self._residents.get(loaded[0].execution.request_id)
        if resident is not None:
            resident.ask(query)
        elif not shard.alive:
            query.answers.give_back()
        elif (code := self._codes.of(loaded[0].execution)) is not None:
            self._services.call_soon(partial(look_back, *code, loaded[0], query))
        else:
            execution = loaded[0].execution
            query.fail(
                NotRegistered(
                    f"its owner has not the code of {needed(execution.workflow, execution.version)}"
                )
            )

    def again(self, shard: OwnedShard, address: EntityAddress, queries: Sequence[Query]) -> None:
        """They were asked of an execution that has left memory before it could answer."""
        for query in queries:
            if shard.alive:
                self._spawn(self._look_back(shard, address, query))
            else:
                query.answers.give_back()

    def wake(self, executions: Sequence[Snowflake]) -> None:
        for id in executions:
            if id in self._residents or id in self._loading or id in self._waiting:
                continue
            if self._residency.room():
                self._load(id, [])
            else:
                self._waiting.add(id, None, partial(self._load, id, []))

    def resident(self, shard: OwnedShard) -> Collection[Snowflake]:
        return self._not_due.get(shard, ())

    @property
    def loading(self) -> Collection[Snowflake]:
        return [*self._loading, *self._waiting]

    def drop(self, shard: OwnedShard) -> None:
        for resident in list(self._by_shard.get(shard, ())):
            resident.drop()
        self._forget_shard(shard)

    def in_hand(self, shard: OwnedShard) -> InHand:
        residents = self._by_shard.get(shard, ())
        return InHand(running=[task for each in residents for task in each.running])

    def keys(self, shard: OwnedShard) -> Collection[int]:
        return ()

    def stay(self, shard: OwnedShard) -> None:
        """Nothing was put off."""

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        residents = list(self._by_shard.get(shard, ()))
        await asyncio.gather(*(resident.drain(grace) for resident in residents))
        self._forget_shard(shard)

    def _forget_shard(self, shard: OwnedShard) -> None:
        self._by_shard.pop(shard, None)
        self._not_due.pop(shard, None)
        self._waiting.forget(shard)
        for id, rows in self._loading.items():
            self._loading[id] = [each for each in rows if each[0] is not shard]
        for id in [id for id, rows in self._early.items() if rows[0][0] is shard]:
            del self._early[id]
        for id in [id for id, (at, _) in self._paused.items() if at is shard]:
            del self._paused[id]

    # --- the residents' side ----------------------------------------------------------------------

    def forget(self, execution: ResidentExecution) -> None:
        if self._residents.get(execution.id) is execution:
            del self._residents[execution.id]
            self._by_place.pop(execution.place, None)
        self._by_shard[execution.shard].discard(execution)
        self._not_due[execution.shard].discard(execution.id)
        self._idle.pop(execution, None)
        self._leave(execution.id)

    def idle(self, execution: ResidentExecution) -> None:
        now = self._clock.now()
        if execution.sleeps_beyond(now + self._suspend_after * 2):
            execution.suspend()  # nothing is likely to come that spares it
            return
        self._idle.setdefault(execution, now)
        place = self._places.get(execution.id)
        if place is not None:
            self._residency.idle(place)
        if self._idle_alarm is None:
            self._idle_alarm = self._clock.call_at(
                self._clock.now() + self._suspend_after, self._suspend_idle
            )

    def busy(self, execution: ResidentExecution) -> None:
        self._idle.pop(execution, None)
        place = self._places.get(execution.id)
        if place is not None:
            self._residency.busy(place)

    def suspend_idle(self, id: Snowflake) -> None:
        """Others wait for its place: suspend it now, if it is idle still."""
        execution = self._residents.get(id)
        if execution is not None and self._idle.pop(execution, None) is not None:
            execution.suspend()

    def _enter(self, id: Snowflake) -> None:
        self._residency.enter(self._places.setdefault(id, _Place(self, id)))

    def _leave(self, id: Snowflake) -> None:
        place = self._places.pop(id, None)
        if place is not None:
            self._residency.leave(place)

    def paused(self, execution: ResidentExecution, seqs: Sequence[int]) -> None:
        if execution.alone:
            self._paused[execution.id] = execution.shard, [*seqs]
            return
        for seq in seqs:
            execution.shard.give_back(seq, execution.id)

    def due_again(self, execution: ResidentExecution) -> None:
        self._not_due[execution.shard].add(execution.id)

    def settle(
        self, shard: OwnedShard, seqs: Sequence[int], *, late: Sequence[InboxRow] = ()
    ) -> None:
        updates = [row for row in late if update_of(row.told) is not None]
        replies = [exit_reply(row.envelope.request_id, TOO_LATE) for row in updates]
        try:
            write(self._delivery, shard, Commit(shard=shard.id, settled=seqs, replies=replies))
        except OwnershipLost:
            return  # they are the next owner's

    def _suspend_idle(self) -> None:
        self._idle_alarm = None
        before = self._clock.now() - self._suspend_after * 0.9
        ripe = [execution for execution, since in self._idle.items() if since <= before]
        for execution in ripe:
            del self._idle[execution]
            execution.suspend()
        if self._idle:
            self._idle_alarm = self._clock.call_at(
                self._clock.now() + self._suspend_after / 4, self._suspend_idle
            )

    # --- loading ----------------------------------------------------------------------------------

    def _begin(self, shard: OwnedShard, loaded: LoadedExecution, rows: Sequence[InboxRow]) -> None:
        code = self._codes.of(loaded.execution)
        assert code is not None
        definition, prototype = code
        resident = ResidentExecution(
            definition=definition,
            prototype=prototype,
            shard=shard,
            loaded=loaded,
            services=self._services,
            residents=self,
        )
        self._residents[loaded.execution.request_id] = resident
        self._by_place[resident.place] = resident
        self._enter(resident.id)
        self._by_shard[shard].add(resident)
        if loaded.execution.wake_at is not None:
            self._not_due[shard].add(resident.id)
        for row in rows:
            resident.arrive(row)
        resident.begin()

    def _load(self, id: Snowflake, rows: list[tuple[OwnedShard, InboxRow]]) -> None:
        self._enter(id)
        self._loading[id] = rows
        self._to_load.append(id)
        if self._loader is None:
            self._loader = self._spawn(self._load_all())

    async def _load_all(self) -> None:
        failures = 0
        try:
            while self._to_load:
                ids, self._to_load = self._to_load[:_LOAD], self._to_load[_LOAD:]
                epochs = dict(self._delivery.shards)
                try:
                    loaded = await self._storage.load(ids)
                    failures = 0
                except Exception as error:  # noqa: BLE001 -- who is not loaded never goes on
                    failures += 1
                    if failures == 1:
                        log.warning(
                            "cannot load executions, trying again", extra={"error": str(error)}
                        )
                    self._to_load = ids + self._to_load
                    await asyncio.sleep(again_in(failures))
                    continue
                found = {each.execution.request_id: each for each in loaded}
                for id in ids:
                    try:
                        self._loaded(id, found.get(id), epochs)
                    except Exception:
                        log.exception("an execution cannot go on here", extra={"execution": id})
                    if id not in self._residents and id not in self._loading:
                        self._leave(id)
        finally:
            self._loader = None

    def _loaded(
        self,
        id: Snowflake,
        loaded: LoadedExecution | None,
        epochs: Mapping[ShardId, OwnedShard],
    ) -> None:
        rows = self._loading.pop(id, [])
        if loaded is None:
            for owner, row in rows:
                self.settle(owner, [row.seq], late=[row])
            return
        shard = self._delivery.shards.get(loaded.execution.shard)
        if shard is None or not shard.accepting:
            return
        mine = [row for owner, row in rows if owner is shard]
        # INVARIANT lock-then-read: what was read before this epoch began may be out of date.
        if epochs.get(shard.id) is not shard:
            self._load(id, [(shard, row) for row in mine])
        elif loaded.execution.status.finished:
            self.settle(shard, [row.seq for row in mine], late=mine)
        elif self._stands_still(loaded) and not any(map(ends_pause, mine)):
            self._paused[id] = shard, []
            for row in mine:
                self._keep(id, shard, row)
        elif not self._runs(loaded.execution):
            self._not_due[shard].add(id)
            for row in mine:
                self._put_by(loaded.execution, shard, row)
        elif self._too_early(loaded, mine):
            self._early[id] = [(shard, row) for row in mine]
        elif mine or loaded.execution.wake_at is not None:
            self._begin(shard, loaded, mine)

    def _stands_still(self, loaded: LoadedExecution) -> bool:
        """Whether it is paused by itself, not only with its workflow."""
        paused = loaded.execution.status is Status.PAUSED
        return paused and EXECUTION in pauses_of(loaded.journal)

    def _too_early(self, loaded: LoadedExecution, rows: Sequence[InboxRow]) -> bool:
        """Whether it was told something before it is to begin."""
        due = loaded.envelope.deliver_at
        if loaded.execution.started_at is not None or due is None or due <= self._clock.now():
            return False
        return bool(rows) and not any(_ends(row) for row in rows)

    def _loading_again(self, id: Snowflake) -> list[tuple[OwnedShard, InboxRow]]:
        rows = self._early.pop(id)
        self._load(id, rows)
        return rows

    async def _terminate(self, shard: OwnedShard, row: InboxRow) -> None:
        """End an execution whose workflow is not registered here, and interrupt its children."""
        id = row.execution
        assert id is not None
        try:
            (loaded,) = await self._storage.load([id])
            open_calls = dict[tuple[str, int], Snowflake]()
            for event in loaded.journal:
                if event.kind is JournalKind.CALL and event.source and event.payload != ABANDONED:
                    open_calls[event.name, event.ordinal] = event.source
                elif event.kind is JournalKind.STEP:
                    open_calls.pop((event.name, event.ordinal), None)
            children = [
                Interrupt(request_id=child.execution.request_id, address=child.envelope.address)
                for child in await self._storage.load([*open_calls.values()])
                if not child.execution.status.finished
            ]
            await self._storage.interrupt(children)
            self._delivery.ring_anywhere({child.address.shard for child in children})
            if not loaded.execution.status.finished:
                await write(self._delivery, shard, _termination(shard, row, loaded, self._clock))
        except (StorageUnavailable, TimeoutError, OSError, BadBatch, OwnershipLost) as error:
            log.warning(
                "an execution could not be terminated yet",
                extra={"execution": id, "error": str(error)},
            )
            await asyncio.sleep(_AGAIN * random.uniform(0.5, 1))
            shard.give_back(row.seq, row.recipient)
            if shard.alive:
                shard.lane.ring((shard.id,))


def _ends(row: InboxRow) -> bool:
    """Whether it tells an execution to end, so that one that has not begun need not wait."""
    return row.kind is InboxKind.INTERRUPT or row.told in (INTERRUPT, TERMINATE)


def _termination(shard: OwnedShard, row: InboxRow, loaded: LoadedExecution, clock: Clock) -> Commit:
    """The end of an execution that is not in memory."""
    execution, journal = loaded.execution, loaded.journal
    exit = Terminated(decode_reason(row.envelope.payload))
    end = JournalRow(
        execution=execution.request_id,
        run=execution.run,
        position=journal[-1].position + 1 if journal else 1,
        kind=JournalKind.TERMINATED,
        name=TERMINATE,
        ordinal=0,
        at=max([clock.now(), *(event.at for event in journal[-1:])]),
        source=row.envelope.request_id,
        payload=row.envelope.payload,
    )
    return Commit(
        shard=shard.id,
        journal=[end],
        replies=[exit_reply(execution.request_id, exit, loaded.envelope.reply_to)],
        settled=[row.seq],
        execution=ExecutionUpdate(
            request_id=execution.request_id,
            run=execution.run,
            status=Status.TERMINATED,
            finished_at=clock.now(),
        ),
    )


def _paused(pauses: Mapping[str, Pause], workflow: str) -> bool:
    pause = pauses.get(workflow)
    return pause is not None and pause.paused


class _Place:
    """An execution's place in memory (a ``Resident``)."""

    __slots__ = ("_host", "_id")

    def __init__(self, host: ExecutionHost, id: Snowflake) -> None:
        self._host = host
        self._id = id

    def evict(self) -> None:
        asyncio.get_running_loop().call_soon(self._host.suspend_idle, self._id)

    def give_way(self) -> None:
        """It goes on until it has nothing to do, which is when it is suspended."""
