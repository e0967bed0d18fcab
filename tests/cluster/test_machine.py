"""A machine id's lease is prolonged in good time, and not more often."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from engine.cluster.machine import MachineTenant
from engine.core.clock import Alarm
from engine.core.ids import MachineLease, SnowflakeGenerator

TERM = timedelta(seconds=60)


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.current = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.current

    def call_at(self, when: datetime, callback: Callable[[], None]) -> Alarm:
        raise NotImplementedError


class Leases:
    """Gives out machine ids for a term, the first one again while it is prolonged in time."""

    def __init__(self, time: Time) -> None:
        self.time = time
        self.asked = 0
        self.machine = 7

    async def lease(self, held: MachineLease | None) -> MachineLease:
        self.asked += 1
        await asyncio.sleep(0)
        if held is None or held.until <= self.time.now():
            self.machine += 1
        return MachineLease(machine=self.machine, until=self.time.now() + TERM)


def tenancy() -> tuple[Time, Leases, SnowflakeGenerator, MachineTenant]:
    time = Time()
    leases = Leases(time)
    generator = SnowflakeGenerator(now=time.now)
    return (
        time,
        leases,
        generator,
        MachineTenant(generator=generator, clock=time, lease=leases.lease),
    )


async def test_the_first_look_takes_a_lease() -> None:
    _, _, generator, tenant = tenancy()
    await tenant.renew()
    assert generator.lease is not None


async def test_two_that_renew_at_the_same_time_take_one_lease() -> None:
    _, leases, _, tenant = tenancy()
    await asyncio.gather(tenant.renew(), tenant.renew())
    assert leases.asked == 1


async def test_a_lease_is_left_alone_until_half_of_it_is_gone() -> None:
    time, leases, _, tenant = tenancy()
    await tenant.renew()
    time.current += TERM / 2
    await tenant.renew()
    assert leases.asked == 1
    time.current += timedelta(seconds=1)
    await tenant.renew()
    assert leases.asked == 2


async def test_a_lease_that_ran_out_gives_way_to_another_machine_id() -> None:
    time, _, generator, tenant = tenancy()
    await tenant.renew()
    before = generator.lease
    time.current += 2 * TERM
    await tenant.renew()
    assert before is not None
    assert generator.lease is not None
    assert generator.lease.machine != before.machine
