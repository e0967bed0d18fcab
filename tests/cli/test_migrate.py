"""``outlast migrate`` makes, checks and prints the schema."""

import psycopg

from tests.cli.terminal import outlast


def test_migrate_makes_the_schema_once(empty_dsn: str) -> None:
    (first,) = outlast("migrate", dsn=empty_dsn).lines
    (second,) = outlast("migrate", dsn=empty_dsn).lines
    check = outlast("migrate", "--check", "--table", dsn=empty_dsn)

    assert (first["schema"], first["before"]) == ("engine", None)
    assert second["before"] == second["revision"] == first["revision"]
    assert (check.code, "as this version needs it" in check.out) == (0, True)


def test_migrate_takes_another_schema(empty_dsn: str) -> None:
    ended = outlast("migrate", "--schema", "shop_engine", "--table", dsn=empty_dsn)

    assert ended.out.startswith("schema 'shop_engine' created at revision ")
    assert outlast("ls", "--schema", "shop_engine", dsn=empty_dsn).code == 0
    assert outlast("ls", dsn=empty_dsn).code == 1


def test_the_printed_sql_makes_the_schema_too(empty_dsn: str) -> None:
    printed = outlast("migrate", "--sql")
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(printed.out.encode())

    assert outlast("migrate", "--check", dsn=empty_dsn).code == 0


def test_a_schema_that_nothing_else_accepts_is_not_made(empty_dsn: str) -> None:
    for printed in ([], ["--sql"]):
        ended = outlast("migrate", "--schema", "bad-name", *printed, dsn=empty_dsn)
        assert ended.code != 0
        assert "lower-case identifier" in ended.err
