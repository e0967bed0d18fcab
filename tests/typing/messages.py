"""What type checkers see of children, messages to a run, and runs that go on as new ones."""

from datetime import timedelta
from typing import assert_type

from engine import Client, Execution, Workflow, query, signal, update


class Child(Workflow[int, bool]):
    async def execute(self, request: int) -> bool:
        return request > 0


class Chat(Workflow[str, list[str]]):
    seen: list[str]

    async def execute(self, request: str) -> list[str]:
        assert_type(await self.run_child(Child, 1), bool)
        child = await self.start_child(Child, 1, key="c", on_parent_close="abandon")
        assert_type(child, Execution[bool])
        assert_type(await child.join(timedelta(seconds=1)), bool)
        assert_type(await self.wait_until(lambda: bool(self.seen)), bool)
        await self.execution(Chat, "other").signal(Chat.say, "hi")
        assert_type(await self.add("x"), int)
        assert_type(self.count(), int)
        if len(self.seen) > 100:
            await self.continue_as_new(request)
        return self.seen

    @signal
    async def say(self, text: str) -> None: ...

    @signal(name="bye")
    def leave(self) -> None: ...

    @query
    def last(self, number: int = 1) -> list[str]:
        return self.seen[-number:]

    @update
    async def add(self, text: str) -> int:
        return len(text)

    @add.validator
    def check(self, text: str) -> None: ...

    @update(name="number")
    def count(self) -> int:
        return 1


async def talk(client: Client) -> None:
    lobby = client.with_start(Chat, "room", key="lobby", message_key="m-1")
    assert_type(await lobby.signal(Chat.say, "hi"), Execution[list[str]])
    assert_type(await lobby.update(Chat.add, text="x"), int)
    assert_type(await lobby.update(Chat.count), int)
    chat = await client.start(Chat, "room", timeout=timedelta(days=1))
    assert_type(chat, Execution[list[str]])
    await chat.signal(Chat.say, "hi")
    await chat.signal(Chat.say, text="hi")
    await chat.signal(Chat.leave)
    assert_type(await chat.query(Chat.last, number=2), list[str])
    assert_type(await chat.update(Chat.add, "x"), int)
    assert_type(await chat.update(Chat.count), int)
    await client.execution(Chat, "room", key="once").signal(Chat.say, "hi")
    await chat.terminate("enough")


async def show(client: Client) -> None:
    """A result whose place takes anything is still that of the workflow."""
    print(await client.execute(Child, 1), await client.execute(Chat, "room"))
