"""What one flush writes: the commits of many sources, merged into the arguments of statements.

From ``lane_session``, which sends them in this order. Only the first, ``flush``, is all or nothing
with what the commits promise; the others are notes that may be lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.core.ids import Snowflake
from engine.storage.columns import (
    State,
    execution_columns,
    finish_values,
    fire_columns,
    heartbeat_columns,
    inbox_columns,
    journal_columns,
    journal_values,
    reply_columns,
    request_columns,
    schedule_columns,
    state_columns,
)
from engine.storage.groups import Groups
from engine.storage.heartbeats import latest
from engine.storage.protocol import Commit, NewReply, SaveRequest
from engine.storage.queries import alone
from engine.storage.schedules import ScheduleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A query by its name, and what it is given."""

    name: str
    arguments: Sequence[object]


class Batch:
    """Commits of one session's shards. ``UnknownGroup`` when one speaks of a group nobody knows.

    ``overtaken`` are requests that one of them ends before another, whose states are left out.
    """

    def __init__(self, commits: Sequence[Commit], groups: Groups) -> None:
        self._commits = commits
        self._groups = groups
        self._states, self.overtaken = _states(commits)

    def requests(self) -> list[SaveRequest]:
        """Each request once, by its id."""
        requests: dict[Snowflake, SaveRequest] = {}
        for commit in self._commits:
            for request in commit.requests:
                requests.setdefault(request.envelope.request_id, request)
        return list(requests.values())

    def flush(self, requests: Sequence[SaveRequest], channel: str | None) -> Statement | None:
        """The statement for all but the notes; None when there is nothing else."""
        commits, groups = self._commits, self._groups
        journal = [row for commit in commits for row in commit.journal]
        if not any(_more_than_journal(commit) for commit in commits):
            if not journal:
                return None
            if len(journal) == 1:
                return Statement(name="append", arguments=journal_values(journal[0]))
            return Statement(name="flush_journal", arguments=journal_columns(journal))
        if len(commits) == 1 and (values := finish_values(commits[0], groups)) is not None:
            return Statement(name=alone("finish"), arguments=values)
        replies = _first_exits(reply for commit in commits for reply in commit.replies)
        updates = {c.execution.request_id: c.execution for c in commits if c.execution}
        middle = [
            *journal_columns(journal),
            *reply_columns(replies, groups),
            *inbox_columns(((c.shard, c.settled) for c in commits), groups),
            *execution_columns(updates.values()),
        ]
        if not (requests or self._states):
            return Statement(name="finish", arguments=middle)
        asked, states = request_columns(requests, groups), state_columns(self._states, groups)
        return Statement(name="flush", arguments=[*asked, channel, *middle, *states])

    def notes(self) -> list[Statement]:
        """What is written when the rest is committed."""
        commits, groups = self._commits, self._groups
        statements: list[Statement] = []

        def add(name: str, columns: Sequence[Sequence[object]]) -> None:
            if columns[0]:
                statements.append(Statement(name=name, arguments=columns))

        if any(_has_notes(commit) for commit in commits):
            add("count_failed", inbox_columns(((c.shard, c.failed) for c in commits), groups))
            add("mark_tried", inbox_columns(((c.shard, c.tried) for c in commits), groups))
            # A fire that is noted and not passed is dealt with again, and finds its note.
            add("write_fires", fire_columns(fire for c in commits for fire in c.fires))
            add("write_schedules", schedule_columns(_last_schedules(commits), groups))
            heartbeats = latest(each for c in commits for each in c.heartbeats)
            reported = [each for each in heartbeats if each.details is not None]
            ended = [each for each in heartbeats if each.details is None]
            add("write_heartbeats", heartbeat_columns(reported))
            add("drop_heartbeats", heartbeat_columns(ended)[:3])
        return statements


def _more_than_journal(commit: Commit) -> bool:
    return bool(
        commit.replies or commit.requests or commit.settled or commit.execution or commit.states
    )


def _has_notes(commit: Commit) -> bool:
    return bool(
        commit.failed or commit.tried or commit.fires or commit.schedules or commit.heartbeats
    )


def _first_exits(replies: Iterable[NewReply]) -> list[NewReply]:
    """At most one exit per request and one row per sequence: the first that came."""
    exits: set[Snowflake] = set()
    kept: dict[tuple[Snowflake, int], NewReply] = {}
    for reply in replies:
        if reply.kind.value:
            if reply.request_id in exits:
                continue
            exits.add(reply.request_id)
        kept.setdefault((reply.request_id, reply.sequence), reply)
    return list(kept.values())


def _states(commits: Sequence[Commit]) -> tuple[list[State], set[Snowflake]]:
    """The states to write; and the requests that one commit ends before another that has states."""
    states: list[State] = []
    exits: set[Snowflake] = set()
    overtaken: set[Snowflake] = set()
    if any(commit.states for commit in commits):
        for commit in commits:
            exit = commit.exit
            if exit is not None and exit in exits:
                overtaken.update([exit] if commit.states else ())
                continue
            states.extend((commit.shard, state, exit) for state in commit.states)
            if exit is not None:
                exits.add(exit)
    return states, overtaken


def _last_schedules(commits: Iterable[Commit]) -> Iterable[ScheduleRow]:
    return {row.name: row for commit in commits for row in commit.schedules}.values()
