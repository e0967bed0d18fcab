"""Is the database fit for the engine, and does somebody run its shards? Each finding with its fix.

``examine`` asks the storage; the judgements below it are plain functions of what it found. Used by
``outlast doctor``; needs SELECT only, and says less to a login that may see less.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from engine.cluster.served import versions_in
from engine.core.clock import SystemClock, monotonic
from engine.core.errors import ConfigurationError, SchemaMismatch
from engine.storage.lock_holder import LockHolder
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import RunnerRow, ShardRow
from engine.storage.schema_version import HEAD
from engine.storage.server import ServerFacts
from engine.storage.upkeep import Upkeep
from engine.versions import VersionInfo, troubles, versions

_CLOCK_SLACK: Final = timedelta(seconds=2)
_PATIENCE: Final = timedelta(minutes=5)
_OLD_TRANSACTION: Final = timedelta(hours=1)
_CROWDED: Final = 0.8


class Severity(Enum):
    """How bad a finding is; WRONG needs somebody to act."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. ``fix`` is empty when there is nothing to do."""

    topic: str
    severity: Severity
    message: str
    fix: str = ""


async def examine(storage: PostgresStorage, *, time_to_live: timedelta) -> list[Finding]:
    """Look at everything. ``storage`` has not been opened. ``StorageUnavailable`` when the server
    cannot be reached at all, ``ConfigurationError`` when it is too old to be asked."""
    found: list[Finding] = []
    migrated = True
    try:
        await storage.open()
    except SchemaMismatch as error:
        migrated = False
        found.append(_wrong("schema", *str(error).split(": ", 1)))
    facts, offset = await _ask(storage)
    found = [
        _ok("server", f"PostgreSQL {facts.version}, up since {_at(facts.started_at)}"),
        await _connection(storage),
        *(found or [_ok("schema", f"this version works on it, needing revision {HEAD} or later")]),
        clock(offset),
        *server(facts),
    ]
    if migrated:
        rows = await storage.runners()
        live = [row for row in rows if row.died_at is None]
        shards = await storage.shards()
        found += [locks(facts, len(shards))]
        found += runners(live, now=facts.now, time_to_live=time_to_live, used=bool(shards))
        found += ownership(shards, live)
        found += holders(await storage.lock_holders())
        found += code(await versions(storage))
        found += upkeep(await storage.upkeep(now=facts.now, patience=_PATIENCE))
    return found


def clock(offset: timedelta) -> Finding:
    """``offset``: how far the database's clock is ahead of this machine's."""
    apart = abs(offset.total_seconds())
    if abs(offset) <= _CLOCK_SLACK:
        return _ok("clock", f"this machine's and the database's are {apart * 1000:.0f} ms apart")
    return _note(
        "clock",
        f"this machine's clock is {apart:.1f} s {'behind' if offset > timedelta(0) else 'ahead of'}"
        " the database's; the engine follows the database's, but logs will not line up",
        "synchronise both machines by NTP",
    )


def server(facts: ServerFacts) -> Iterator[Finding]:
    """The server's role, its promises about durability, its room for connections."""
    if facts.standby or facts.read_only:
        what = "a standby" if facts.standby else "read-only by default_transaction_read_only"
        yield _wrong("role", f"the server is {what}", "point the DSN at the primary")
    yield _durability(facts)
    yield _connections(facts)
    yield _old_rows(facts)


def _durability(facts: ServerFacts) -> Finding:
    broken = [
        f"{name} is off"
        for name, on in (("fsync", facts.fsync), ("full_page_writes", facts.full_page_writes))
        if not on
    ]
    if broken:
        return _wrong(
            "durability",
            f"{' and '.join(broken)}: a crash of the machine can lose or corrupt everything",
            "turn it on in postgresql.conf, unless the data may be lost",
        )
    if facts.synchronous_commit == "off":
        return _wrong(
            "durability",
            "synchronous_commit is off: a crash can lose steps that were told to have committed",
            "set it to on (or stronger) for this database or login",
        )
    return _ok("durability", f"fsync on, synchronous_commit {facts.synchronous_commit}")


