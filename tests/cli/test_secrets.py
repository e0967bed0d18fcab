"""Passwords and keys are in nothing that is printed, logged, raised or seen by others."""

import base64
import logging
import traceback
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from engine import Client, ConfigurationError, EngineError, Runner, Settings
from engine.encryption import aes_gcm
from engine.storage.migrate import migrate
from engine.storage.outage import Address
from tests.cli.orders import Broken, Slow
from tests.cli.terminal import do, ended, outlast, script
from tests.cli.watched import running
from tests.eventually import eventually

CANARY = "c4nary77"
KEY = base64.b64encode(b"canary-key-of-exactly-32-bytes!!").decode()
UNUSABLE = [
    f"postgresql://app:{CANARY}@127.0.0.1:1/shop",
    f"postgresql://app:{CANARY}@127.0.0.1:port/shop",
    f"postgresql://app:{CANARY}@[::1/shop",
    f"postgresql://app:1{CANARY}/@127.0.0.1:1/shop",
    f"postgresql://app:1?{CANARY}@127.0.0.1:1/shop",
    f"postgresql://app:1#{CANARY}@127.0.0.1:1/shop",
    f"postgresql://app:%zz{CANARY}@127.0.0.1:1/shop",
    f"postgresql://app:{CANARY}\udcff@127.0.0.1:1/shop",
    f"postgresql://127.0.0.1:1/shop?user=app&password={CANARY}",
    f"postgresql://127.0.0.1:1/shop?sslmode=never&sslpassword={CANARY}",
    f"mysql://app:{CANARY}@127.0.0.1:1/shop",
    f"host=127.0.0.1 port=1 password={CANARY}",
]


@pytest.mark.parametrize("command", [["ls"], ["migrate"], ["doctor"], ["start", "Slow", "0"]])
def test_no_command_shows_the_password_of_a_dsn_that_does_not_work(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dsn in UNUSABLE:
        said = [outlast(*command, "--dsn", dsn)]
        if "\udcff" not in dsn:
            monkeypatch.setenv("OUTLAST_DSN", dsn)
            said.append(outlast(*command))
            monkeypatch.setenv("OUTLAST_DSN", "")
        for each in said:
            assert each.code in {2, 7}, (dsn, each)
            assert each.err
            assert CANARY not in each.out + each.err, dsn


@pytest.mark.parametrize("dsn", UNUSABLE)
async def test_no_error_and_no_traceback_holds_it(dsn: str) -> None:
    settings = Settings(dsn=dsn, connect_timeout=timedelta(seconds=1))
    texts = [repr(settings), str(Address.of(dsn))]
    for attempt in (_use(settings), migrate(dsn)):
        with pytest.raises((EngineError, UnicodeError)) as caught:
            await attempt
        texts += traceback.format_exception(caught.value)

    # A traceback shows lines of code, not what is in their variables.
    assert [text for text in texts if CANARY in text] == []


async def _use(settings: Settings) -> None:
    async with Client(settings):
        pytest.fail("it connected")


def test_what_is_typed_in_a_wrong_place_is_not_repeated() -> None:
    dsn = f"postgresql://app:{CANARY}@127.0.0.1:1/shop"
    for words in (["ls", dsn], ["migrate", dsn], [dsn], ["ls", f"--dsn={dsn}", f"--limit={dsn}"]):
        said = outlast(*words)
        assert said.code == 2
        assert CANARY not in said.out + said.err


@pytest.mark.parametrize(
    "keys", [KEY, f"a={KEY[:-8]}", f"a={KEY},a={KEY}", f"a={KEY}!", f"é={KEY}", f"={KEY}"]
)
def test_no_error_about_keys_shows_one(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_ENCRYPTION_KEYS", keys)
    monkeypatch.setenv("OUTLAST_CODEC", "engine.encryption:aes_gcm")
    with pytest.raises(ConfigurationError) as caught:
        Settings(dsn="postgresql://h/db")
    with pytest.raises(ConfigurationError) as made:
        aes_gcm()
    said = outlast("ls", dsn="postgresql://127.0.0.1:1/shop")

    texts = [*traceback.format_exception(caught.value), *traceback.format_exception(made.value)]
    assert KEY[:8] not in "".join([*texts, said.out, said.err])


async def test_a_runner_that_fails_in_many_ways_shows_neither(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OUTLAST_ENCRYPTION_KEYS", f"a={KEY}")
    monkeypatch.setenv("OUTLAST_CODEC", "engine.encryption:aes_gcm")
    parts = urlsplit(dsn)
    secret = parts._replace(netloc=f"{parts.username}:{CANARY}@{parts.hostname}:{parts.port}")
    settings = Settings(dsn=secret.geturl(), shards_per_group=4)
    sql = await asyncpg.connect(dsn)
    seen: list[str] = []
    async with Runner(settings).register(Slow(), Broken()) as runner:
        await runner.client.start(Broken, "be", key="b-1")
        assert await runner.client.execute(Slow, 0, key="s-1") == "done"
        epochs = dict(runner.epochs)
        rows = await sql.fetch("select application_name || query from pg_stat_activity")
        seen += [str(row[0]) for row in rows]
        await sql.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'outlast:%' and datname = current_database()"
        )
        await eventually(lambda: runner.epochs and runner.epochs != epochs, timeout=20)
        for words in ("ls", "show b-1", "why b-1", "history b-1", "doctor", "runners", "dead"):
            said = await do(*words.split(), dsn=secret.geturl())
            seen += [said.out, said.err]
        monkeypatch.setenv("OUTLAST_ENCRYPTION_KEYS", f"other={KEY[::-1][1:]}=")
        said = await do("show", "b-1", dsn=secret.geturl())
        seen += [said.out, said.err, repr(runner), repr(runner.client), repr(settings)]
    await sql.close()
    seen += [f"{each.getMessage()} {vars(each)}" for each in caplog.records]

    assert any("lost a lane" in each for each in seen), "it did fail"
    assert [each for each in seen if CANARY in each or KEY[:8] in each] == []


def test_the_log_of_a_process_at_its_most_talkative_has_no_password(
    project: Path, dsn: str
) -> None:
    parts = urlsplit(dsn)
    secret = parts._replace(netloc=f"{parts.username}:{CANARY}@{parts.hostname}:{parts.port}")
    words = ("run", "orders:app", "--log-level", "debug", "--debug")
    with running(*words, dsn=secret.geturl(), cwd=project) as runner:
        runner.says("runner serves")
        arguments = Path(f"/proc/{runner.process.pid}/cmdline").read_bytes()
        drained = runner.stopped()
    lost = secret._replace(path="/nowhere").geturl()
    refused = ended(script(*words, dsn=lost, cwd=project))

    assert refused.code != 0
    for text in (runner.said, drained.out, drained.err, refused.out, refused.err):
        assert CANARY not in text
    assert CANARY.encode() not in arguments
