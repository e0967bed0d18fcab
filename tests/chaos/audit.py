"""Who wrote what for a shard, and whether it was his to write.

Triggers note every journal row, reply and change of an owner with the session that wrote it and the
shard's owner at that moment: as the transaction commits, so that a row written early and committed
late counts as late. Rows of one owner that commit after the next one's epoch began are what the
engine promises not to let happen.
"""

import asyncpg

AUDIT = """
create table audit (
    nth bigint generated always as identity,
    what text not null, name text not null, request bigint, group_id int, shard smallint,
    writer text not null, owner uuid, epoch bigint,
    at timestamptz not null default clock_timestamp(),
    together xid8 not null default pg_current_xact_id()
);

create function note_row() returns trigger language plpgsql as $$
declare
    place engine.shards;
begin
    if tg_table_name = 'journal' then
        select s.* into place
        from engine.executions x join engine.shards s using (group_id, shard)
        where x.request_id = new.execution;
        insert into audit (what, name, request, group_id, shard, writer, owner, epoch)
        values ('journal', new.name || '#' || new.position, new.execution,
                place.group_id, place.shard, current_setting('application_name'),
                place.runner_id, place.epoch);
    else
        select s.* into place
        from engine.envelopes e join engine.shards s using (group_id, shard)
        where e.request_id = new.request_id;
        insert into audit (what, name, request, group_id, shard, writer, owner, epoch)
        values ('reply', new.kind || '#' || new.sequence, new.request_id,
                place.group_id, place.shard,
                current_setting('application_name'), place.runner_id, place.epoch);
    end if;
    return null;
end $$;

create constraint trigger audited after insert on engine.journal
deferrable initially deferred for each row execute function note_row();
create constraint trigger audited after insert on engine.replies
deferrable initially deferred for each row execute function note_row();

create function note_shard() returns trigger language plpgsql as $$
begin
    insert into audit (what, name, group_id, shard, writer, owner, epoch)
    values ('shard', '', new.group_id, new.shard, current_setting('application_name'),
            new.runner_id, new.epoch);
    return null;
end $$;

create trigger audited after update on engine.shards for each row
when (old.epoch <> new.epoch or new.runner_id is not null and old.runner_id <> new.runner_id)
execute function note_shard();

create function note_change() returns trigger language plpgsql as $$
begin
    insert into audit (what, name, request, writer)
    values ('changed', old.name || '#' || old.position, old.execution,
            current_setting('application_name'));
    return null;
end $$;

create trigger changed after update or delete on engine.journal for each row
execute function note_change();
"""

FOREIGN = """
    select what, name, request, shard, writer, owner, epoch, at
    from audit
    where what in ('journal', 'reply') and split_part(writer, ':', 2) is distinct from owner::text
"""
"""Rows that somebody else than the owner at that moment committed."""

LATE = """
    select a.what, a.name, a.request, a.shard, a.writer, a.at, s.epoch, s.owner, s.at as since
    from audit a join audit s
        on s.what = 'shard' and s.group_id = a.group_id and s.shard = a.shard and s.nth < a.nth
    where a.what in ('journal', 'reply')
        and not exists (
            select from audit n where n.what = 'shard' and n.group_id = s.group_id
                and n.shard = s.shard and n.nth between s.nth + 1 and a.nth
        )
        and split_part(a.writer, ':', 2) is distinct from s.owner::text
"""
"""The same by order: rows after a shard's epoch began that another than its owner wrote."""


async def install(database: "asyncpg.Pool[asyncpg.Record]") -> None:
    await database.execute(AUDIT)


async def assert_no_foreign_rows(database: "asyncpg.Pool[asyncpg.Record]") -> None:
    assert await database.fetch(FOREIGN) == []
    assert await database.fetch(LATE) == []


async def written_by(database: "asyncpg.Pool[asyncpg.Record]", runner: str) -> int:
    """How many rows sessions of the runner wrote."""
    return await database.fetchval(
        "select count(*) from audit"
        " where what in ('journal', 'reply') and split_part(writer, ':', 2) = $1",
        runner,
    )
