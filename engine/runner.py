"""``Runner``: serves the registered workflows and entities on its share of the shards.

Composes one *incarnation* after the other: storage, lanes, delivery, hosts, membership and
ownership under one runner id. An incarnation that its peers declared dead ends, and another begins.
"""

import asyncio
import logging
import os
import random
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self
from uuid import uuid4

from engine.client import Client
from engine.cluster.delivery import Delivery
from engine.cluster.entity import Entity, EntityHost, check_handlers
from engine.cluster.machine import MachineTenant
from engine.cluster.membership import Membership
from engine.cluster.ownership import Ownership
from engine.cluster.sharding import ClusterSharding, Sharding
from engine.cluster.singleton import Singleton, SingletonHost, singleton_shard
from engine.core.clock import Clock
from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.core.ids import EntityType, RunnerId, ShardId, Snowflake, SnowflakeGenerator
from engine.node import Node, OpenStorage, postgres
from engine.settings import Settings
from engine.storage.lane import Lane
from engine.storage.protocol import RunnerRow, Storage
from engine.workflow.definition import Workflow, definition_of
from engine.workflow.host import ExecutionHost

log: logging.Logger = logging.getLogger(__name__)

Registered = Workflow[Any, Any] | Entity | Singleton
_HORIZON_SHARE = 0.5
_THREADS = 32


class Runner:
    """Register what it serves, then ``await runner.run()``, or enter it inside another program.

    ``groups`` are the shard groups it takes shards of. ``client`` is a client of this process.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        groups: Sequence[str] | None = None,
        *,
        clock: Clock | None = None,
        open_storage: OpenStorage | None = None,
    ) -> None:
        self.settings: Settings = settings or Settings()
        self._groups = tuple(groups or self.settings.groups)
        self._open_storage = open_storage or postgres(self.settings)
        self._node = Node(self.settings, clock=clock, open_storage=self._open_storage)
        self._client = Client(self.settings, node=self._node)
        self._registered: dict[str, Registered] = {}
        self._incarnation: _Incarnation | None = None
        self._stopping = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._stack = AsyncExitStack()

    def register(self, *prototypes: Registered) -> Self:
        """Serve these objects' types. Two of one name are refused with ``ConfigurationError``."""
        for prototype in prototypes:
            if not isinstance(prototype, Workflow | Entity | Singleton):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"{prototype!r} cannot be registered; register instances of Workflow, Entity"
                    " and Singleton classes, such as Fulfil(gateway)"
                )
            if prototype.name in self._registered:
                raise ConfigurationError(
                    f"two definitions are registered as {prototype.name!r}; give one another name"
                )
            if isinstance(prototype, Workflow):
                definition_of(type(prototype)).check(prototype)
            elif isinstance(prototype, Entity):
                check_handlers(type(prototype))
            self._registered[prototype.name] = prototype
            if self._incarnation is not None:
                self._incarnation.serve(prototype)
        return self

    @property
    def client(self) -> Client:
        """A client that shares this process's connections; usable while the runner is entered."""
        return self._client

    @property
    def sharding(self) -> Sharding:
        """Messages to entities, directly; usable while the runner is entered."""
        return ClusterSharding(
            storage=self._node.storage,
            outbox=self._node.outbox,
            replies=self._node.replies,
            ids=self._node.ids,
            delivery=lambda: None if self._incarnation is None else self._incarnation.delivery,
            group_of=self._group_of,
        )

    def _group_of(self, entity_type: EntityType) -> str:
        registered = self._registered.get(entity_type)
        return "default" if registered is None else registered.shard_group

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
        shards go to the peers. A second signal cuts that short."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        main = asyncio.current_task()

        def signalled() -> None:
            if stop.is_set() and main is not None:
                self._cut()
                main.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        try:
            async with self:
                log.info(
                    "runner serves",
                    extra={"runner": str(self.id), "types": sorted(self._registered)},
                )
                await stop.wait()
                log.info(
                    "runner drains: what runs has %g s to end, a second signal cuts that short",
                    self.settings.grace_period.total_seconds(),
                    extra={"runner": str(self.id)},
                )
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def __aenter__(self) -> Self:
        if not self._registered:
            raise ConfigurationError(
                "nothing is registered; call register(Fulfil(...), ...) before running"
            )
        self._stopping = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._node)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._stopping.set)
            group.create_task(self._incarnate(), name="runner")
            try:
                await self._ready
            except StorageUnavailable:
                self._stopping.set()
                raise
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping.set()
        await self._stack.aclose()

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
                    self._node.local = incarnation.ring
                    failures = 0
                    if not ready.done():
                        ready.set_result(None)
                    await incarnation.ended(self._stopping)
            except (StorageUnavailable, TimeoutError, OSError) as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                failures += 1
                log.warning("runner cannot come back yet", extra={"error": str(error)})
                await asyncio.sleep(min(5.0, 0.1 * 2**failures) * random.uniform(0.5, 1))
            except BaseException as error:
                if not ready.done() and isinstance(error, Exception):
                    ready.set_exception(error)
                    return
                raise
            finally:
                self._incarnation = None
                self._node.local = lambda shards: shards


