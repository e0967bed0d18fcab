"""Where sweeps begin to look: behind what has been seen, and never behind what has not."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from engine.cluster import delivery as deliveries
from engine.cluster import shard as shards
from engine.cluster.shard import OwnedShard
from engine.core.envelope import EnvelopeRequest
from engine.core.ids import (
    EntityAddress,
    EntityId,
    EntityType,
    RunnerId,
    ShardId,
    Snowflake,
    entity_key,
)
from engine.storage.lane import Lane
from engine.storage.protocol import STARTS, InboxKind, InboxRow, Sweep
from engine.testing import TestCluster
from tests.cluster.quick import Quick, delivery_of

Range = tuple[int, int]
ALWAYS: Range = (1, 2)
"""One that goes on for ever."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shards, "monotonic", clock)
    monkeypatch.setattr(shards, "_READ_ALL_EVERY", 60.0)
    monkeypatch.setattr(shards, "_RIPE_AFTER", 2.0)
    return clock


async def owned_shard() -> OwnedShard:
    async def no_session() -> Any:
        raise OSError

    lane = Lane(
        index=0,
        open_session=no_session,
        sink=None,  # type: ignore[arg-type]
        poll=lambda: timedelta(seconds=5),
        horizon=timedelta(0),
    )
    return OwnedShard(
        id=ShardId("default", 1),
        epoch=1,
        lane=lane,
        runner=RunnerId(uuid4()),
        settled_after=timedelta(seconds=15),
    )


def sweep(
    shard: OwnedShard,
    clock: Clock,
    *,
    at: float,
    last: int,
    read_to: int | None = None,
    running: Range = ALWAYS,
    thorough: bool = True,
) -> int:
    """Sweep all there is up to ``last``, or only rows up to ``read_to``; where the sweep began to
    look. ``running`` are the first transaction that writes now, and the next."""
    clock.now = 100 + at
    shard.begin_sweep(crowded=False, thorough=thorough)
    floor = shard.floor
    oldest, newest = running
    found = swept(more=read_to is not None, newest=newest)
    shard.end_sweep(found, last=last, read_to=read_to or 0, oldest=oldest)
    return floor


def swept(*, more: bool = False, newest: int = 0) -> Sweep:
    return Sweep(rows=[], due=[], next_due=None, more=more, now=NOW, newest=newest)