def _connections(facts: ServerFacts) -> Finding:
    message = f"{facts.connected} of {facts.connections} connections are in use"
    if facts.connected >= facts.connections * _CROWDED:
        return _wrong(
            "connections", message, "raise max_connections, or lower OUTLAST_POOL_SIZE and others'"
        )
    return _ok("connections", message)


def _old_rows(facts: ServerFacts) -> Finding:
    """What keeps vacuum from removing dead rows, of which a queue makes many."""
    if facts.idle_slot is not None:
        return _note(
            "old rows",
            f"nobody reads replication slot {facts.idle_slot!r}, which keeps dead rows",
            "let its consumer run, or drop the slot",
        )
    for what, since, fix in (
        ("a transaction", facts.oldest_transaction, "end it: pg_stat_activity tells whose it is"),
        ("a prepared transaction", facts.oldest_prepared, "commit it or roll it back"),
    ):
        if since is not None and facts.now - since > _OLD_TRANSACTION:
            hours = (facts.now - since) / timedelta(hours=1)
            return _note(
                "old rows", f"{what} has been open for {hours:.1f} h and keeps dead rows", fix
            )
    return _ok("old rows", "no long transaction keeps dead rows from being removed")


def locks(facts: ServerFacts, shards: int) -> Finding:
    """A runner holds an advisory lock for each of its shards."""
    message = f"{shards} shards need as many of the server's {facts.lock_slots} lock slots"
    if shards > facts.lock_slots // 2:
        return _wrong("locks", message, "raise max_locks_per_transaction and restart the server")
    return _ok("locks", message)


def runners(
    live: Sequence[RunnerRow], *, now: datetime, time_to_live: timedelta, used: bool
) -> Iterator[Finding]:
    """Who lives, who only seems to, and whether they are alike. ``used``: groups exist."""
    if not live:
        judge = _wrong if used else _note
        yield judge("runners", "no runner is live: nothing runs", "start one: outlast run APP")
        return
    stale = [row for row in live if row.beat_at and now - row.beat_at > time_to_live]
    for row in stale:
        silent = (now - row.beat_at).total_seconds() if row.beat_at else 0
        yield _wrong(
            "runners",
            f"runner {row.host}:{row.pid} has given no sign of life for {silent:.0f} s",
            "end that process if it hangs; its shards go to its peers, so let there be one",
        )
    if len(live) > len(stale):
        yield _ok("runners", f"{len(live) - len(stale)} live")
    installed = sorted({row.version for row in live})
    if len(installed) > 1:
        yield _note("runners", f"of versions {', '.join(installed)}", "finish the deployment")
    yield from _types(live)


def _types(live: Sequence[RunnerRow]) -> Iterator[Finding]:
    """Runners of one group must serve the same types: shards move among them."""
    by_group: dict[str, list[RunnerRow]] = defaultdict(list)
    for row in live:
        for group in row.groups:
            by_group[group].append(row)
    for group, rows in sorted(by_group.items()):
        served = Counter(each for row in rows for each in _codes(row))
        partly = sorted(name for name, count in served.items() if count < len(rows))
        if partly:
            yield _note(
                "types",
                f"not all runners of group {group} serve {', '.join(partly)}:"
                " what is on others' shards waits",
                "let all of them register the same, or finish the deployment",
            )


def _codes(row: RunnerRow) -> Iterator[str]:
    """The types it serves; of a workflow the versions."""
    for name, description in row.types.items():
        numbers = versions_in(description)
        yield from (f"{name} version {each}" for each in numbers) if numbers else (name,)


