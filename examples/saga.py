"""A saga: a trip is booked at three providers, and undone at those that had it if one refuses.

``python examples/saga.py`` books a trip that works out and one that does not.
"""

import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from engine import ExecutionFailed, RetryPolicy, Workflow, activity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import run_script, serving


class Trip(BaseModel):
    id: str
    city: str


class SoldOut(Exception):
    """For good: trying again would not help."""


class Provider(Protocol):
    """Flights, rooms or cars. Both calls may be repeated: a reference is booked once at most, and
    to cancel one that is not booked changes nothing."""

    async def book(self, city: str, *, reference: str) -> str: ...
    async def cancel(self, *, reference: str) -> None: ...


UNTIL_IT_WORKS = RetryPolicy(attempts=1000, maximum=timedelta(minutes=10))


class BookTrip(Workflow[Trip, dict[str, str]]):
    """A ticket for each part of the trip, or none at all."""

    def __init__(self, **providers: Provider) -> None:
        self.providers = providers

    @classmethod
    def key(cls, request: Trip) -> str:
        return request.id

    async def execute(self, request: Trip) -> dict[str, str]:
        tickets: dict[str, str] = {}
        for part in self.providers:
            # Before the step: one that timed out may have booked all the same.
            self.compensate(self.cancel, part)
            tickets[part] = await self.book(part, request.city)
        return tickets

    @activity(retry=RetryPolicy(give_up_on=(SoldOut,)), timeout=timedelta(seconds=30))
    async def book(self, part: str, city: str) -> str:
        return await self.providers[part].book(city, reference=self.reference(part))

    @activity(retry=UNTIL_IT_WORKS, timeout=timedelta(seconds=30))
    async def cancel(self, part: str) -> None:
        await self.providers[part].cancel(reference=self.reference(part))

    def reference(self, part: str) -> str:
        """Known to both steps, unlike a key of one of them."""
        return f"{self.execution_id}/{part}"


class Seats:
    """A provider with so many seats, rooms or cars for each city."""

    def __init__(self, **cities: int) -> None:
        self.free: Counter[str] = Counter(cities)
        self.booked: dict[str, str] = {}

    async def book(self, city: str, *, reference: str) -> str:
        if reference not in self.booked:
            if not self.free[city]:
                raise SoldOut(f"nothing is left in {city}")
            self.free[city] -= 1
            self.booked[reference] = city
        return f"{city} for {reference}"

    async def cancel(self, *, reference: str) -> None:
        if (city := self.booked.pop(reference, None)) is not None:
            self.free[city] += 1


async def main() -> int:
    providers = {
        "flight": Seats(rome=2, oslo=2),
        "hotel": Seats(rome=2, oslo=2),
        "car": Seats(rome=2),
    }
    async with serving("saga", BookTrip(**providers)) as client:
        print(await client.execute(BookTrip, Trip(id="t-1", city="rome")))
        try:
            await client.execute(BookTrip, Trip(id="t-2", city="oslo"))
        except ExecutionFailed as error:
            print(error)
    for part, provider in providers.items():
        print(f"{part}: {sorted(provider.booked)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
