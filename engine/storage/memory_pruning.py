"""Pruning in the in-memory database: what may go, and what goes with it.

Called by ``memory``; changes the tables of ``memory_rows``.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from engine.core.ids import Snowflake, snowflake_time
from engine.core.journal import JournalKind, JournalRow
from engine.core.reply import ReplyKind
from engine.storage.memory_rows import MemoryRows
from engine.storage.retention import Pruned, RequestTerm, Term


def finished(
    rows: MemoryRows, terms: Sequence[Term], limit: int
) -> list[list[tuple[Snowflake, datetime]]]:
    """By term, longest ago first."""
    found: list[list[tuple[Snowflake, datetime]]] = []
    for term in terms:
        ended = sorted(
            (each.finished_at, each.request_id)
            for each in rows.executions.all()
            if (each.workflow, each.status) == (term.workflow, term.status)
            and each.finished_at is not None
            and term.after < each.finished_at <= term.until
        )
        found.append([(request_id, at) for at, request_id in ended[:limit]])
    return found


def prune(rows: MemoryRows, executions: Collection[Snowflake], before: datetime) -> list[Snowflake]:
    """Those that were deleted."""
    busy = rows.spoken_of() | rows.schedules.running()
    doomed: list[Snowflake] = []
    for id in dict.fromkeys(executions):
        state = rows.executions.get(id)
        if state is None or not state.status.finished or id in busy:
            continue
        if state.finished_at is not None and state.finished_at <= before:
            doomed.append(id)
    sources = {row.source for id in doomed for row in rows.executions.journal(id)}
    rows.forget([*_gone(rows, sources, busy), *doomed])
    rows.heartbeats.forget(doomed)
    for id in doomed:
        rows.executions.forget(id)
    return doomed


def prune_runs(
    rows: MemoryRows,
    until: Mapping[str, datetime],
    *,
    after: Snowflake,
    limit: int,
    runs: int,
) -> Pruned:
    """See ``Storage.prune_runs``."""
    live = sorted(
        each.request_id
        for each in rows.executions.all()
        if each.workflow in until and each.finished_at is None and each.request_id > after
    )[:limit]
    busy, count = rows.spoken_of(), 0
    for id in live:
        state = rows.executions.get(id)
        assert state is not None
        by_run: dict[int, list[JournalRow]] = {}
        for row in rows.executions.journal(id):
            by_run.setdefault(row.run, []).append(row)
        first = min(by_run, default=state.run)
        for run in range(first, min(first + runs, state.run)):
            events = by_run.get(run, [])
            if events and events[-1].at <= until[state.workflow]:
                sources = {e.source for e in events if e.kind is not JournalKind.RESOLVED}
                rows.forget(_gone(rows, sources, busy))
                rows.executions.forget(id, run=run)
                count += 1
    return Pruned(count=count, last=live[-1] if len(live) == limit else None)


def prune_requests(rows: MemoryRows, term: RequestTerm, after: Snowflake, limit: int) -> Pruned:
    """See ``Storage.prune_requests``."""
    looked = [e for e in rows.requests(after) if snowflake_time(e.request_id) <= term.last][:limit]
    busy = rows.spoken_of() | rows.schedules.running()
    workflows = {each.workflow for each in rows.executions.all()}
    gone: list[Snowflake] = []
    for envelope in looked:
        exit = rows.replies.exit(envelope.request_id)
        dead = exit is not None and exit.kind is ReplyKind.DEFECT
        due_at = envelope.deliver_at or snowflake_time(envelope.request_id)
        sender = None if envelope.reply_to is None else envelope.reply_to.execution
        if (
            due_at <= (term.failed_until if dead else term.until)
            and envelope.address.shard.group == term.group
            and envelope.request_id not in busy
            and not rows.queues.holds(envelope.request_id)
            and envelope.address.entity_type not in workflows
            and (sender is None or sender not in rows.executions)
        ):
            gone.append(envelope.request_id)
    rows.forget(gone)
    return Pruned(count=len(gone), last=looked[-1].request_id if len(looked) == limit else None)


def _gone(
    rows: MemoryRows, sources: Collection[Snowflake | None], busy: Collection[Snowflake]
) -> list[Snowflake]:
    """Of the requests that a journal speaks of those that nobody needs any more."""
    return [
        each
        for each in sources
        if each is not None
        and each not in busy
        and each not in rows.executions
        and not rows.queues.holds(each)
    ]
