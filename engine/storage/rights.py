"""What each kind of login may do to the engine's tables, and the SQL that grants it.

``outlast grants`` prints it; ``outage`` asks here what a login lacks. Tests compare the tables with
what the queries of ``sql/`` do.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final

from engine.storage.queries import schema_name


class Kind(Enum):
    """What a login is for."""

    OWNER = "owner"
    """Makes and migrates the schema."""
    WORKER = "worker"
    """Runs runners, and repairs: retry, fork, prune, pause a whole workflow."""
    CLIENT = "client"
    """Starts, signals, joins and looks; cannot write what only an owner of shards may."""
    INSPECTOR = "inspector"
    """Looks at everything, writes nothing."""


# Append-only tables are never updated; a shard or a runner is never deleted.
_WORKER: Final = {
    "acks": "insert, update, delete",
    "dedup": "insert, delete",
    "entity_states": "insert, update",
    "envelopes": "insert, update, delete",
    "executions": "insert, update, delete",
    "inbox": "insert, update, delete",
    "journal": "insert, delete",
    "machine_ids": "insert, update",
    "pauses": "insert, update",
    "post": "insert, delete",
    "queue_items": "insert, update, delete",
    "queues": "insert, update",
    "replies": "insert, update, delete",  # an update only to lock them
    "runner_heartbeats": "insert, update, delete",
    "runners": "insert, update",
    "schedule_fires": "insert, update",
    "schedules": "insert, update",
    "shard_groups": "insert",
    "shards": "insert, update",
    "step_heartbeats": "insert, update, delete",
    "waiters": "insert, delete",
}
_CLIENT: Final = {
    "acks": "insert, update",
    "dedup": "insert",
    "envelopes": "insert",
    "executions": "insert",
    "inbox": "insert",
    "machine_ids": "insert, update",
    "post": "insert, delete",
    "replies": "delete",  # the chunks of a stream, once they are taken
    "shard_groups": "insert",
    "shards": "insert",
    "waiters": "insert, delete",
}
WRITES: Final[Mapping[Kind, Mapping[str, str]]] = {
    Kind.WORKER: _WORKER,
    Kind.CLIENT: _CLIENT,
    Kind.INSPECTOR: {},
}
"""By table. All of them may select from every table as well."""
CLIENT_QUERIES: Final = frozenset(
    {
        "acknowledge",
        "create_groups",
        "interrupt",
        "lease_machine",
        "open",
        "post",
        "prolong_machine",
        "release_machine",
        "revive",
        "ring",
        "ring_waiters",
        "save",
        "start",
        "sweep_post",
        "sweep_waiters",
        "take_post",
        "unwatch",
        "watch",
    }
)
"""The queries that write and that a client may run."""
_NAMED = re.compile(r"\A-- name: ([a-z_]+)\n")
_WRITES = re.compile(r'\b(?:insert into|update|delete from) "|\bfor (?:no key )?(?:update|share)\b')


def grants(kind: Kind, *, role: str, schema: str) -> str:
    """The SQL that lets the role do what its kind does, and nothing else that it was granted in
    the schema before. To be run by the role that owns the schema, the owner's by whoever may
    create schemas in the database."""
    to, inside = quoted(role), f'"{schema_name(schema)}"'
    if kind is Kind.OWNER:
        return (
            f"-- Then let it migrate.\ncreate schema if not exists {inside} authorization {to};\n"
        )
    lines = [
        "begin;",
        f"revoke all on all tables in schema {inside} from {to};",
        f"alter default privileges in schema {inside} revoke all on tables from {to};",
        f"grant usage on schema {inside} to {to};",
        f"grant select on all tables in schema {inside} to {to};",
        f"alter default privileges in schema {inside} grant select on tables to {to};",
    ]
    by_rights: dict[str, list[str]] = defaultdict(list)
    for table, rights in WRITES[kind].items():
        by_rights[rights].append(f"{inside}.{table}")
    lines += [
        f"grant {rights} on {', '.join(tables)} to {to};" for rights, tables in by_rights.items()
    ]
    return "\n".join([*lines, *_signals(kind, to), "commit;"]) + "\n"


def _signals(kind: Kind, to: str) -> Iterator[str]:
    if kind is Kind.WORKER:
        yield "-- Runners end the sessions of one that hangs: nothing is needed while all log in as"
        yield "-- one role; where they do not, this lets each end the others', but no superuser's:"
        yield f"-- grant pg_signal_backend to {to};"


def quoted(name: str) -> str:
    """An identifier as it stands in SQL, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def needed_for(query: object) -> Kind | None:
    """The least kind of login that may run a query of ours, by its text; None: it is not ours."""
    named = _NAMED.match(query) if isinstance(query, str) else None
    if named is None:
        return None
    if named[1] in CLIENT_QUERIES:
        return Kind.CLIENT
    return Kind.WORKER if _WRITES.search(str(query)) else Kind.INSPECTOR
