"""What cannot work gets one clear message that names the thing and the fix, and its exit code."""

import os

import psycopg
import pytest

from tests.cli.fake_server import TOO_OLD, WRONG_PASSWORD, fake_server
from tests.cli.terminal import outlast

NOWHERE = "postgresql://someone:secret@127.0.0.1:1/shop"
READING = [
    *("ls", "show x", "why x", "history x", "tail x", "poll x", "join x", "runners", "shards"),
    *("entities", "state X/x"),
]
ACTING = ["start W 1 -k k", "resolve x d 1", "reject x d no", "interrupt x"]
EVERY = [*READING, *ACTING, "migrate", "migrate --check", "doctor"]


@pytest.mark.parametrize("command", [*EVERY, "run app:app"])
def test_without_a_dsn_the_variable_is_named(command: str) -> None:
    ended = outlast(*command.split())

    assert (ended.code, ended.out) == (2, "")
    assert "set OUTLAST_DSN" in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("command", EVERY)
def test_a_server_that_is_down_is_exit_code_7(command: str) -> None:
    ended = outlast(*command.split(), dsn=NOWHERE)

    assert (ended.code, ended.out) == (7, "")
    assert "PostgreSQL at 127.0.0.1:1/shop cannot be reached" in ended.err
    assert "is it running there?" in ended.err
    assert "secret" not in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["ls", "start W 1 -k k", "migrate", "doctor"])
def test_a_dsn_that_is_none_is_exit_code_2(command: str) -> None:
    for dsn in ("nonsense", "mysql://root:secret@localhost/shop", "postgresql://a:secret@h:port/x"):
        ended = outlast(*command.split(), dsn=dsn)

        assert ended.code == 2, (dsn, ended)
        assert "DSN" in ended.err, ended
        assert "secret" not in ended.err


@pytest.mark.parametrize("command", ["ls", "migrate"])
def test_a_database_that_is_not_there_is_named(command: str, dsn: str) -> None:
    ended = outlast(*command.split(), dsn=f"{dsn.rpartition('/')[0]}/no_such_database")

    assert ended.code == 7
    assert "there is no such database" in ended.err
    assert "no_such_database" in ended.err


@pytest.mark.parametrize("command", ["ls", "migrate", "doctor"])
def test_a_refused_login_is_said_to_be_one(command: str) -> None:
    with fake_server(*WRONG_PASSWORD) as dsn:
        ended = outlast(*command.split(), dsn=dsn)

    assert ended.code == 7
    assert "check user, password and TLS settings" in ended.err


@pytest.mark.parametrize("command", ["ls", "doctor"])
def test_a_server_that_is_too_old_is_refused(command: str) -> None:
    with fake_server(*TOO_OLD) as dsn:
        ended = outlast(*command.split(), dsn=dsn)

    assert ended.code == 2
    assert "is PostgreSQL 13" in ended.err
    assert "14 or newer" in ended.err


@pytest.mark.parametrize("command", [*READING, *ACTING, "migrate --check"])
def test_a_schema_that_is_not_migrated_names_the_command(command: str, empty_dsn: str) -> None:
    ended = outlast(*command.split(), dsn=empty_dsn)

    assert (ended.code, ended.out) == (1, "")
    assert "schema 'engine' is not there yet: run 'outlast migrate'" in ended.err


