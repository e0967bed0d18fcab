"""Every order in which the sides of a race can meet, each brought about once; no time decides.

A side passes named points. At each it is held by a gate until its turn comes: in Python it awaits
``gates(point)``, and in PostgreSQL a trigger waits for an advisory lock, within a statement. The
driver opens one gate at a time, when all sides are at rest: held at a gate, over, or waiting for
what another holds.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg

from tests.eventually import eventually

Order = tuple[str, ...]
Side = Callable[[], Awaitable[object]]
Race = Callable[[], AbstractAsyncContextManager[Mapping[str, Side]]]
"""Arranges a race, yields its sides by name, and looks at the outcome when they are over."""

_LIMIT = 20.0
_LOCKS = 0x67617465
"""The first key of the gates' advisory locks; the second is the gate's number."""


class Gates:
    """Gates in Python."""

    def __init__(self) -> None:
        self._closed: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}

    async def __call__(self, point: str) -> None:
        """Pass a point of the race; at once, if its gate is not closed."""
        if point in self._closed:
            await self._waiting.setdefault(point, asyncio.Event()).wait()

    async def close(self, points: Collection[str]) -> None:
        """Let nobody pass these any more."""
        self._closed.update(points)

    async def open(self, point: str) -> None:
        self._closed.discard(point)
        event = self._waiting.pop(point, None)
        if event is not None:
            event.set()

    async def open_all(self) -> None:
        for point in tuple(self._closed):
            await self.open(point)

    async def held(self) -> set[str]:
        """The points that somebody is held at now."""
        return set(self._waiting)

    async def stuck(self) -> int:
        """How many sides that are at no gate wait for one that is: none, but in a database."""
        return 0


class ServerGates(Gates):
    """Gates in a PostgreSQL of the test's own as well: see ``hold``."""

    def __init__(self, keys: asyncpg.Connection, sql: asyncpg.Pool) -> None:
        super().__init__()
        self.sql = sql
        """For a race's sides, and its looks at the outcome."""
        self._keys = keys
        self._numbers: dict[str, int] = {}

    async def hold(self, point: str, table: str, *, of: str, commit: bool = False) -> None:
        """Where sessions whose application name is like ``of`` have begun a statement that writes
        to a table, and have their snapshot, but have written nothing to it; or, with ``commit``,
        where they have written to it and all but committed."""
        number = self._numbers[point] = len(self._numbers) + 1
        await self._keys.execute(
            f"create {'constraint' if commit else ''} trigger gate_{number}"
            f" {'after' if commit else 'before'} insert or update or delete on engine.{table}"
            f" {'deferrable initially deferred for each row' if commit else 'for each statement'}"
            f" execute function pass_gate('{number}', '{of}')"
        )

    async def close(self, points: Collection[str]) -> None:
        for point in points:
            if point in self._numbers and point not in self._closed:
                number = self._numbers[point]
                await self._keys.execute("select pg_advisory_lock($1, $2)", _LOCKS, number)
        await super().close(points)

    async def open(self, point: str) -> None:
        if point in self._numbers and point in self._closed:
            number = self._numbers[point]
            await self._keys.execute("select pg_advisory_unlock($1, $2)", _LOCKS, number)
        await super().open(point)

    async def held(self) -> set[str]:
        waiting = {row["objid"] for row in await self._keys.fetch(_HELD, _LOCKS)}
        found = {point for point, number in self._numbers.items() if number in waiting}
        return await super().held() | found

    async def stuck(self) -> int:
        return await self._keys.fetchval(_STUCK, _LOCKS)

    async def end(self, of: str) -> None:
        """End the sessions whose application name is like this, and wait until they are gone."""

        async def gone() -> bool:
            return await self.sql.fetchval(_END, of) == 0

        await eventually(gone, every=0.002)


@asynccontextmanager
async def server_gates(dsn: str) -> AsyncIterator[ServerGates]:
    """Gates in a database of the test's own."""
    keys = await asyncpg.connect(dsn)
    try:
        await keys.execute(_FUNCTION)
        async with asyncpg.create_pool(dsn, min_size=1, max_size=3) as sql:
            yield ServerGates(keys, sql)
    finally:
        await keys.close()


