"""``Runner``: serves the registered workflows and entities on its share of the shards.

Composes one *incarnation* after the other: storage, lanes, delivery, hosts, membership and
ownership under one runner id. An incarnation that its peers declared dead ends, and another begins.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self
from uuid import uuid4

from engine.client import Client
from engine.cluster.call import IN_HAND
from engine.cluster.callers import Callers
from engine.cluster.cluster_sharding import ClusterSharding, Place
from engine.cluster.cron import Cron, cron_type
from engine.cluster.cron_desk import CronDesk, method_cron
from engine.cluster.cron_host import CronHost
from engine.cluster.delivery import Delivery
from engine.cluster.entity import Entity, check_handlers
from engine.cluster.entity_host import EntityHost
from engine.cluster.events import EntityRegistered, RegistrationEvents, SingletonRegistered
from engine.cluster.machine import MachineTenant
from engine.cluster.membership import Membership
from engine.cluster.message import Message
from engine.cluster.ownership import Ownership
from engine.cluster.postman import Postman
from engine.cluster.queue import Queue, queue_of
from engine.cluster.queue_desk import desk_of
from engine.cluster.queue_door import QueueDoor
from engine.cluster.queue_home import refuse_to_strand
from engine.cluster.queue_host import QueueHost
from engine.cluster.reception import Reception
from engine.cluster.residency import Residency
from engine.cluster.roster import Roster
from engine.cluster.served import Kind, described
from engine.cluster.sharding import Sharding
from engine.cluster.singleton import Singleton, SingletonHost, singleton_shard
from engine.cluster.state_loader import StateLoader
from engine.cluster.streams import Streams
from engine.cluster.timetable import Rules, Timetable
from engine.cluster.view import View
from engine.core.clock import Clock
from engine.core.errors import ConfigurationError, ShuttingDown, StorageUnavailable, innermost
from engine.core.ids import EntityType, RunnerId, ShardId, Snowflake, SnowflakeGenerator
from engine.core.retry import again_in
from engine.health import HealthPort, RunnerHealth
from engine.node import Node, OpenStorage, postgres
from engine.running_tasks import RunningTasks
from engine.settings import Settings, given
from engine.storage.lane import Lane
from engine.storage.protocol import RunnerLoad, RunnerRow, Storage
from engine.storage.queues import queue_type
from engine.workflow.cron import WorkflowCron, workflow_cron, workflow_of
from engine.workflow.definition import Workflow, definition_of
from engine.workflow.host import ExecutionHost
from engine.workflow.pruner import Pruner
from engine.workflow.step_threads import StepThreads

log: logging.Logger = logging.getLogger(__name__)

Registered = (
    Workflow[Any, Any] | Entity | Queue[Any, Any] | Singleton | Cron | WorkflowCron[Any, Any]
)
_HORIZON_SHARE = 0.5
_POST_POLL = timedelta(seconds=60)
_THREADS = 32
_LEAVE_WITHIN = 3.0


class Runner:
    """Register what it serves, then ``await runner.run()``, or enter it inside another program.

    ``groups`` are the shard groups it takes shards of. ``client`` is a client of this process.
    ``ConfigurationError`` when a queue still has items in another group than its class says.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        groups: Sequence[str] | None = None,
        *,
        clock: Clock | None = None,
        open_storage: OpenStorage | None = None,
    ) -> None:
        self.settings: Settings = given(settings)
        self._groups = tuple(groups or self.settings.groups)
        self._open_storage = open_storage or postgres(self.settings)
        self._node = Node(self.settings, clock=clock, open_storage=self._open_storage)
        self._client = Client(self.settings, node=self._node)
        self._registered: list[Registered] = []
        self._incarnation: _Incarnation | None = None
        self._events = RegistrationEvents()
        self._serving = False
        self._stopping = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._main: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._sharding = ClusterSharding(
            place=self._place(),
            storage=self._node.storage,
            outbox=self._node.outbox,
            sender=self._node.sender,
            replies=self._node.replies,
            acknowledger=self._node.acknowledger,
            volatile=self._node.mail.volatile,
            ids=self._node.ids,
        )

    def register(self, *prototypes: Registered) -> Self:
        """Serve these objects' types, at once if it runs. Two of one name are refused with
        ``ConfigurationError``, but for several versions of one workflow; ``ShuttingDown`` once it
        stops."""
        if self._stopping.is_set():
            raise ShuttingDown("this runner is stopping; register with another one")
        for prototype in prototypes:
            if not isinstance(prototype, Workflow | Entity | Queue | Singleton | Timetable):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"{prototype!r} cannot be registered; register instances of Workflow, Entity,"
                    " Queue, Singleton and Cron classes, such as Fulfil(gateway)"
                )
            for other in self._registered:
                if other.name == prototype.name:
                    _check_beside(other, prototype)
            if isinstance(prototype, Workflow):
                definition_of(type(prototype)).check(prototype)
            elif isinstance(prototype, Entity):
                check_handlers(type(prototype))
            elif isinstance(prototype, Queue):
                queue_of(type(prototype))
            elif isinstance(prototype, WorkflowCron):
                workflow_of(prototype)
            if isinstance(prototype, Timetable):
                Rules.of(prototype)
            self._registered.append(prototype)
            if self._incarnation is not None:
                self._incarnation.serve_registered()
            self._events.tell(_event_of(prototype))
        return self

    @property
    def registered(self) -> Sequence[Registered]:
        """What it serves, in the order of its registration."""
        return tuple(self._registered)

    @property
    def client(self) -> Client:
        """A client that shares this process's connections; usable while the runner is entered."""
        return self._client

    @property
    def sharding(self) -> Sharding:
        """Messages to entities, directly; usable while the runner is entered."""
        return self._sharding

    def _place(self) -> Place:
        return Place(
            entered=lambda: self._node.entered,
            serving=lambda: self._serving,
            delivery=lambda: None if self._incarnation is None else self._incarnation.delivery,
            group_of=self._group_of,
            entity=self._entity,
            register=self._register,
            know=self._node.know,
            ring=self._node.ring_shards,
            events=self._events.subscribe,
            shut_down=self._shut_down,
        )

    def _group_of(self, name: str) -> str | None:
        return next((each.shard_group for each in self._registered if each.name == name), None)

    def _entity(self, name: str) -> type[Entity] | None:
        named = (each for each in self._registered if each.name == name)
        return next((type(each) for each in named if isinstance(each, Entity)), None)

    async def _register(self, prototype: Entity | Singleton) -> None:
        self.register(prototype)
        if self._node.entered:
            await self._node.know(prototype.shard_group)

    @property
    def id(self) -> RunnerId | None:
        """The id of the present incarnation; None while there is none."""
        return None if self._incarnation is None else self._incarnation.id

    @property
    def epochs(self) -> Mapping[ShardId, int]:
        """The shards this runner owns now, each with the epoch it owns it under."""
        if self._incarnation is None:
            return {}
        return {id: shard.epoch for id, shard in self._incarnation.delivery.shards.items()}

    @property
    def resident(self) -> int:
        """How many executions are in memory."""
        return 0 if self._incarnation is None else self._incarnation.resident

    @property
    def threads_in_use(self) -> int:
        """How many steps run in threads."""
        return 0 if self._incarnation is None else self._incarnation.threads_in_use

    def health(self) -> RunnerHealth:
        """How it fares. Ready means that it takes work: it is entered and not draining, its
        heartbeats get through, and at least one lane is open. Asks nothing of the database."""
        incarnation = self._incarnation
        if self._stopping.is_set():
            why = "it drains: it takes nothing new"
        elif incarnation is None:
            why = "it has not begun to serve, or its peers declared it dead and it comes back"
        else:
            return incarnation.health()
        return RunnerHealth(ready=False, why=why, runner=self.id)

    def crash(self) -> None:
        """For tests: cut every lane's session, as a lost network would."""
        self._cut()

    def _cut(self) -> None:
        """End every lane's session: all work on their shards is dropped, and nothing is awaited."""
        if self._incarnation is not None:
            for lane in self._incarnation.delivery.lanes:
                lane.terminate()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain: running steps end within the grace period,
        shards go to the peers. A second signal cuts that short: the process ends within seconds,
        whatever runs in it."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        main = asyncio.current_task()
        assert main is not None
        exits: list[threading.Timer] = []

        def signalled(number: signal.Signals) -> None:
            if stop.is_set():
                self._cut()
                main.cancel()
                exits.append(_exit_hard(number, within=0 if exits else _LEAVE_WITHIN))
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled, number)
        try:
            async with self:
                types = sorted({each.name for each in self._registered})
                log.info("runner serves", extra={"runner": str(self.id), "types": types})
                assert self._main is not None
                self._main.add_done_callback(lambda _: stop.set())  # by sharding.shutdown()
                await stop.wait()
                log.info(
                    "runner drains: what runs has %g s to end, a second signal cuts that short",
                    self.settings.grace_period.total_seconds(),
                    extra={"runner": str(self.id)},
                )
        finally:
            for exit in exits:
                exit.cancel()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def __aenter__(self) -> Self:
        if not self._registered:
            raise ConfigurationError(
                "nothing is registered; call register(Fulfil(...), ...) before running"
            )
        try:
            await self._begin()
        except BaseExceptionGroup as group:
            raise innermost(group) from None
        return self

    async def _begin(self) -> None:
        self._stopping = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        settings = self.settings
        async with AsyncExitStack() as stack:
            if settings.health_port is not None:
                port = HealthPort(
                    host=settings.health_host, port=settings.health_port, look=self.health
                )
                await stack.enter_async_context(port)
            await stack.enter_async_context(self._node)
            for name in {*self._groups, *(each.shard_group for each in self._registered)}:
                await self._node.know(name)
            for each in self._registered:
                if isinstance(each, Queue) and each.shard_group in self._groups:
                    await refuse_to_strand(self._node.storage, queue_of(type(each)))
            await self._node.outbox.next_id()  # whoever makes ids by himself finds a lease
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._stop)
            self._main = group.create_task(self._incarnate(), name="runner")
            try:
                await self._ready
            except StorageUnavailable:
                self._stop()
                raise
            self._serving = not self._stopping.is_set()
            self._stack = stack.pop_all()

    async def __aexit__(self, *exc: object) -> None:
        self._stop()
        await self._stack.aclose()

    def _stop(self) -> None:
        """Begin to stop: take nothing new, and let the incarnation drain and end."""
        self._serving = False
        self._stopping.set()
        self._events.close()

    async def _shut_down(self) -> None:
        self._stop()
        if self._main is not None:
            await asyncio.wait([self._main])

    async def _incarnate(self) -> None:
        """One incarnation after the other, until the runner stops."""
        ready = self._ready
        assert ready is not None
        failures = 0
        while not self._stopping.is_set():
            incarnation = _Incarnation(
                settings=self.settings,
                node=self._node,
                groups=self._groups,
                registered=self._registered,
                open_storage=self._open_storage,
            )
            try:
                async with incarnation:
                    self._incarnation = incarnation
                    incarnation.serve_registered()  # what came while it was being entered
                    self._node.delivery = incarnation.delivery
                    self._node.acknowledger.producers = incarnation.streams
                    self._node.mail.volatile.local = incarnation.reception
                    failures = 0
                    if not ready.done():
                        ready.set_result(None)
                    await incarnation.ended(self._stopping)
            except Exception as error:
                cause = innermost(error)
                if not ready.done():
                    ready.set_exception(cause)
                    return
                if not isinstance(cause, StorageUnavailable | TimeoutError | OSError):
                    raise
                failures += 1
                log.warning("runner cannot come back yet", extra={"error": str(cause)})
                await asyncio.sleep(again_in(failures, first=0.1))
            finally:
                self._incarnation = None
                self._node.delivery = None
                self._node.acknowledger.producers = None
                self._node.mail.volatile.local = None