@pytest.mark.parametrize("command", ["ls", "start W 1 -k k", "migrate", "migrate --check"])
def test_a_schema_that_is_too_new_asks_for_an_upgrade(command: str, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("update engine.schema_version set version_num = '9999'")

    ended = outlast(*command.split(), dsn=dsn)

    assert (ended.code, ended.out) == (1, "")
    assert "is at revision 9999" in ended.err
    assert "upgrade outlast" in ended.err


@pytest.mark.parametrize("schema", ["Engine", "a.b", 'x"'])
def test_a_schema_name_that_cannot_be_is_refused(schema: str, dsn: str) -> None:
    ended = outlast("ls", "--schema", schema, dsn=dsn)

    assert ended.code == 2
    assert "lower-case identifier" in ended.err


@pytest.mark.parametrize("command", ["show", "why", "history", "tail", "poll", "join", "interrupt"])
def test_an_execution_that_is_not_there_is_exit_code_3(command: str, dsn: str) -> None:
    for id in ("o-42", "Fulfil/o-42", "/", "Fulfil/"):
        ended = outlast(command, id, dsn=dsn)

        assert (ended.code, ended.out) == (3, "")
        assert f"there is no execution {id!r}: 'outlast ls' lists those there are" in ended.err


def test_a_deferred_of_an_execution_that_is_not_there_is_exit_code_3(dsn: str) -> None:
    assert outlast("resolve", "o-42", "approved", "true", dsn=dsn).code == 3
    assert outlast("reject", "o-42", "approved", "no", dsn=dsn).code == 3


@pytest.mark.parametrize(
    "command", ["dead --type", "entities", "schedules show", "state", "start W 1 --key", "show"]
)
def test_what_is_no_text_is_exit_code_2(command: str, dsn: str) -> None:
    ended = outlast(*command.split(), os.fsdecode(b"E/\xff"), dsn=dsn)

    assert (ended.code, ended.out) == (2, "")
    assert "'E/\\udcff' is not UTF-8" in ended.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{id: 1}", "Expecting property name enclosed in double quotes at character 2"),
        ("approved", "Expecting value at character 1"),
        ("", "Expecting value at character 1"),
        ("[1, NaN]", "JSON has no NaN"),
        ('{"a": 1} x', "Extra data at character 10"),
    ],
)
def test_a_payload_that_is_not_json_says_where(text: str, reason: str) -> None:
    for command in (["start", "W", text, "--key", "k"], ["resolve", "x", "d", text]):
        ended = outlast(*command, dsn=NOWHERE)

        assert ended.code == 2
        assert reason in ended.err
        assert "quote it for the shell" in ended.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("join x --timeout 30", "'30' is not a duration: write 30s, 5m, 2h, 1d or 1h30m"),
        ("start W 1 -k k --delay soon", "'soon' is not a duration"),
        ("start W 1 -k k --at noon", "'noon' is not a time"),
        ("start W 1 -k k --at 2025-01-01T00:00", "names no zone"),
        ("start W 1 -k k --at 2025-01-01T00:00Z --delay 1s", "--at or --delay, not both"),
        ("start W 1 -k k --attribute tenant", "'tenant' is not an attribute"),
        ("start W 1", "Missing option '--key'"),
        ("ls --status done", "there is no status 'done': use scheduled, running"),
        ("ls --limit 0", "Invalid value for '--limit'"),
        ("ls --limit many", "Invalid value for '--limit'"),
        (f"schedules show Nightly --limit {1 << 63}", "Invalid value for '--limit'"),
        ("resolve x 1d true", "cannot be named '1d'"),
        ("show", "Missing argument 'ID'"),
        ("shwo x", "No such command 'shwo'. Did you mean 'show'?"),
        ("migrate --sql --check", "--sql or --check, not both"),
        ("run app", "'app' does not name an APP: write module:attribute, such as app:runner"),
        ("run ./shop/app.py:make", "write module:attribute, such as shop.app:make"),
        ("run app.py", "such as app:runner"),
        ("run app:app --log-level loud", "there is no log level 'loud'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_exit_code_2(command: str, message: str) -> None:
    ended = outlast(*command.split(), dsn=NOWHERE)

    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_a_usage_error_names_the_help_to_read() -> None:
    assert outlast("show").err.endswith("see: outlast show --help\n")
    assert outlast("shwo").err.endswith("see: outlast --help\n")


def test_a_traceback_is_shown_when_asked_for() -> None:
    with pytest.raises(Exception, match="cannot be reached"):
        outlast("ls", "--debug", dsn=NOWHERE)
