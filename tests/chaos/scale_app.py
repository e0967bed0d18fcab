"""The application of the test of scale: ``scale_app runner`` and ``scale_app client``.

A runner serves accounts. A client is told ``send`` once and then is some of the senders.
"""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from engine import Client, Entity, Runner, Settings, State, rpc
from tests.chaos.app import Statements, a_while, answer_commands, say, tell
from tests.chaos.scale import ACKNOWLEDGED, SCALES, Message, acknowledged, plan, senders_of

CALLED = 10
"""Each sender awaits the handler of every tenth message; the others are only stored when it goes
on."""


class Seen(BaseModel):
    """What an account has had from one sender."""

    number: int = 0
    count: int = 0
    total: int = 0


class Book(BaseModel):
    """All that an account has had. ``wrong`` has what came out of its sender's order."""

    seen: dict[int, Seen] = {}
    wrong: list[str] = []


class Account(Entity):
    """Adds up what it is sent."""

    state = State(Book)

    @rpc
    async def add(self, sender: int, number: int, amount: int) -> int:
        seen = self.state.seen.setdefault(sender, Seen())
        if number <= seen.number:
            self.state.wrong.append(f"{number} of {sender} came after {seen.number}")
        seen.number = number
        seen.count += 1
        seen.total += amount
        return number


async def run() -> None:
    runner = Runner(Settings()).register(Account())
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell(runner, Statements()))
        await runner.run()
        telling.cancel()


async def serve_client() -> None:
    async with Client(Settings()) as client:
        say(ready=True)
        await answer_commands(lambda command: send(client, command))


async def send(client: Client, command: dict[str, Any]) -> int:
    """Be all senders of one process until they have sent all that is theirs.

    They go on where the file says that a process before this one was, but for the one message
    that each may have been sending then: nobody knows what became of it.
    """
    scale, process = SCALES[command["scale"]], command["process"]
    path = Path(command["file"])
    begin = dict.fromkeys(senders_of(process), 0)
    for sender, place in acknowledged([path]) if path.exists() else ():
        begin[sender] = max(begin[sender], place + 2)
    messages = plan(scale, command["seed"])
    with path.open("ab", buffering=0) as file:
        async with asyncio.TaskGroup() as group:
            for sender, place in begin.items():
                group.create_task(send_all(client, messages[sender][place:], file, scale.pace))
    return len(begin)


async def send_all(client: Client, messages: list[Message], file: BinaryIO, pace: float) -> None:
    """One sender: one message after the other."""
    for each in messages:
        account = client.entity(Account, f"a{each.entity}")
        if each.place % CALLED:
            await client.tell(account.add, each.sender, each.number, each.amount)
        else:
            assert await account.add(each.sender, each.number, each.amount) == each.number
        file.write(ACKNOWLEDGED.pack(each.sender, each.place))
        await a_while(2 * pace)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run() if sys.argv[1] == "runner" else serve_client())