class _Incarnation:
    """A runner under one id, from its registration to its leave or its loss."""

    def __init__(
        self,
        *,
        settings: Settings,
        node: Node,
        groups: Sequence[str],
        registered: Mapping[str, Registered],
        open_storage: OpenStorage,
    ) -> None:
        self.id = RunnerId(uuid4())
        self._settings = settings
        self._node = node
        self._groups = groups
        self._registered = registered
        self.storage: Storage = open_storage(self.id, node.clock)
        self.ids = SnowflakeGenerator(now=node.clock.now)
        self.delivery = Delivery(
            runner=self.id,
            clock=node.clock,
            doorbell=self.storage.doorbell,
            grace=settings.handover_limit,
            finished=node.replies.finished,
            moved=self._lanes_moved,
        )
        self._executions: ExecutionHost | None = None
        self._singletons = SingletonHost(spawn=self.spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self._membership: Membership | None = None
        self._ownership: Ownership | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings, storage, clock = self._settings, self.storage, self._node.clock
        async with AsyncExitStack() as stack:
            stack.push_async_callback(storage.close)
            await storage.open()
            await storage.ensure_groups(self._groups)
            lease = await storage.lease_machine(None)
            self.ids.renew(lease)
            stack.push_async_callback(self._release_machine)
            await stack.enter_async_context(self._group)
            stack.callback(self._cancel_tasks)
            tenant = MachineTenant(generator=self.ids, clock=clock, lease=storage.lease_machine)
            # Of their own, so that steps that take long keep no host name from being looked up.
            threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="outlast-step")
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            self._executions = ExecutionHost(
                delivery=self.delivery,
                storage=storage,
                clock=clock,
                ids=self.ids,
                spawn=self.spawn,
                await_exit=self._node.replies.wait,
                renew_lease=tenant.renew,
                threads=threads,
                suspend_after=settings.suspend_after,
            )
            self.delivery.serve_executions(self._executions)
            self.delivery.follow(self._singletons)
            for prototype in self._registered.values():
                self.serve(prototype)
            self._membership = Membership(
                runner=RunnerRow(
                    id=self.id,
                    groups=self._groups,
                    weight=settings.weight,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=_version(),
                    types={name: kind_of(each) for name, each in self._registered.items()},
                    machine=lease.machine,
                ),
                open_registry=lambda: storage.open_registry(self.id),
                ring_topology=storage.doorbell.ring_topology,
                declared_dead=self.delivery.drop_all,
                tenant=tenant,
                interval=settings.heartbeat_interval,
                ttl=settings.time_to_live,
                block_limit=settings.block_limit,
            )
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
                poll=settings.poll_interval,
            )
            await stack.enter_async_context(self._ownership)
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
            self.delivery.grace = self._settings.grace_period
            try:
                async with asyncio.timeout(self._settings.grace_period.total_seconds()):
                    await self._membership.drain()
            except TimeoutError:
                log.warning("stopping without telling the peers first: the database is away")

    @property
    def resident(self) -> int:
        return 0 if self._executions is None else len(self._executions)

    def serve(self, prototype: Registered) -> None:
        if isinstance(prototype, Workflow):
            assert self._executions is not None
            self._executions.register(prototype)
        elif isinstance(prototype, Singleton):
            group = prototype.shard_group
            if group in self._groups:
                shard = singleton_shard(group, self.storage.shards_in(group), prototype.name)
                self._singletons.register(prototype.name, shard, prototype.run)
        else:
            host = EntityHost(
                prototype,
                delivery=self.delivery,
                clock=self._node.clock,
                spawn=self.spawn,
            )
            self.delivery.serve_entity(prototype.name, host)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a step or handler in a task that ends with the incarnation at the latest."""
        task = self._group.create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it began
        return task

    def ring(self, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        return list(self.delivery.ring(shards))

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _poll(self) -> Any:
        healthy = self.storage.doorbell.healthy
        settings = self._settings
        return settings.poll_interval if healthy else settings.poll_interval_degraded

    def _lanes_moved(self) -> None:
        if self._ownership is not None:
            self._ownership.poke()

    async def _release_machine(self) -> None:
        if self.ids.lease is None:
            return
        try:
            await self.storage.release_machine(self.ids.lease)
        except (StorageUnavailable, TimeoutError, OSError) as error:
            log.info("a machine id's lease is left to run out", extra={"error": str(error)})

    # --- the doorbell's listener ------------------------------------------------------------------

    def shards_rung(self, shards: Sequence[ShardId]) -> None:
        self.delivery.ring(shards)

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        """Waiters of this process listen on the node's channel."""

    def topology_rung(self) -> None:
        if self._ownership is not None:
            self._ownership.topology_rung()

    def doorbell_restored(self) -> None:
        for lane in self.delivery.lanes:
            lane.ring_all()
        self.topology_rung()


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """Nothing a step or handler does may end the runner."""
    try:
        await work
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        log.exception("a task of the runner failed; its message is delivered again to a next owner")


def kind_of(prototype: Registered) -> str:
    """How a registered type is shown and found: its kind and shard group."""
    match prototype:
        case Workflow():
            kind = "workflow"
        case Entity():
            kind = "entity"
        case Singleton():
            kind = "singleton"
    return f"{kind}:{prototype.shard_group}"


def _version() -> str:
    try:
        return version("outlast")
    except PackageNotFoundError:
        return "unknown"
