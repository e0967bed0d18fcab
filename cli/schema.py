"""Make and check the engine's tables, and let others use them: ``migrate``, ``grants``."""

import sys
from enum import StrEnum
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
    from engine.storage.schema_version import HEAD

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
    before = await schema_of.revision(dsn, schema=schema)
    if not check:
        await schema_of.migrate(dsn, schema=schema)
    after = max(before or HEAD, HEAD)
    if output.as_json:
        output.line({"schema": schema, "before": before, "revision": after})
    elif before == after:
        fits = "as this version needs it" if after == HEAD else "newer, which this version works on"
        output.say(f"schema {schema!r} is at revision {after}, {fits}")
    else:
        origin = "created at" if before is None else f"brought from revision {before} to"
        output.say(f"schema {schema!r} {origin} revision {after}")


class Kind(StrEnum):
    """The kinds of login, as the command line spells them."""

    OWNER = "owner"
    WORKER = "worker"
    CLIENT = "client"
    INSPECTOR = "inspector"


def grants(
    session: Session,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The login, which exists.")],
    kind: Annotated[
        Kind,
        typer.Option(
            "--as",
            help="owner: migrates. worker: runs, repairs, prunes. client: starts, signals, joins,"
            " looks. inspector: looks.",
        ),
    ] = Kind.WORKER,
) -> None:
    """Print the SQL that lets a login do just what a worker, client or inspector does.

    Run it as the role that migrates, an owner's as one that may create schemas. What the login was
    granted in the schema before is taken back. Print it again after an upgrade.
    """
    from engine.storage import rights

    if not role or "\x00" in role:
        raise UsageError("a role has a name")
    schema = session.settings().schema
    sys.stdout.write(rights.grants(rights.Kind(kind), role=role, schema=schema))
