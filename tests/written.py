"""Which rows are written in a database, to whom they belong, and how durably: by triggers."""

from collections.abc import Iterable

import asyncpg

WATCH = """
    create table public.written (name text, request bigint, durable text);
    create function public.note_written() returns trigger language plpgsql as $$
        declare touched jsonb := to_jsonb(coalesce(new, old));
        begin
            insert into public.written values (
                tg_table_name,
                coalesce(touched ->> 'request_id', touched ->> 'execution')::bigint,
                current_setting('synchronous_commit')
            );
            return null;
        end
    $$;
"""
WATCH_TABLE = """
    create trigger watched after insert or update or delete on engine.{table}
    for each row execute function public.note_written();
"""
FORGET_TABLE = "drop trigger watched on engine.{table}"
FORGET = "drop function public.note_written(); drop table public.written"


async def watch(sql: asyncpg.Connection, tables: Iterable[str]) -> None:
    """Note in ``public.written`` from now on what is done to rows of these tables."""
    await sql.execute(WATCH)
    for table in tables:
        await sql.execute(WATCH_TABLE.format(table=table))


async def forget(sql: asyncpg.Connection, tables: Iterable[str]) -> None:
    """Undo ``watch``."""
    for table in tables:  # one after the other: who holds several locks may meet others who do
        await sql.execute(FORGET_TABLE.format(table=table))
    await sql.execute(FORGET)
