"""What the in-memory storages of one event loop share: rows, locks, runners and doorbells.

``memory``, ``memory_lane``, ``memory_registry`` and ``memory_doorbell`` are connections to it.
Tests break it with ``fail_next_flush``, ``end_sessions``, ``stop`` and ``interrupt_notifications``.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol
from uuid import UUID

from engine.core.clock import Clock
from engine.core.errors import StorageUnavailable
from engine.core.ids import MACHINE_IDS, MachineLease, RunnerId, ShardId, Snowflake
from engine.storage.memory_post import MemoryPost
from engine.storage.memory_rows import MemoryRows
from engine.storage.memory_shard import MemoryShard
from engine.storage.pauses import Pause
from engine.storage.protocol import RunnerRow

_MACHINE_LEASE = timedelta(minutes=10)
_MACHINE_RELEASE = timedelta(seconds=1)


class Fault(Enum):
    """How a flush goes wrong."""

    BEFORE_COMMIT = "the session ends, nothing is written"
    AFTER_COMMIT = "all is written, the session ends before it says so"
    REFUSED = "BadBatch"
    LOCKED = "BadBatch, transient"


class Session(Protocol):
    """A connection that can be ended from outside."""

    @property
    def runner(self) -> RunnerId: ...
    def terminate(self) -> None: ...


class Hearer(Protocol):
    """Where rings arrive."""

    def hear_shards(self, shards: Sequence[ShardId]) -> None: ...
    def hear_replies(self, requests: Sequence[Snowflake]) -> None: ...
    def hear_acks(self, requests: Sequence[Snowflake]) -> None: ...
    def hear_post(self, channels: Collection[UUID]) -> None: ...
    def hear_topology(self) -> None: ...
    def hear_restored(self) -> None: ...


class MemoryDatabase:
    """A database that lasts as long as the object. ``clock`` is its server's.

    Rows belong to the event loop that uses it; the runners' register may be used from the threads
    of heartbeats as well.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.mutex = threading.RLock()
        self.available = True
        self.started_at: datetime = clock.now() - timedelta(days=1)
        self.groups: dict[str, int] = {}
        self.shards: dict[ShardId, MemoryShard] = {}
        self.rows: MemoryRows = MemoryRows(clock, self.shards)
        self.post: MemoryPost = MemoryPost(clock, self.shards)
        self.runners: dict[RunnerId, RunnerRow] = {}
        self.pauses: dict[str, Pause] = {}
        self.unburied: set[RunnerId] = set()
        self.sessions: dict[Session, None] = {}
        self.hearers: dict[Hearer, None] = {}
        self.processes: set[UUID] = set()
        self._waiters: dict[Snowflake, dict[Hearer, None]] = {}
        self._machines: dict[int, tuple[UUID, datetime]] = {}
        self._faults: deque[Fault | None] = deque()

    # --- what tests break -----------------------------------------------------------------------

    def fail_next_flush(self, fault: Fault, *, after: int = 0) -> None:
        """Make a flush go wrong, once ``after`` others have gone well; the first call speaks of
        those to come, the next of those behind that one, and so on."""
        self._faults.extend([None] * after)
        self._faults.append(fault)

    @property
    def faults_ahead(self) -> int:
        """How many flushes are still to come up to and with the last that will go wrong."""
        return len(self._faults)

    def end_sessions(self, runner: RunnerId) -> int:
        """End every session of the runner, as when its process dies; how many there were."""
        with self.mutex:
            sessions = [session for session in self.sessions if session.runner == runner]
            for session in sessions:
                session.terminate()
            return len(sessions)

    def stop(self) -> None:
        """End all sessions and refuse everything until ``start``."""
        self.available = False
        self.post.clear()
        with self.mutex:
            for session in list(self.sessions):
                session.terminate()

    def start(self) -> None:
        """Answer again."""
        self.available = True
        self.interrupt_notifications()

    def interrupt_notifications(self) -> None:
        """Lose all waiters and every ring under way, and tell those who listen again."""
        self._waiters.clear()
        for hearer in list(self.hearers):
            hearer.hear_restored()

    def next_fault(self) -> Fault | None:
        return self._faults.popleft() if self._faults else None

    def check_available(self) -> None:
        if not self.available:
            raise StorageUnavailable("the in-memory database has been stopped")

    # --- shards ---------------------------------------------------------------------------------

    def create_group(self, name: str, shards: int) -> None:
        """Create the group; one that exists keeps its size."""
        if name not in self.groups:
            self.groups[name] = shards
            ids = [ShardId(name, number) for number in range(1, shards + 1)]
            self.shards.update((each, MemoryShard(each)) for each in ids)

    def disown(self, runner: RunnerId, *, in_good_order: bool) -> None:
        """Say that the shards of a runner that is gone are nobody's. ``in_good_order``: it had
        nothing in hand."""
        for shard in self.shards.values():
            if shard.runner == runner:
                shard.runner = None
                if in_good_order:
                    shard.taker = None

    # --- the doorbell ---------------------------------------------------------------------------

    def watch(self, requests: Iterable[Snowflake], hearer: Hearer) -> None:
        for request_id in requests:
            self._waiters.setdefault(request_id, {})[hearer] = None

    def unwatch(self, requests: Iterable[Snowflake], hearer: Hearer) -> None:
        for request_id in requests:
            hearers = self._waiters.get(request_id, {})
            hearers.pop(hearer, None)
            if not hearers:
                self._waiters.pop(request_id, None)

    def forget(self, hearer: Hearer) -> None:
        self.hearers.pop(hearer, None)
        self.unwatch([each for each, hearers in self._waiters.items() if hearer in hearers], hearer)

    def waiters(self, requests: Iterable[Snowflake]) -> Mapping[Hearer, list[Snowflake]]:
        """Who waits for which of these. To be told again, they have to register again."""
        found: defaultdict[Hearer, list[Snowflake]] = defaultdict(list)
        for request_id in sorted(requests):
            for hearer in self._waiters.pop(request_id, {}):
                found[hearer].append(request_id)
        return found

    # --- machine ids ----------------------------------------------------------------------------

    def lease_machine(self, holder: UUID, lease: MachineLease | None) -> MachineLease:
        """The machine id of ``lease`` if the holder still has it, else one that nobody has."""
        now = self.clock.now()
        until = now + _MACHINE_LEASE
        if lease is not None and self._machines.get(lease.machine, (None, now))[0] == holder:
            self._machines[lease.machine] = holder, until
            return MachineLease(machine=lease.machine, until=until)
        for machine in range(MACHINE_IDS):
            if machine not in self._machines or self._machines[machine][1] <= now:
                self._machines[machine] = holder, until
                return MachineLease(machine=machine, until=until)
        raise StorageUnavailable(
            f"all {MACHINE_IDS} machine ids are leased: run fewer processes, or wait until the"
            " leases of those that died run out"
        )

    def release_machine(self, holder: UUID, lease: MachineLease) -> None:
        """Let a lease run out; not at once, since ids may have been made for the milliseconds to
        come."""
        held = self._machines.get(lease.machine)
        if held is not None and held[0] == holder:
            soon = self.clock.now() + _MACHINE_RELEASE
            self._machines[lease.machine] = holder, min(held[1], soon)
