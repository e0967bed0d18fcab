"""Values that are encrypted, from the command line: with their key, and without it."""

import base64

import pytest

from engine.encryption import KEYS
from tests.cli.orders import Broken, Fulfil, Order, Slow
from tests.cli.terminal import do, outlast, served
from tests.cli.test_dead import haunted
from tests.cli.test_entities import shopping
from tests.cli.test_look import SECONDS

KEY = f"2026={base64.b64encode(b'k' * 32).decode()}"
SAID = "with key '2026', and this process cannot decode it"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_CODEC", "engine.encryption:aes_gcm")
    monkeypatch.setenv(KEYS, KEY)


async def test_looking_shows_values_with_their_key_and_a_sentence_without(
    dsn: str, key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(dsn) as client:
        done = await client.start(Fulfil, Order(id="o-1"), key="o-1")
        broken = await client.start(Broken, "be", key="b-1")
        await client.start(Fulfil, Order(id="o-2"), key="o-2")
        await done.resolve(Fulfil.approved, True)
        await done.join(SECONDS)
        with pytest.raises(Exception, match="cannot be"):
            await broken.join(SECONDS)
    async with haunted(dsn):
        pass
    async with shopping(dsn):
        pass
    commands = {
        "ls": "cannot be",
        "ls --table": "cannot be",
        "show o-1": "paid 100",
        "show o-1 --table": "paid 100",
        "show b-1": "cannot be",
        "why b-1": "cannot be",
        "history o-1": "paid 100",
        "history b-1 --table": "cannot be",
        "poll o-1": "paid 100",
        "poll b-1": "cannot be",
        "dead": "registered",
        "state Cart/a": "milk",
        "state Cart/a --table": "milk",
        "history o-1 --export": "o-1",
    }
    for command, value in commands.items():
        ended = await do(*command.split(), dsn=dsn)
        assert value in ended.out, (command, ended)
    for name in ("OUTLAST_CODEC", KEYS):
        monkeypatch.delenv(name)

    for command, value in commands.items():
        ended = await do(*command.split(), dsn=dsn)

        assert "Traceback" not in ended.err, command
        assert (value in ended.out) is (value == "o-1"), (command, ended)
        said = "encoded by codec 1" if "--table" in command else SAID
        assert "export" in command or said in ended.out, (command, ended)


async def test_acting_without_the_key_is_refused_where_it_would_compare(
    dsn: str, key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(dsn) as client:
        await client.execute(Slow, 0, key="s-1")
        for name in ("OUTLAST_CODEC", KEYS):
            monkeypatch.delenv(name)

        again = await do("start", "Slow", "0", "--key", "s-1", dsn=dsn)
        joined = await do("join", "s-1", dsn=dsn)

    assert (again.code, joined.code) == (2, 0)
    assert SAID in again.err
    assert SAID in joined.out


def test_a_codec_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_CODEC", "nowhere:codec")

    ended = outlast("ls", dsn="postgresql://localhost/not-asked")

    assert ended.code == 2
    assert "codec (variable OUTLAST_CODEC): 'nowhere:codec' cannot be imported" in ended.err
