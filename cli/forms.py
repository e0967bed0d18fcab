"""What the commands print as JSON: one shape for each kind of thing, with stable names."""

from cli.durations import iso
from engine.admin import readable
from engine.cluster.limits import as_json
from engine.core.errors import ErrorDetails
from engine.core.ids import snowflake_time
from engine.core.outcome import DeadLetterInfo, ExecutionInfo, JournalEvent
from engine.core.status import Status
from engine.diagnosis import Finding
from engine.queues import QueueInfo
from engine.schedule import FireInfo, ScheduleInfo
from engine.storage.entities import EntityRow, StoredState
from engine.storage.protocol import RunnerRow, ShardRow
from engine.versions import PatchInfo, VersionInfo

Form = dict[str, object]


def execution(info: ExecutionInfo) -> Form:
    """What ``ls`` knows. A request id is a text: it has more digits than a JavaScript number."""
    form: Form = {
        "id": f"{info.workflow}/{info.id}",
        "workflow": info.workflow,
        "key": info.id,
        "request_id": str(info.request_id),
        "status": str(info.status),
        "why": info.why,
        "version": info.version,
        "run": info.run,
        "created_at": iso(info.created_at),
        "started_at": iso(info.started_at),
        "finished_at": iso(info.finished_at),
        "wake_at": iso(info.wake_at),
        "parent": None if info.parent is None else str(info.parent),
        "runner": None if info.runner is None else str(info.runner),
        "shard": str(info.shard),
        "attributes": dict(info.attributes),
    }
    if info.error is not None:
        form["error"] = str(info.error)
    return form


def outcome(info: ExecutionInfo) -> Form:
    """The result or error, where there is one."""
    if info.error is not None:
        return {"error": error(info.error)}
    return {"result": info.result} if info.status is Status.SUCCEEDED else {}


def error(details: ErrorDetails) -> Form:
    """An error with what caused it."""
    return {
        "type": details.type,
        "message": details.message,
        "traceback": details.traceback,
        "details": details.details,
        "cause": None if details.cause is None else error(details.cause),
    }


def event(found: JournalEvent) -> Form:
    """An event of a journal."""
    return {
        "run": found.run,
        "position": found.position,
        "kind": found.kind.name.lower(),
        "name": found.name,
        "ordinal": found.ordinal,
        "attempt": found.attempt,
        "outcome": found.outcome.name.lower(),
        "at": iso(found.at),
        "started_at": iso(found.started_at),
        "due_at": iso(found.due_at),
        "source": None if found.source is None else str(found.source),
        "payload": found.payload,
    }


def runner(row: RunnerRow, *, state: str, shards: int) -> Form:
    """A runner. What it has in memory is as of its last heartbeat, the shards are those it owns
    now."""
    load = row.load
    return {
        "id": str(row.id),
        "state": state,
        "host": row.host,
        "pid": row.pid,
        "version": row.version,
        "groups": list(row.groups),
        "weight": row.weight,
        "draining": row.draining,
        "shards": shards,
        "lanes": None if load is None else load.lanes,
        "entities": None if load is None else load.entities,
        "executions": None if load is None else load.executions,
        "crowded": None if load is None else load.crowded,
        "lag": None if load is None else round(load.lag, 3),
        "types": dict(row.types),
        "started_at": iso(row.started_at),
        "beat_at": iso(row.beat_at),
        "died_at": iso(row.died_at),
    }


def version(info: VersionInfo) -> Form:
    """A version of a workflow; null for executions that no runner has taken up."""
    return {
        "workflow": info.workflow,
        "version": info.version,
        "runners": info.runners,
        "executions": info.executions,
        "live": {str(status): count for status, count in info.live.items()},
        "unserved": info.unserved,
        "misfits": info.misfits,
    }


def patch(info: PatchInfo) -> Form:
    """What a change has been answered."""
    return {
        "workflow": info.workflow,
        "change": info.change,
        "new": info.new,
        "old": info.old,
        "unasked": info.unasked,
    }


def shard(row: ShardRow) -> Form:
    """A shard."""
    return {
        "shard": str(row.shard),
        "group": row.shard.group,
        "number": row.shard.number,
        "epoch": row.epoch,
        "runner": None if row.runner is None else str(row.runner),
        "acquired_at": iso(row.acquired_at),
    }


def dead_letter(letter: DeadLetterInfo) -> Form:
    """A dead letter."""
    return {
        "request_id": str(letter.request_id),
        "entity": letter.entity,
        "id": letter.id,
        "method": letter.method,
        "payload": letter.payload,
        "error": error(letter.error),
        "sent_at": iso(letter.sent_at),
        "shard": str(letter.shard),
    }


def schedule(info: ScheduleInfo, *, state: str) -> Form:
    """A cron. Durations are seconds."""
    limit = info.skip_if_older_than
    return {
        "name": info.name,
        "schedule": info.schedule,
        "timezone": info.timezone,
        "starts": info.starts,
        "state": state,
        "overlap": info.overlap.value,
        "catch_up": info.catch_up.total_seconds(),
        "skip_if_older_than": None if limit is None else limit.total_seconds(),
        "paused": info.paused,
        "reason": info.reason,
        "next_at": iso(info.next_at),
        "done_until": iso(info.done_until),
        "buffered": iso(info.buffered),
        "running": [str(request) for request in info.running],
        "backfill": [[iso(first), iso(last)] for first, last in info.backfill],
        "shard": str(info.shard),
        "runner": None if info.runner is None else str(info.runner),
    }


def queue(info: QueueInfo, *, state: str) -> Form:
    """A queue. The period of a rate is in seconds."""
    return {
        "name": info.name,
        "state": state,
        "waiting": info.waiting,
        "delayed": info.delayed,
        "running": info.running,
        "oldest": iso(info.oldest),
        "limits": as_json(info.limits),
        "declared": as_json(info.declared),
        "changed": list(info.changed),
        "paused": info.paused,
        "reason": info.reason,
        "shard": str(info.shard),
        "runner": None if info.runner is None else str(info.runner),
    }


def fire(found: FireInfo, *, state: str) -> Form:
    """An instant of a cron."""
    return {
        "instant": iso(found.instant),
        "state": state,
        "manual": found.manual,
        "request_id": None if found.request_id is None else str(found.request_id),
        "at": iso(found.at),
    }


def entity(row: EntityRow) -> Form:
    """An entity with a state or waiting messages."""
    return {
        "entity": row.entity_type,
        "id": row.entity_id,
        "waiting": row.waiting,
        "oldest": None if row.oldest is None else str(row.oldest),
        "oldest_at": None if row.oldest is None else iso(snowflake_time(row.oldest)),
        "version": row.version,
        "saved_at": iso(row.saved_at),
        "shard": str(row.shard),
        "runner": None if row.runner is None else str(row.runner),
    }


def state(stored: StoredState) -> Form:
    """The state of an entity."""
    return {
        "entity": stored.entity_type,
        "id": stored.entity_id,
        "version": stored.version,
        "saved_at": iso(stored.saved_at),
        "shard": str(stored.shard),
        "state": readable(stored.payload),
    }


def finding(found: Finding) -> Form:
    """What ``doctor`` found."""
    return {
        "topic": found.topic,
        "severity": found.severity.value,
        "message": found.message,
        "fix": found.fix,
    }