def ownership(shards: Sequence[ShardRow], live: Sequence[RunnerRow]) -> Iterator[Finding]:
    """Whether each group's shards have an owner that lives."""
    ids = {row.id for row in live}
    served = {group for row in live if not row.draining for group in row.groups}
    totals = Counter(row.shard.group for row in shards)
    orphans = Counter(row.shard.group for row in shards if row.runner not in ids)
    for group, total in sorted(totals.items()):
        lost = orphans[group]
        if not lost:
            yield _ok("shards", f"all {total} of group {group} have an owner")
        elif group not in served:
            yield _wrong(
                "shards",
                f"no live runner serves group {group}, whose {total} shards hold what waits",
                f"start one: outlast run APP --groups {group}",
            )
        else:
            yield _wrong(
                "shards",
                f"{lost} of {total} shards of group {group} have no live owner",
                "wait some seconds; if it stays so, see the log of its runners",
            )


def holders(found: Sequence[LockHolder]) -> Iterator[Finding]:
    """Whether somebody else has locks that runners need."""
    for holder in found:
        yield _wrong(
            "locks",
            f"{holder} is no live runner and holds the lock of {holder.named}: nobody can own that",
            f"{holder.fix}; and let only your own logins connect to this database",
        )


def upkeep(seen: Upkeep) -> Iterator[Finding]:
    """Dead rows that nobody removes, requests that nobody begins, runners that cannot end others'
    sessions."""
    for table in seen.bloat:
        last = "never" if table.vacuumed_at is None else _at(table.vacuumed_at)
        fix = (
            "end what keeps old rows, see above; if there is nothing, vacuum it by hand"
            if table.automatic
            else "switch autovacuum on, for the server and for this table, and vacuum it by hand"
        )
        yield _wrong(
            "bloat",
            f"table {table.name} holds {table.dead} dead rows and {table.live} live ones; last"
            f" vacuumed: {last}",
            fix,
        )
    if not seen.bloat:
        yield _ok("bloat", "no table is full of dead rows")
    for waiting in seen.stuck:
        yield _note(
            "inbox",
            f"requests to {waiting.name} that are due and have not begun: {waiting.count}, the"
            f" oldest since {_at(waiting.since)}",
            "see 'outlast why' of one: no runner serves it, its entity is busy, or runners are"
            " too few",
        )
    if not seen.stuck:
        yield _ok("inbox", "nothing that is due waits to be begun for long")
    for login in seen.strangers:
        yield _wrong(
            "logins",
            f"runners that log in as {login.judge!r} may not end the sessions of those that do as"
            f" {login.judged!r}: nobody takes over from one that hangs",
            "let all runners use one login, or grant pg_signal_backend to each; a superuser's"
            " sessions only a superuser can end",
        )


def code(infos: Sequence[VersionInfo]) -> Iterator[Finding]:
    """Whether executions have the code that they need."""
    found = troubles(infos)
    for message, fix in found:
        yield _wrong("code", message, fix)
    if not found and infos:
        yield _ok("code", "every execution has the code that it needs")


async def _ask(storage: PostgresStorage) -> tuple[ServerFacts, timedelta]:
    """The server's facts, and how far its clock is ahead of ours."""
    own = SystemClock()
    sent = monotonic()
    facts = await storage.server()
    middle = own.now() - timedelta(seconds=(monotonic() - sent) / 2)
    return facts, facts.now - middle


async def _connection(storage: PostgresStorage) -> Finding:
    try:
        await storage.connect_directly()
    except ConfigurationError as error:
        message, _, fix = str(error).partition("; ")
        return _wrong("connection", message, fix)
    return _ok("connection", "direct, as locks and LISTEN need it")


def _ok(topic: str, message: str) -> Finding:
    return Finding(topic=topic, severity=Severity.OK, message=message)


def _note(topic: str, message: str, fix: str = "") -> Finding:
    return Finding(topic=topic, severity=Severity.NOTE, message=message, fix=fix)


def _wrong(topic: str, message: str, fix: str = "") -> Finding:
    return Finding(topic=topic, severity=Severity.WRONG, message=message, fix=fix)


def _at(when: datetime) -> str:
    return when.isoformat(timespec="seconds")