class _Incarnation:
    """A runner under one id, from its registration to its leave or its loss."""

    def __init__(
        self,
        *,
        settings: Settings,
        node: Node,
        groups: Sequence[str],
        registered: Sequence[Registered],
        open_storage: OpenStorage,
    ) -> None:
        self.id = RunnerId(uuid4())
        self._settings = settings
        self._node = node
        self._groups = groups
        self._registered = registered
        self._served = 0
        self._tasks = _running_tasks()
        self.storage: Storage = open_storage(self.id, node.clock)
        self.ids = SnowflakeGenerator(now=node.clock.now)
        self._residency = Residency(settings.max_resident)
        self.delivery = Delivery(
            runner=self.id,
            clock=node.clock,
            doorbell=self.storage.doorbell,
            grace=settings.handover_limit,
            replied=node.replies.replied,
            moved=self._lanes_moved,
            acquired=node.replies.read_again,
            streams=self.storage.streams,
            spawn=self._tasks.spawn,
            residency=self._residency,
            max_deliveries=settings.max_deliveries,
            unregistered_timeout=settings.unregistered_timeout,
            settled_after=settings.statement_timeout * 1.5,
        )
        self._executions: ExecutionHost | None = None
        self._threads: StepThreads | None = None
        self._singletons = SingletonHost(spawn=self._tasks.spawn, end=self._tasks.end)
        self._crons: CronHost | None = None
        self._roster = Roster(self.storage.shards_in)
        self._queues = QueueHost(
            delivery=self.delivery,
            storage=self.storage,
            clock=node.clock,
            roster=self._roster,
            spawn=self._tasks.spawn,
        )
        self._states = StateLoader(storage=self.storage, spawn=self._tasks.spawn)
        self.streams = Streams(
            storage=self.storage,
            clock=node.clock,
            window=settings.stream_window,
            abandoned_after=settings.stream_abandoned_after,
            poll=self._poll,
            left=node.replies.watch,
            limit=node.limit,
        )
        self.reception = Reception(
            id=self.id,
            home=node.storage.identity,
            shards=self.delivery.shards,
            shards_in=self.storage.shards_in,
            postbox=node.mail.postbox,
            producers=self.streams,
            arrived=node.mail.volatile.arrived,
        )
        self._postman = Postman(
            storage=self.storage, receive=self.reception.receive, poll=self._poll_post
        )
        self._callers = Callers(
            storage=self.storage,
            reception=self.reception,
            postman=self._postman,
            ttl=settings.time_to_live,
        )
        self._group = asyncio.TaskGroup()
        self._membership: Membership | None = None
        self._ownership: Ownership | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings, storage, clock = self._settings, self.storage, self._node.clock
        async with AsyncExitStack() as stack:
            stack.push_async_callback(storage.close)
            await storage.open()
            await storage.ensure_groups(self._groups_in_use())
            lease = await storage.lease_machine(None)
            self.ids.renew(lease)
            self._node.outbox.lender = self.ids
            stack.push_async_callback(self._release_machine)
            await stack.enter_async_context(self.streams)
            await stack.enter_async_context(self._group)
            stack.push_async_callback(self._tasks.end_all)
            tenant = MachineTenant(generator=self.ids, clock=clock, lease=storage.lease_machine)
            # Of their own, so that steps that take long keep no host name from being looked up.
            threads = self._threads = StepThreads(_THREADS)
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            self._executions = ExecutionHost(
                delivery=self.delivery,
                storage=storage,
                clock=clock,
                ids=self.ids,
                spawn=self._tasks.spawn,
                await_exit=self._node.replies.wait,
                renew_lease=tenant.renew,
                threads=threads,
                limit=self._node.limit,
                suspend_after=settings.suspend_after,
                max_resident=settings.max_resident_executions,
            )
            self.delivery.serve_executions(self._executions)
            self.delivery.follow(self._singletons)
            self.delivery.follow(self.streams)
            self.delivery.follow(self.reception)
            self._crons = CronHost(
                delivery=self.delivery,
                storage=storage,
                clock=clock,
                ids=self.ids,
                renew_lease=tenant.renew,
                replies=self._node.replies,
                spawn=self._tasks.spawn,
            )
            self.delivery.follow(self._crons)
            self.delivery.follow(self._queues)
            self.serve_registered()
            self._membership = Membership(
                runner=RunnerRow(
                    id=self.id,
                    groups=self._groups,
                    weight=settings.weight,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=_version(),
                    types=self._types(),
                    machine=lease.machine,
                ),
                open_registry=lambda: storage.open_registry(self.id),
                ring_topology=storage.doorbell.ring_topology,
                declared_dead=self.delivery.drop_all,
                tenants=(tenant, self._node_tenant()),
                load=self._load,
                interval=settings.heartbeat_interval,
                ttl=settings.time_to_live,
                block_limit=settings.block_limit,
            )
            self._membership.watch(self._viewed)
            stack.callback(self.reception.close)
            await stack.enter_async_context(self._postman)
            await stack.enter_async_context(self._callers)
            await stack.enter_async_context(self._membership)
            for index in range(settings.lanes):
                lane = Lane(
                    index=index,
                    open_session=partial(storage.open_lane, self.id, index),
                    sink=self.delivery,
                    poll=self._poll,
                    horizon=settings.suspend_after * _HORIZON_SHARE,
                )
                self.delivery.lanes.append(await stack.enter_async_context(lane))
            self._ownership = Ownership(
                host=self.delivery,
                views=self._membership,
                groups=self._groups,
                shards_in=storage.shards_in,
                ring_topology=storage.doorbell.ring_topology,
                holders=storage.lock_holders,
                poll=settings.poll_interval,
            )
            await stack.enter_async_context(self._ownership)
            pruner = Pruner(
                storage=storage,
                clock=clock,
                delivery=self.delivery,
                served=self._executions.served,
                interval=settings.prune_interval,
                retention=settings.retention,
                retention_failed=settings.retention_failed,
            )
            await stack.enter_async_context(pruner)
            storage.doorbell.listen(self)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def ended(self, stopping: asyncio.Event) -> None:
        """Until the runner stops (then drained of new shards) or this incarnation is lost."""
        assert self._membership is not None
        waits = [
            self._group.create_task(event.wait()) for event in (stopping, self._membership.lost)
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if stopping.is_set() and not self._membership.lost.is_set():
            self.delivery.stop(self._settings.grace_period)
            try:
                async with asyncio.timeout(self._settings.grace_period.total_seconds()):
                    await self._membership.drain()
            except TimeoutError:
                log.warning("stopping without telling the peers first: the database is away")

    @property
    def resident(self) -> int:
        return 0 if self._executions is None else len(self._executions)

    @property
    def threads_in_use(self) -> int:
        return 0 if self._threads is None else self._threads.in_use

    def health(self) -> RunnerHealth:
        """Of one that is not told to stop."""
        load, membership = self._in_hand(), self._membership
        if membership is None or not membership.healthy:
            trouble = (
                "its heartbeats do not get through, as when the database is away: its peers may"
                " take it for dead"
            )
        elif load.lanes == 0:
            trouble = "no lane is open: it can own no shard"
        else:
            trouble = None
        return RunnerHealth(
            ready=trouble is None,
            why=trouble or "it serves",
            runner=self.id,
            lanes=load.lanes,
            shards=load.shards,
            entities=load.entities,
            executions=load.executions,
            beat_age=None if membership is None else membership.beat_age,
            lag=timedelta(seconds=load.lag),
            notifications=self.storage.doorbell.healthy,
        )

    def serve_registered(self) -> None:
        """Serve what is registered and not served yet, and say so in the register."""
        new = self._registered[self._served :]
        for each in new:
            self._served += 1
            self._serve(each)
        if new and self._membership is not None:
            self._membership.announce(self._types())

    def _serve(self, prototype: Registered) -> None:
        if isinstance(prototype, Workflow):
            assert self._executions is not None
            self._executions.register(prototype)
            self.reception.serve_entity(prototype.name, self._executions)
        elif isinstance(prototype, Singleton):
            group = prototype.shard_group
            if group in self._groups:
                shard = singleton_shard(group, self.storage.shards_in(group), prototype.name)
                self._singletons.register(prototype.name, shard, prototype.run)
        elif isinstance(prototype, Entity):
            self._serve_entity(prototype)
        elif isinstance(prototype, Queue):
            if prototype.shard_group in self._groups:
                self._serve_queue(prototype)
        elif prototype.shard_group in self._groups:
            shards_in = self.storage.shards_in
            assert self._crons is not None
            if isinstance(prototype, Cron):
                self._crons.register(method_cron(prototype, shards_in=shards_in))
            else:
                self._crons.register(workflow_cron(prototype, shards_in=shards_in))
            self._serve_entity(CronDesk(prototype, crons=self._crons))

    def _serve_queue(self, queue: Queue[Any, Any]) -> None:
        definition = queue_of(type(queue))
        door = QueueDoor(
            definition,
            queues=self._queues,
            delivery=self.delivery,
            clock=self._node.clock,
            spawn=self._tasks.spawn,
        )
        door.desk = self._entity_host(
            desk_of(queue, partial(self._queues.ask, definition.name)), door.done
        )
        self._residency.reopened.append(door.begin)
        self.delivery.serve_entity(queue_type(definition.name), door)
        self._queues.register(definition)

    def _entity_host(
        self, prototype: Entity, done: Callable[[Message], None] | None = None
    ) -> EntityHost:
        return EntityHost(
            prototype,
            delivery=self.delivery,
            clock=self._node.clock,
            spawn=self._tasks.spawn,
            residency=self._residency,
            states=self._states,
            streams=self.streams,
            limit=self._node.limit,
            done=done,
        )

    def _serve_entity(self, prototype: Entity) -> None:
        host = self._entity_host(prototype)
        self.delivery.serve_entity(prototype.name, host)
        self.reception.serve_entity(prototype.name, host)

    def _groups_in_use(self) -> Sequence[str]:
        """Those it takes shards of, and those that its crons start workflows in."""
        targets = {
            each.workflow.shard_group for each in self._registered if isinstance(each, WorkflowCron)
        }
        return sorted({*self._groups, *targets})

    def _types(self) -> dict[str, str]:
        versions: dict[str, list[int]] = defaultdict(list)
        for each in self._registered:
            if isinstance(each, Workflow):
                versions[each.name].append(each.version)
        return {each.name: _described(each, versions[each.name]) for each in self._registered}

    def _load(self) -> RunnerLoad:
        """For heartbeats alone: whether it is crowded is told of the time since the last."""
        return replace(self._in_hand(), crowded=self._residency.crowded())

    def _in_hand(self) -> RunnerLoad:
        return RunnerLoad(
            lanes=sum(lane.connected for lane in self.delivery.lanes),
            shards=len(self.delivery.shards),
            entities=self.delivery.active - self.resident,
            executions=self.resident,
            lag=0.0 if self._membership is None else self._membership.lag.total_seconds(),
        )

    def _node_tenant(self) -> MachineTenant:
        """Of the ids that the process itself makes; its runner has others."""
        node = self._node
        return MachineTenant(generator=node.ids, clock=node.clock, lease=node.storage.lease_machine)

    def _poll(self) -> timedelta:
        return self._poll_unless_deaf(self._settings.poll_interval)

    def _poll_post(self) -> timedelta:
        """Rarely: each heartbeat says whether there is any."""
        return self._poll_unless_deaf(_POST_POLL)

    def _poll_unless_deaf(self, interval: timedelta) -> timedelta:
        healthy = self.storage.doorbell.healthy
        return interval if healthy else self._settings.poll_interval_degraded

    def _viewed(self, view: View) -> None:
        self._roster.follow(view)
        if view.post:
            self._postman.rung()
        if self._executions is not None:
            self._executions.pause(view.pauses)

    def _lanes_moved(self) -> None:
        if self._ownership is not None:
            self._ownership.poke()

    async def _release_machine(self) -> None:
        self._node.outbox.lender = None
        if self.ids.lease is None:
            return
        try:
            await self.storage.release_machine(self.ids.lease)
        except (StorageUnavailable, TimeoutError, OSError) as error:
            log.info("a machine id's lease is left to run out", extra={"error": str(error)})

    # --- the doorbell's listener ------------------------------------------------------------------

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None:
        if old:
            self.delivery.read_again(shards)
        self.delivery.ring(shards)

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        """Waiters of this process listen on the node's channel."""

    def acks_rung(self, requests: Sequence[Snowflake]) -> None:
        self.streams.rung(requests)

    def post_rung(self) -> None:
        self._postman.rung()

    def topology_rung(self) -> None:
        if self._ownership is not None:
            self._ownership.topology_rung()

    def doorbell_restored(self) -> None:
        self.delivery.read_again(self.delivery.owned())
        for lane in self.delivery.lanes:
            lane.ring_all()
        self.streams.restored()
        self._postman.rung()
        self.topology_rung()


def _exit_hard(number: signal.Signals, *, within: float) -> threading.Timer:
    """End the process unless it has ended by then; from a thread, as the loop may be busy."""

    def leave() -> None:
        log.error("the process does not end by itself after a second signal: it is ended")
        faulthandler.dump_traceback(all_threads=True)
        os._exit(128 + number)

    timer = threading.Timer(within, leave)
    timer.daemon = True
    timer.start()
    return timer


def _running_tasks() -> RunningTasks:
    context = copy_context()
    context.run(IN_HAND.set, True)
    return RunningTasks(context=context)


def _check_beside(other: Registered, prototype: Registered) -> None:
    """Only versions of one workflow may have one name."""
    if not (isinstance(other, Workflow) and isinstance(prototype, Workflow)):
        raise ConfigurationError(
            f"two definitions are registered as {prototype.name!r}; give one another name"
        )
    if other.version == prototype.version:
        raise ConfigurationError(
            f"two workflows are registered as version {prototype.version} of {prototype.name!r};"
            " give one another name, or as its successor another 'version'"
        )
    if other.shard_group != prototype.shard_group:
        raise ConfigurationError(
            f"the versions of {prototype.name!r} are of different shard groups; an execution stays"
            " in its group, so give them one"
        )


def _described(prototype: Registered, versions: Sequence[int]) -> str:
    """How a registered type is shown and found: its kind and shard group, and its versions."""
    kind: Kind
    match prototype:
        case Workflow():
            kind = "workflow"
        case Entity():
            kind = "entity"
        case Queue():
            kind = "queue"
        case Singleton():
            kind = "singleton"
        case Cron() | WorkflowCron():
            kind = "cron"
    return described(kind, prototype.shard_group, versions)


def _event_of(prototype: Registered) -> EntityRegistered | SingletonRegistered:
    if isinstance(prototype, Singleton):
        return SingletonRegistered(prototype.name, prototype.shard_group)
    if isinstance(prototype, Timetable):
        return EntityRegistered(cron_type(prototype.name), prototype.shard_group)
    if isinstance(prototype, Queue):
        return EntityRegistered(queue_type(prototype.name), prototype.shard_group)
    return EntityRegistered(EntityType(prototype.name), prototype.shard_group)


@cache
def _version() -> str:
    try:
        return version("outlast")
    except PackageNotFoundError:
        return "unknown"