class Held:
    """Something whose calls first pass the point that ``points`` names for them, and behind that
    one that begins with "after"."""

    def __init__(self, inner: Any, gates: Gates, points: Mapping[str, str]) -> None:
        self._inner = inner
        self._gates = gates
        self._points = points
        self.calls: list[str] = []
        """Those of them that have returned."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._points:
            return found

        async def held(*args: Any, **kwargs: Any) -> Any:
            await self._gates(self._points[name])
            answer = await found(*args, **kwargs)
            self.calls.append(name)
            await self._gates(f"after {self._points[name]}")
            return answer

        return held


async def every_order(gates: Gates, sides: Mapping[str, Sequence[str]], race: Race) -> list[Order]:
    """Run a race, whose sides pass these points, in every order that there can be; which those are.
    A side may be over before its last point, and what the other one holds it has to wait for."""
    came_about: list[Order] = []
    ahead: list[Order] = [()]
    while ahead:
        course = _Course(ahead.pop())
        try:
            async with asyncio.timeout(_LIMIT), race() as runs:
                await _run(gates, sides, runs, course)
        except BaseException as error:
            error.add_note(f"in the order: {', '.join(course.passed)}")
            raise
        finally:
            await gates.open_all()
        came_about.append(tuple(course.passed))
        ahead += course.others
    return came_about


class _Course:
    """One way through a race: that of ``order``, as far as it goes, and then by the first side that
    can go on. ``others`` are where it could have gone otherwise from there."""

    def __init__(self, order: Order) -> None:
        self.passed: list[str] = []
        self.others: list[Order] = []
        self._order = order

    def choose(self, choices: Sequence[str]) -> str:
        nth = len(self.passed)
        if nth < len(self._order):
            assert self._order[nth] in choices, f"not {self._order}: it can be one of {choices} now"
            chosen = self._order[nth]
        else:
            chosen = choices[0]
            self.others += [(*self.passed, other) for other in choices[1:]]
        self.passed.append(chosen)
        return chosen


async def _run(
    gates: Gates, sides: Mapping[str, Sequence[str]], runs: Mapping[str, Side], course: _Course
) -> None:
    assert runs.keys() == sides.keys()
    points = [point for each in sides.values() for point in each]
    await gates.close(points)
    loop = asyncio.get_running_loop()
    tasks = {name: loop.create_task(_awaited(run)) for name, run in runs.items()}
    try:
        while not all(task.done() for task in tasks.values()):
            held = await gates.held()
            rests = [task.done() or not held.isdisjoint(sides[n]) for n, task in tasks.items()]
            moving = rests.count(False)
            if moving and moving <= await gates.stuck():
                moving, held = 0, await gates.held()
            if held and not moving:
                await gates.open(course.choose([each for each in points if each in held]))
            else:
                await asyncio.sleep(0.001)
        for task in tasks.values():
            task.result()
    finally:
        await gates.open_all()
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _awaited(run: Side) -> None:
    await run()


_FUNCTION = f"""
create function pass_gate() returns trigger language plpgsql set lock_timeout = 0 as $$
begin
    if current_setting('application_name') like tg_argv[1] then
        perform pg_advisory_lock_shared({_LOCKS}, tg_argv[0]::int);
        perform pg_advisory_unlock_shared({_LOCKS}, tg_argv[0]::int);
    end if;
    return null;
end $$;
"""
_OURS = "l.locktype = 'advisory' and l.classid = $1::int::oid and not l.granted"
_HELD = f"""
select l.objid::int from pg_locks l
where {_OURS} and l.database = (select oid from pg_database where datname = current_database())
"""
_STUCK = f"""
select count(distinct a.pid) from pg_stat_activity a
cross join lateral unnest(pg_blocking_pids(a.pid)) b (pid)
join pg_stat_activity h on h.pid = b.pid
where a.datname = current_database() and a.wait_event_type = 'Lock'
    and (
        h.state = 'idle in transaction'
        or exists (select from pg_locks l where l.pid = b.pid and {_OURS})
    )
"""
_END = """
select count(*), count(pg_terminate_backend(pid)) from pg_stat_activity
where application_name like $1 and datname = current_database()
"""
