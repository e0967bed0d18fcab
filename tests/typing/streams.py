"""What the type checkers see of streams: handlers that are async generators."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import assert_type

from pydantic import BaseModel

from engine import AckChunk, Client, Entity, EntityType, ReplyChunk, ReplyWithExit, Runner, rpc


class Line(BaseModel):
    number: int
    text: str


class Tailing:
    """A mixin needs no base of the engine's."""

    @rpc
    async def tail(self, *, last: int = 10) -> AsyncIterator[Line]:
        for number in range(last):
            yield Line(number=number, text="")


class Log(Tailing, Entity):
    @rpc
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @rpc(resumable=True, name="all-lines")
    async def lines(self) -> AsyncGenerator[Line, None]:
        assert_type(self.next_sequence, int)
        for number in range(self.next_sequence, 100):
            yield Line(number=number, text="")

    @rpc(persisted=False)
    async def glances(self) -> AsyncGenerator[str, None]:
        async for number in self.numbers(3):
            assert_type(number, int)
            yield str(number)

    @rpc
    async def size(self) -> int:
        return 100


async def read(client: Client) -> int:
    log = client.entity(Log, "a", key="once")
    assert_type(log.numbers(3), AsyncIterator[int])
    total = 0
    async for number in log.numbers(3):
        assert_type(number, int)
        total += number
    texts = [line.text async for line in log.tail(last=3) if line.number > 1]
    assert_type(texts, list[str])
    async with aclosing(log.lines()) as lines:
        async for line in lines:
            assert_type(line, Line)
            break
    assert_type(await log.size(), int)
    return total


async def directly(runner: Runner) -> None:
    sharding = runner.sharding
    receiver = await sharding.make_client(EntityType("Log")).send("a", "numbers", {"count": 3})
    async for reply in receiver.replies():
        match reply:
            case ReplyChunk(request_id=request_id, sequence=sequence):
                assert_type(sequence, int)
                ack = AckChunk(request_id=request_id, id=request_id, sequence=sequence)
                await sharding.ack_chunk(ack)
            case ReplyWithExit():
                return
