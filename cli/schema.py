"""Make and check the engine's tables, and let others use them: ``migrate``, ``grants``."""

import sys
from typing import Annotated

import typer

from cli.command import add_command
from cli.exits import UsageError
from cli.session import Session

PANEL = "Operate"


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (migrate, grants):
        add_command(app, function, panel=PANEL)


async def migrate(
    session: Session,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL for an empty schema; run nothing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it is as it should be.")
    ] = False,
) -> None:
    """Bring the engine's schema to what this version needs, creating it if need be."""
    from engine.storage import migrate as schema_of

    if sql and check:
        raise UsageError("give --sql or --check, not both")
    settings = session.settings()
    schema, output = settings.schema, session.output
    if sql:
        sys.stdout.write(schema_of.migration_sql(schema=schema))
        return
    dsn = settings.database()
    if check:
        await schema_of.check(dsn, schema=schema)
        before: str | None = schema_of.head()
    else:
        before = await schema_of.revision(dsn, schema=schema)
        await schema_of.migrate(dsn, schema=schema)
    after = schema_of.head()
    if output.as_json:
        output.line({"schema": schema, "before": before, "revision": after})
    elif before == after:
        output.say(f"schema {schema!r} is at revision {after}, as this version needs it")
    else:
        origin = "created at" if before is None else f"brought from revision {before} to"
        output.say(f"schema {schema!r} {origin} revision {after}")


def grants(
    session: Session,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The login that shall work.")],
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Enough to look: ls, show, why, join, doctor, ...")
    ] = False,
) -> None:
    """Print the SQL that lets a role which does not own the schema run, start and look.

    Run it as the role that migrates: it holds for the tables of later migrations too.
    """
    from engine.storage.queries import schema_name

    if not role or "\x00" in role:
        raise UsageError("a role has a name")
    schema, to = schema_name(session.settings().schema), f'"{role.replace(chr(34), chr(34) * 2)}"'
    rights = "select" if read_only else "select, insert, update, delete"
    sys.stdout.write(
        f'grant usage on schema "{schema}" to {to};\n'
        f'grant {rights} on all tables in schema "{schema}" to {to};\n'
        f'alter default privileges in schema "{schema}" grant {rights} on tables to {to};\n'
    )
