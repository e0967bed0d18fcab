"""What a client says before it is connected."""

from typing import Any

import pytest

from engine import Client, Runner, Workflow
from engine.core.errors import ConfigurationError
from engine.settings import Settings

NOWHERE = Settings(dsn="postgresql://nobody@localhost:1/nowhere")


class Greet(Workflow[str, str]):
    async def execute(self, name: str) -> str:
        return f"Hello {name}"


async def test_a_client_that_was_not_entered_says_so_instead_of_waiting() -> None:
    with pytest.raises(ConfigurationError, match="enter it with 'async with Client"):
        await Client(NOWHERE).start(Greet, "Ada", key="ada")


async def test_so_does_that_of_a_runner() -> None:
    runner = Runner(NOWHERE).register(Greet())

    with pytest.raises(ConfigurationError, match="while the runner is entered"):
        await runner.client.execution(Greet, "ada").join()


@pytest.mark.parametrize("made", [Client, Runner])
def test_a_dsn_in_the_place_of_settings_is_refused_and_not_repeated(made: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"not a str: write Settings\(dsn") as refused:
        made("postgresql://me:secret@localhost/shop")

    assert "secret" not in str(refused.value)