async def test_a_shard_is_not_read_from_the_beginning_once_all_that_wrote_has_ended(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    assert sweep(shard, clock, at=0, last=1000, running=(5, 9)) == 0
    assert sweep(shard, clock, at=1, last=1100, running=(9, 11)) == 0
    assert sweep(shard, clock, at=3, last=1100, running=(8, 12)) == 0
    assert sweep(shard, clock, at=4, last=1100, running=(11, 13)) == 0  # 11 may have one below 1000
    assert sweep(shard, clock, at=5, last=1200, running=(12, 14)) == 0
    assert sweep(shard, clock, at=7, last=1300, running=(13, 15)) == 1000
    assert sweep(shard, clock, at=8, last=0, running=(15, 16)) == 1000
    assert sweep(shard, clock, at=9, last=0, running=(15, 16)) == 1200


async def test_what_was_delivered_from_memory_before_a_sweep_is_not_read_again_either(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    shard.handed(1000)
    for at in (0, 2):
        assert sweep(shard, clock, at=at, last=0, running=(9, 9)) == 0
    clock.now = 103
    shard.begin_sweep(crowded=False, thorough=True)
    shard.handed(1100)
    shard.end_sweep(swept(newest=12), last=0, read_to=0, oldest=12)
    for at in (6, 9, 12, 13):
        assert sweep(shard, clock, at=at, last=0, running=(12, 12)) == 1000
    assert sweep(shard, clock, at=14, last=0, running=(12, 12)) == 1100


async def test_a_backlog_is_not_looked_at_again_once_no_statement_can_add_to_it(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    shard.hold(1)
    assert sweep(shard, clock, at=0, last=1000) == 0
    assert sweep(shard, clock, at=10, last=1100) == 0
    assert sweep(shard, clock, at=16, last=1200) == 0
    assert sweep(shard, clock, at=20, last=1300) == 1000
    assert sweep(shard, clock, at=32, last=1400) == 1000
    assert sweep(shard, clock, at=33, last=1400) == 1200


async def ripe_shard(clock: Clock) -> OwnedShard:
    """One whose sweeps begin behind row 1000."""
    shard = await owned_shard()
    for at in (0, 3, 5, 6):
        floor = sweep(shard, clock, at=at, last=1000, running=(9, 9))
    assert floor == 1000
    return shard


async def test_what_is_given_back_is_read_again_from_there_on(clock: Clock) -> None:
    shard = await ripe_shard(clock)
    shard.give_back(700, Snowflake(1))
    shard.give_back(800, Snowflake(2))
    assert sweep(shard, clock, at=7, last=1000) == 699
    assert sweep(shard, clock, at=8, last=1000) == 1000


async def test_what_is_given_back_during_a_sweep_is_not_below_the_next_floor(clock: Clock) -> None:
    shard = await ripe_shard(clock)
    shard.begin_sweep(crowded=False, thorough=True)
    shard.give_back(700, Snowflake(1))
    shard.end_sweep(swept(), last=1000, read_to=0, oldest=1)
    assert sweep(shard, clock, at=7, last=1000) == 699
    assert sweep(shard, clock, at=8, last=1000) == 1000


async def test_what_one_who_was_held_has_left_is_read_again_from_its_first_on(clock: Clock) -> None:
    shard = await ripe_shard(clock)
    shard.hold(1)
    shard.give_back(700, Snowflake(1))
    shard.give_back(600, Snowflake(1))
    assert sweep(shard, clock, at=7, last=1000) == 1000
    shard.release(1)
    assert sweep(shard, clock, at=8, last=1000, read_to=800) == 599
    assert sweep(shard, clock, at=9, last=1000, read_to=850) == 800
    shard.hold(1)
    assert sweep(shard, clock, at=10, last=1000) == 1000
    shard.release(1)
    assert sweep(shard, clock, at=11, last=1000) == 850
    assert sweep(shard, clock, at=12, last=1000) == 1000


async def test_who_rests_is_passed_over_once_and_read_again_from_where_it_was_left(
    clock: Clock,
) -> None:
    shard = await ripe_shard(clock)
    shard.give_back(700, Snowflake(1))
    assert sweep(shard, clock, at=7, last=1000, read_to=800) == 699
    shard.rest(1)
    assert [*shard.held] == [1]
    assert shard.takes(1)
    assert sweep(shard, clock, at=8, last=1000) == 1000
    assert shard.rested
    assert [*shard.held] == []
    assert sweep(shard, clock, at=9, last=1000) == 800
    assert sweep(shard, clock, at=10, last=1000) == 1000


@pytest.mark.parametrize("first", ["rest", "hold"])
async def test_who_is_held_beside_a_rest_stays_so(clock: Clock, first: str) -> None:
    shard = await ripe_shard(clock)
    for act in (shard.rest, shard.hold) if first == "rest" else (shard.hold, shard.rest):
        act(1)
    assert sweep(shard, clock, at=7, last=1000) == 1000
    assert [*shard.held] == [1]
    assert not shard.takes(1)


@pytest.mark.parametrize("before", [True, False])
async def test_a_start_that_was_given_back_outlives_a_rest_of_all_starts(
    clock: Clock, before: bool
) -> None:
    shard = await ripe_shard(clock)
    if before:
        shard.give_back(700, Snowflake(42))
    shard.rest(STARTS)
    if not before:
        shard.give_back(700, Snowflake(42))
    sweep(shard, clock, at=7, last=1000)
    assert shard.without_starts
    shard.hold(42)
    assert sweep(shard, clock, at=8, last=1000) == 699
    assert not shard.without_starts
    shard.release(42)
    assert sweep(shard, clock, at=9, last=1000) == 699
    assert sweep(shard, clock, at=10, last=1000) == 1000


async def test_a_sweep_that_comes_to_nothing_is_begun_again_where_it_began(clock: Clock) -> None:
    shard = await ripe_shard(clock)
    shard.give_back(700, Snowflake(1))
    shard.begin_sweep(crowded=False, thorough=True)
    assert sweep(shard, clock, at=7, last=1000) == 699
    assert sweep(shard, clock, at=8, last=1000) == 1000


async def test_what_may_have_come_below_the_floor_is_read_of_those_who_are_held_too(
    clock: Clock,
) -> None:
    shard = await ripe_shard(clock)
    shard.hold(1)
    shard.read_again()
    shard.hold(2)
    assert sweep(shard, clock, at=7, last=1000) == 0
    for key in (1, 2):
        assert sweep(shard, clock, at=8, last=1000) == 1000
        shard.release(key)
        assert sweep(shard, clock, at=9, last=1000) == 0


async def test_a_sweep_that_left_rows_behind_settles_only_what_it_read(clock: Clock) -> None:
    shard = await owned_shard()
    assert sweep(shard, clock, at=0, last=5000, read_to=100, running=(9, 9)) == 0
    assert sweep(shard, clock, at=3, last=5000, read_to=50, running=(9, 9)) == 0
    assert sweep(shard, clock, at=4, last=5000, read_to=99, running=(9, 9)) == 0  # not past those
    assert sweep(shard, clock, at=5, last=5000, read_to=0, running=(9, 9)) == 0  # none of its rows
    assert sweep(shard, clock, at=6, last=5000, read_to=200, running=(9, 9)) == 0
    assert sweep(shard, clock, at=8, last=0, read_to=0, running=(9, 9)) == 100
    assert sweep(shard, clock, at=9, last=5000, read_to=199, running=(9, 9)) == 100
    assert sweep(shard, clock, at=10, last=5000, read_to=200, running=(9, 9)) == 100
    assert sweep(shard, clock, at=11, last=5000, read_to=201, running=(9, 9)) == 200


async def test_reading_all_from_the_beginning_takes_no_floor_away(clock: Clock) -> None:
    shard = await owned_shard()
    for at in (0, 3, 6):
        sweep(shard, clock, at=at, last=1000, running=(9, 9))
    assert sweep(shard, clock, at=70, last=1000, read_to=10, running=(9, 9)) == 0
    assert sweep(shard, clock, at=73, last=1000, read_to=20, running=(9, 9)) == 1000


async def test_all_is_read_now_and_then_all_the_same(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_READ_ALL_EVERY", 20.0)
    shard = await owned_shard()
    shard.hold(1)
    for at in (0, 3, 16):
        sweep(shard, clock, at=at, last=1000)
    assert sweep(shard, clock, at=17, last=1000) == 1000
    assert sweep(shard, clock, at=36, last=1000) == 1000
    assert sweep(shard, clock, at=37, last=1000) == 0
    assert sweep(shard, clock, at=38, last=1000) == 1000


async def test_without_time_to_read_all_it_is_put_off_for_a_minute_at_most(clock: Clock) -> None:
    shard = await owned_shard()
    shard.hold(1)
    for at in (0, 3, 16):
        sweep(shard, clock, at=at, last=1000)
    assert sweep(shard, clock, at=77, last=1000, thorough=False) == 1000
    assert sweep(shard, clock, at=135, last=1000, thorough=False) == 1000
    assert sweep(shard, clock, at=137, last=1000, thorough=False) == 0
    assert sweep(shard, clock, at=138, last=1000) == 1000


async def test_a_lane_reads_all_in_a_fortieth_of_its_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "monotonic", clock)
    async with TestCluster(Quick(), shards_per_group=2, lanes=1) as cluster:
        delivery = delivery_of(cluster)
        for shard in delivery.shards.values():
            for at in (0, 16, 32, 35, 48):
                sweep(shard, clock, at=at, last=1000)
        one, other = delivery.shards

        def floor(id: ShardId, *, at: float, takes: float = 0.0) -> Sequence[int]:
            clock.now = 100 + at
            delivery.held([id])
            floors = delivery.floors([id])
            clock.now += takes
            delivery.swept([id], swept())
            return floors

        assert floor(one, at=109, takes=1) == [0]
        assert floor(other, at=110) == [1000]
        assert floor(other, at=149) == [1000]
        assert floor(other, at=151) == [0]


async def test_what_a_shard_has_read_is_its_own_and_not_what_was_to_come_later(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "monotonic", clock)
    async with TestCluster(Quick(), shards_per_group=2, lanes=1) as cluster:
        delivery = delivery_of(cluster)
        one, other = delivery.shards
        # Behind the row of the one shard the sweep has left some; one of later is behind those.
        rows = [row_of(one, 10), row_of(other, 30), row_of(one, 50, deliver_at=NOW)]

        def floors(at: float) -> Sequence[int]:
            clock.now = 100 + at
            delivery.held([one, other])
            floors = delivery.floors([one, other])
            found = replace(swept(more=True, newest=5), rows=rows, last=60)
            delivery.swept([one, other], found)
            return floors

        assert [*map(floors, (100, 110, 113, 114, 115))] == [*[[0, 0]] * 4, [10, 30]]


async def test_what_a_sweep_brings_of_one_who_gave_something_back_is_read_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "monotonic", clock)
    async with TestCluster(Quick(), shards_per_group=1, lanes=1) as cluster:
        delivery = delivery_of(cluster)
        (shard,) = delivery.shards.values()
        for at in (0, 16, 32, 35, 48):
            sweep(shard, clock, at=at, last=1000)
        shard.begin_sweep(crowded=False, thorough=False)
        assert shard.floor == 1000
        first, second = row_of(shard.id, 900, entity="one"), row_of(shard.id, 800, entity="one")
        shard.give_back(first.seq, first.recipient)
        delivery.swept([shard.id], replace(swept(), rows=[second]))
        assert sweep(shard, clock, at=50, last=1000) == 799


def row_of(
    shard: ShardId, seq: int, *, entity: str = "", deliver_at: datetime | None = None
) -> InboxRow:
    envelope = EnvelopeRequest(
        request_id=Snowflake(seq),
        address=EntityAddress(shard=shard, entity_type="Nobody", entity_id=entity or str(seq)),
        tag="call",
        payload=b"",
        deliver_at=deliver_at,
    )
    return InboxRow(seq=seq, kind=InboxKind.REQUEST, shard=shard, envelope=envelope)


# --- against a model ------------------------------------------------------------------------------


@dataclass
class Row:
    """A row, of whom nobody knows before ``ends``, when its transaction commits. That has its
    number, ``xid``, only some time after the row has its own."""

    key: str
    begins: float
    ends: float
    alone: bool = False
    """In a transaction of a user's own, which lasts as long as it likes, and rings when it ends."""
    start: bool = False
    """Of an execution, which nothing else comes for."""
    xid: int = 0
    seen: bool = False
    gone: bool = False


class Inbox:
    """One shard's rows, and the entities that take them: transactions that end in any order,
    sweeps that leave rows behind or fail, full mailboxes, entities that leave memory with messages
    in hand, and more of them than there is room for."""

    CAPACITY, LIMIT = 4, 5
    PROMPT, OTHERS, START = "ab", "cde", "s"
    """To the first each message is stored before the next is sent."""

    def __init__(self, shard: OwnedShard, clock: Clock, seed: int) -> None:
        self.shard = shard
        self.clock = clock
        self.chance = random.Random(seed)
        self.rows: dict[int, Row] = {}
        self.mailboxes: dict[str, list[int]] = {}  # 0: a message that is not stored
        self.full: set[str] = set()
        self.closed = False
        self.transactions = 1
        self.endless = {1} if seed % 2 else set[int]()
        self.apart = seed % 4 > 1  # nothing has all be read again
        self.places = 10 if self.apart else 3
        self.running: dict[int, float] = {}
        self.found: tuple[Sweep, list[int]] | None = None
        self.handled: list[int] = []
        self.settled: list[int] = []
        self.floors: list[int] = []

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.wait(self.chance.choice([0, 0, 0, 0.2, 1, 4]))
            often = {self.send: 6, self.begin: 4, self.end: 4, self.handle: 8, self.settle: 4}
            seldom = {self.fail: 1, self.tell: 2, self.evict: 1}
            acts = often | seldom
            self.chance.choices(list(acts), list(acts.values()))[0]()
            self.check()

    def check(self) -> None:
        """Whatever can be delivered is in hand, or will be looked at."""
        shard = self.shard
        looked_at = [shard._open, shard._reading]
        for seq, row in self.rows.items():
            if not row.seen or row.gone or seq in shard.in_flight or seq > shard._safe:
                continue
            keys = {self.number(seq), shards._ANYBODY, *([STARTS] if row.start else [])}
            behind = [each[key] for each in looked_at for key in keys if key in each]
            if passed := keys & shard.held.keys():
                behind = [max(shard.held[key] for key in passed)]
            waits = self.closed and not row.start and row.key not in self.mailboxes
            assert waits or min(behind, default=seq) < seq, f"row {seq} of {row.key} is lost"

    def end_it(self) -> None:
        self.wait(100)
        for _ in range(len(self.rows) * 3):
            self.begin()
            self.end()
            while self.mailboxes:
                self.handle()
            self.settle()

    # --- those who write ---

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for row in self.rows.values():
            if not row.xid and row.begins <= self.clock.now:
                self.transactions += 1
                row.xid = self.transactions
            if row.xid and not row.seen and row.ends <= self.clock.now:
                row.seen = True
                if row.alone:
                    self.shard.read_again()

    def send(self) -> None:
        key, now = self.chance.choice(self.PROMPT + self.OTHERS + self.START), self.clock.now
        row = Row(key, now, now)
        if key == self.START:
            row.key, row.start = f"s{len(self.rows)}", True
        if key not in self.PROMPT:
            row.begins += self.chance.uniform(0, 1.9)
            row.alone = not self.apart and self.chance.random() < 0.1
            row.ends = row.begins + self.chance.uniform(0, 60 if row.alone else 12)
        self.rows[len(self.rows) + 1] = row
        self.wait(0)

    # --- sweeps ---

    def begin(self) -> None:
        if self.found is not None:
            return
        shard = self.shard
        shard.begin_sweep(crowded=self.closed, thorough=False)
        self.floors.append(shard.floor)
        there = [seq for seq, row in self.rows.items() if row.seen and not row.gone]
        wanted = [
            seq
            for seq in there
            if seq > shard.floor
            and seq not in shard.in_flight
            and self.number(seq) not in shard.held
            and not (self.rows[seq].start and STARTS in shard.held)
            and (not self.closed or self.rows[seq].start or self.rows[seq].key in self.mailboxes)
        ]
        found = replace(
            swept(more=len(wanted) > self.LIMIT, newest=self.transactions + 1),
            last=max(there, default=None) if shard.held or self.closed else None,
            running=[row.xid for row in self.rows.values() if row.xid and not row.seen]
            + list(self.endless),
        )
        self.found = found, wanted[: self.LIMIT]

    def end(self) -> None:
        if self.found is None:
            return
        (sweep, rows), self.found = self.found, None
        now, last = self.clock.now, max(rows, default=0)
        self.running = {id: self.running.get(id, now) for id in sweep.running}
        ours = [id for id, since in self.running.items() if self.shard.began - since < 15]
        self.shard.end_sweep(
            sweep,
            last=sweep.last or last,
            read_to=last if sweep.more else 0,
            oldest=min(ours, default=sweep.newest),
        )
        for seq in rows:
            self.deliver(seq)
        if sweep.more and self.chance.random() < 0.5:
            lines = Counter(STARTS if self.rows[seq].start else self.number(seq) for seq in rows)
            for key in [key for key, length in lines.items() if length > 1]:
                self.shard.rest(key)

    def fail(self) -> None:
        self.found = None

    def deliver(self, seq: int) -> None:
        shard, row = self.shard, self.rows[seq]
        key = row.key
        if seq in shard.in_flight:
            return
        if self.address(seq) in shard.passed_over:
            shard.give_back(seq, self.address(seq))
            return
        shard.in_flight.add(seq)
        crowded = not (row.start or key in self.mailboxes or self.room)
        self.closed = self.closed or crowded
        if key in self.full or crowded:
            shard.give_back(seq, self.address(seq))
        else:
            self.put(key, seq)

    # --- entities ---

    @property
    def room(self) -> bool:
        """Of entities there may only be so many."""
        return sum(len(key) == 1 for key in self.mailboxes) < self.places

    def put(self, key: str, seq: int) -> None:
        mailbox = self.mailboxes.setdefault(key, [])
        mailbox.append(seq)
        if len(mailbox) >= self.CAPACITY and key not in self.full:
            self.full.add(key)
            self.shard.hold(entity_key("Line", key))

    def tell(self) -> None:
        """A message that is not stored takes the place of one that is."""
        key = self.chance.choice(self.PROMPT + self.OTHERS)
        mailbox = self.mailboxes.get(key, [])
        if len(mailbox) < self.CAPACITY and (mailbox or self.room):
            self.put(key, 0)

    def handle(self) -> None:
        if not self.mailboxes:
            return
        key = self.chance.choice(list(self.mailboxes))
        mailbox = self.mailboxes[key]
        if seq := mailbox.pop(0):
            self.handled.append(seq)
            self.settled.append(seq)
        if key in self.full and len(mailbox) <= self.CAPACITY // 2:
            self.relieve(key)
        if not mailbox:
            self.leave(key)

    def relieve(self, key: str) -> None:
        self.full.discard(key)
        self.shard.release(entity_key("Line", key))

    def leave(self, key: str) -> list[int]:
        mailbox = self.mailboxes.pop(key)
        if key in self.full:
            self.relieve(key)
        if self.closed:
            self.closed = False
            self.shard.read_again()
        return mailbox

    def evict(self) -> None:
        if self.mailboxes:
            for seq in self.leave(self.chance.choice(list(self.mailboxes))):
                if seq:
                    self.shard.give_back(seq, self.address(seq))

    def settle(self) -> None:
        """What deletes rows goes through the same session as what reads them."""
        if self.found is None:
            for seq in self.settled:
                self.rows[seq].gone = True
            self.shard.in_flight.difference_update(self.settled)
            self.settled.clear()

    def address(self, seq: int) -> EntityAddress:
        return EntityAddress(self.shard.id, EntityType("Line"), EntityId(self.rows[seq].key))

    def number(self, seq: int) -> int:
        return entity_key("Line", self.rows[seq].key)


@pytest.mark.parametrize("seed", [*range(100), 554])  # the last: a sweep that took long
async def test_whatever_happens_each_row_is_handled_once_and_none_is_left_below_a_floor(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(shards, "_READ_ALL_LATEST", 1e9)
    inbox = Inbox(await owned_shard(), clock, seed)
    inbox.live(1500)
    inbox.end_it()
    assert sorted(inbox.handled) == [*inbox.rows]
    assert max(inbox.floors) > len(inbox.rows) / 2
    for key in inbox.PROMPT:
        mine = [seq for seq in inbox.handled if inbox.rows[seq].key == key]
        assert mine == sorted(mine)
